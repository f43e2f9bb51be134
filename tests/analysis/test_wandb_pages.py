"""The pages on W&B that are built from code, offline: what they hold, and what is handed to W&B's library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2.interface as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from li2_lightning.analysis.wandb_pages import MORE_SECTIONS, SECTIONS, build_report, build_view, outline
from li2_lightning.cli.main import main
from li2_lightning.errors import InputError
from li2_lightning.runs.load import find_runs
from tests.conftest import forget_wandb

CHARTS = [chart for charts in SECTIONS.values() for chart in charts]
MORE = [chart for charts in MORE_SECTIONS.values() for chart in charts]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_wandb(monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every question to W&B's server, which answers with the id of a project."""
    questions: list[dict[str, Any]] = []

    def answer(api: Any, query: Any, variables: dict[str, Any]) -> dict[str, Any]:
        questions.append(variables)
        return {"project": {"internalId": "project"}}

    monkeypatch.setattr(reports, "execute_graphql", answer)
    monkeypatch.setattr(reports, "_get_api", lambda: None)
    return questions


def spec(page: Any) -> dict[str, Any]:
    """What W&B's library sends."""
    found = json.loads(page._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    assert isinstance(found, dict)
    return found


def test_every_column_of_a_run_is_in_one_chart(small_sweep: Path) -> None:
    columns = [name for chart in CHARTS for name in chart.columns]
    assert len(columns) == len(set(columns))
    # In these twelve rows the window of 20 updates is never full.
    assert set(columns) == {*find_runs([small_sweep])[0].metrics.columns, "update/eigengap"}


def test_the_view_has_its_sections_in_reading_order_and_groups_runs_by_their_hash() -> None:
    view = build_view("somebody", "mine", "Li2")
    section = spec(view)["section"]
    shown = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in shown] == [
        "Outcome", "G_F", "Energy and features", "Interaction", "Updates", "Missing features", "Progress measures"
    ]  # fmt: skip
    assert [part["isOpen"] for part in shown] == [*[True] * 5, *[False] * 2]
    assert section["runSets"][0]["grouping"] == [{"section": "config", "name": "config_hash.value"}]
    plots = [panel["config"] for part in shown for panel in part["panels"] if panel["viewType"].endswith("Line Plot")]
    assert [(plot["chartTitle"], tuple(plot["metrics"])) for plot in plots] == [chart[:2] for chart in CHARTS + MORE]
    assert [plot.get("yLogScale", False) for plot in plots] == [chart.log for chart in CHARTS + MORE]
    assert {plot["xAxis"] for plot in plots} == {"step"}
    assert [panel["config"]["mediaKeys"] for panel in shown[0]["panels"] if panel["viewType"] == "Media Browser"] == [
        ["features"], ["report"]
    ]  # fmt: skip


def test_the_report_shows_the_runs_of_the_sweep_and_the_outcome_of_each_setting(
    small_sweep: Path, asked: list[dict[str, Any]]
) -> None:
    runs = find_runs([small_sweep])
    report = build_report(runs, "somebody", "mine", "small")
    hashes = {run.directory.name.partition("-s")[0] for run in runs}
    assert len(hashes) == 2
    text = json.dumps(spec(report))
    assert all(question == {"entityName": "somebody", "projectName": "mine"} for question in asked)
    assert all(digest in text for digest in hashes)
    grid = next(block for block in report.blocks if hasattr(block, "runsets"))
    filters = expr.expr_to_filters(grid.runsets[0].filters)
    assert (filters.key.section, filters.key.name, filters.op) == ("config", "config_hash", "IN")
    assert set(filters.value) == hashes
    lines = [line for line in outline(report).splitlines() if line.startswith("| lr=")]
    assert [line.split(" | ")[:3] for line in lines] == [["| lr=0.001", "2", "0"], ["| lr=0.02", "2", "0"]]
    assert "ParallelCoordinatesPlot: Settings and outcome: optimizer.lr, test/accuracy" in outline(report)
    assert not [section for section in MORE_SECTIONS if section in outline(report).splitlines()]


def test_the_report_has_a_section_of_a_callback_that_is_off_by_default_if_a_run_has_its_columns(
    own_sweep: Path, asked: list[dict[str, Any]]
) -> None:
    path = next(own_sweep.rglob("metrics.csv"))
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},features/explained", *(f"{row},1" for row in rows)]) + "\n")
    lines = outline(build_report(find_runs([own_sweep]), "somebody", "mine", "small")).splitlines()
    assert "Missing features" in lines
    assert "Progress measures" not in lines


@pytest.mark.parametrize("command", [["wandb-view"], ["wandb-report"]])
def test_a_dry_run_prints_the_page_and_asks_nobody(
    command: list[str], small_sweep: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command, *([str(small_sweep)] if command == ["wandb-report"] else []), "--dry-run", "--entity=me"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "for me/li2_lightning, which --dry-run does not create:\n" in out
    places = [out.index(f"\n{section}\n") for section in SECTIONS]
    assert places == sorted(places)
    assert all(f": {', '.join(chart.columns)}\n" in out for chart in CHARTS)
    assert asked == []


def test_a_view_is_saved_as_it_was_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    saved: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        saved.append(view)
        return {"upsertView": {"view": {"name": "nw-1-v", "id": "1"}}}

    monkeypatch.setattr(workspaces.internal, "upsert_view2", upsert)
    monkeypatch.setattr(workspaces.Workspace, "url", "https://wandb.ai/me/mine?nw=1")
    assert main(["wandb-view", "--entity=me", "--project=mine", "--name=Reading order"]) == 0
    assert capsys.readouterr().out == "https://wandb.ai/me/mine?nw=1\n"
    (view,) = saved
    assert (view.entity, view.project, view.display_name) == ("me", "mine", "Reading order")
    assert len(view.spec.section.panel_bank_config.sections) == len(SECTIONS | MORE_SECTIONS)


def test_what_the_server_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)

    def refuse(view: Any) -> None:
        raise RuntimeError("permission denied\nand more")

    monkeypatch.setattr(workspaces.internal, "upsert_view2", refuse)
    assert main(["wandb-view", "--entity=me"]) == 2
    assert capsys.readouterr().err == "error: W&B did not take the view 'Li2': permission denied.\n"


def test_without_credentials_a_page_is_refused_with_both_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-view"]) == 2
    assert "run `wandb login`, or add --dry-run" in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(InputError, match=r"pip install 'li2-lightning\[wandb\]'"):
        build_view("me", "mine", "Li2")
