"""The command that checks the theorems: its rows, its exit codes, and that it notices a wrong formula."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.theory.features import block_norms
from li2_lightning.verification import depth, independent, interactive, lazy, verify
from tests.conftest import li2_command

main = li2_command("verify")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("theorem", [theorem for theorem in verify.THEOREMS if theorem != "4"])
def test_every_theorem_holds(theorem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On S3, where the theorem is about a group; Theorem 4 climbs longest and waits for the slow tests."""
    about = ("--group", "S3") if theorem in verify.PER_GROUP else ()
    code, out, err = run(capsys, "--quick", "--theorem", theorem, *about)
    assert (code, err) == (0, "")
    assert "FAILED" not in out
    assert "checks passed" in out


@pytest.mark.slow
def test_everything_holds_in_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--quick")[0] == 0


def test_it_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checks.json"
    code, out, err = run(capsys, "--quick", "--theorem", "2", "--group", "Q8", "--json", str(path))
    assert (code, err) == (0, "")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    assert content["passed"] is content["quick"] is True
    row = content["checks"][0]
    assert set(row) == {"theorem", "statement", "group", "computed", "expected", "observed", "passed"}
    assert (row["theorem"], row["group"], row["expected"], row["observed"]) == ("2", "Q8", "1 4", "1 4")
    assert f"{len(content['checks'])} of {len(content['checks'])} checks passed" in out


def test_a_wrong_prediction_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the constants that the source prints, M/(8d) and M/(16d), ascent disagrees."""

    def printed(group: FiniteGroup, complex_weights: bool = False) -> torch.Tensor:
        parts = [group.order / ((8 if b.kind == "R" else 16) * b.dimension) for b in isotypic_blocks(group)[1:]]
        return torch.tensor(parts, dtype=torch.float64)

    monkeypatch.setattr(independent, "predicted_maxima", printed)
    code, out, _ = run(capsys, "--quick", "--theorem", "2", "--group", "S3")
    assert code == 1
    assert "FAILED" in out


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_wrong_number_of_flat_directions_fails(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S3 has the numbers 0 and 3."""
    monkeypatch.setattr(independent, "flat_directions", lambda group: torch.full((2,), number))
    code, out, _ = run(capsys, "--quick", "--theorem", "2", "--group", "S3")
    assert code == 1
    assert out.count("FAILED") == 1


@pytest.mark.parametrize(
    ("theorem", "checks", "name", "wrong"),
    [
        ("P1", lazy, "lazy_limit", lambda F, Y, ridge: (Y - Y.mean(dim=0)) @ (Y.mT @ F) / ridge),
        (
            "5",
            interactive,
            "spreading_maximizer",
            lambda p, partners, activation: torch.ones(12, dtype=torch.float64) / 12**0.5,
        ),
        ("7", interactive, "new_node_gradient", lambda f, F, Y, ridge: (Y - Y.mean(dim=0)) @ (Y.mT @ f) / ridge),
        ("7", interactive, "block_norms", lambda R, *sides: block_norms(R.roll(1, 0), *sides)),
        ("8", interactive, "shrink_factor", lambda new, found, nodes: 0.5),
        ("8", interactive, "orthogonal_maxima", lambda group: torch.full((3,), 1e9)),
        ("8", interactive, "orthogonal_maxima", lambda group: torch.ones(3)),
        (
            "8",
            interactive,
            "muon_collection_time",
            lambda p, shrink: shrink * interactive.independent_collection_time(p),
        ),
        ("depth", depth, "below_random_layer", lambda kernel, F: kernel @ F),
        ("depth", depth, "isometry", lambda A: torch.ones(())),
    ],
)
def test_wrong_formulas_fail(
    theorem: str,
    checks: ModuleType,
    name: str,
    wrong: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checks, name, wrong)
    assert run(capsys, "--quick", "--theorem", theorem)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--theorem", "9"), "Unknown theorem (--theorem) '9'; known are 1, 2, 3, 4, 5, 6, 7, 8, P1, depth, irreps."),
        (("--group", "SL(2,3)"), "Unknown group (--group) 'SL(2,3)'; known are"),
        (("--theorem", "8", "--group", "S3"), "The checks of theorem 8 take no --group; those of"),
        (
            ("--theorem", "8", "--quick", "--json", "no/such/folder/file.json"),
            "no/such/folder/file.json cannot be written",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_groups_of_the_command_are_what_their_names_say() -> None:
    orders = {"Z7": 7, "Z8": 8, "Z2xZ4": 8, "S3": 6, "D5": 10, "Q8": 8, "A4": 12, "Dic3": 12, "F21": 21, "Z23": 23,
              "S4": 24, "SL23": 24, "A5": 60}  # fmt: skip
    assert {name: make().order for name, make in verify.GROUPS.items()} == orders
    assert not verify.GROUPS["F21"]().is_abelian
    # SL(2,3) and S4 have the same order, and only one of them a centre.
    assert [len(verify.GROUPS[name]().conjugacy_classes) for name in ("SL23", "S4")] == [7, 5]


def test_the_theory_page_names_what_there_is() -> None:
    """Every function, test file and option of the command that docs/theory.md points at exists."""
    root = Path(verify.__file__).parents[2]
    text = (root / "docs" / "theory.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:theory\.\w+|groups\.representations)(?:\.\w+)?)`", text)
    assert len(named) > 30
    for name in named:
        module, _, attribute = name.rpartition(".") if name.count(".") > 1 else (name, "", "")
        loaded = importlib.import_module(f"li2_lightning.{module}")
        assert not attribute or hasattr(loaded, attribute), name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (root / path).is_file(), path
    for theorem in re.findall(r"--theorem (\w+)", text):
        assert theorem in verify.THEOREMS
    for group in re.findall(r"--group (\w+)", text):
        assert group in verify.GROUPS
