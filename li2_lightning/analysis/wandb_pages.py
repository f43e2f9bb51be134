"""Pages on W&B, built from code: a view of the workspace, and a report for a sweep.

    li2 wandb-view                   the view "Li2" of a project: charts in the order in which one reads a run
    li2 wandb-report outputs/NAME    a report with the same charts for the runs of a sweep, and a table of outcomes

Runs that differ in their seed alone are one line, by ``config_hash`` in the config of the W&B run. ``--dry-run`` prints
what would be created, and needs neither an account nor a network connection.
"""

from __future__ import annotations

import os
import statistics
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from li2_lightning.analysis.charts import MISSING_CHARTS, PROGRESS_CHARTS
from li2_lightning.cli.commands import optional_module
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, differing_settings, find_runs, groups_of_seeds
from li2_lightning.runs.loggers import PROJECT
from li2_lightning.runs.wandb import has_credentials


class Chart(NamedTuple):
    """One chart over ``step``.

    Attributes:
        title: its heading.
        columns: columns of metrics.csv, a line each.
        log: whether the vertical axis is logarithmic.
    """

    title: str
    columns: tuple[str, ...]
    log: bool = False


SECTIONS = {
    "Outcome": (
        Chart("Accuracy", ("train/accuracy", "test/accuracy")),
        Chart("Loss", ("train/loss", "test/loss"), log=True),
        Chart("Stage", ("stage/index",)),
    ),
    "G_F": (
        Chart("Norm of G_F", ("gradient/norm",), log=True),
        Chart("Each node on its own, or all together", ("gradient/independence", "gradient/coupling")),
        Chart("Residual and readout", ("gradient/residual_alignment", "gradient/readout_alignment")),
        Chart("Ridge equilibrium of the readout", ("gradient/readout_equilibrium",)),
        Chart("Effective ridge", ("gradient/effective_ridge",), log=True),
        Chart("Coupling between pairs of nodes", ("gradient/node_coupling",)),
    ),
    "Energy and features": (
        Chart("Energy", ("energy/mean", "energy/max"), log=True),
        Chart("Energy over the best", ("energy/relative",)),
        Chart("Purity", ("features/purity",)),
        Chart("Blocks that are covered", ("features/coverage",)),
        Chart("Distance of the Gram matrix from a diagonal one", ("features/gram_offdiagonal",)),
        Chart("Distance of the kernel from aI + b", ("features/kernel_distance",)),
    ),
    "Interaction": (
        Chart("Share of similar pairs that repel", ("interaction/repelled_share",)),
        Chart("Strength of the repulsion", ("interaction/repulsion",)),
    ),
    "Updates": (
        Chart("Size of an update", ("update/hidden", "update/output"), log=True),
        Chart("Turn of an update", ("update/hidden_cosine_distance", "update/output_cosine_distance"), log=True),
        Chart("Eigengap of the last 20 updates", ("update/eigengap",), log=True),
        Chart("Norm of the weights", ("weights/hidden_norm", "weights/output_norm"), log=True),
        Chart("Learning rate", ("optimizer/hidden_lr", "optimizer/output_lr"), log=True),
    ),
}
"""Sections in the order in which one reads a run; every column that is on by default is in one chart."""

MORE_SECTIONS = {
    "Missing features": tuple(Chart(*chart) for chart in MISSING_CHARTS),
    "Progress measures": tuple(Chart(*chart) for chart in PROGRESS_CHARTS),
}
"""Sections of callbacks that are off by default: closed in a view, and in a report where its runs have the columns."""

PICTURES = ("features", "report")
TABLE = "stage/transitions"
HASH = "config_hash"


def _panels(wr: Any, section: str, charts: Sequence[Chart]) -> list[Any]:
    """The charts of a section, three in a row; the first section also has pictures and the table of transitions."""
    panels = [
        wr.LinePlot(title=chart.title, x="step", y=list(chart.columns), log_y=chart.log or None,
                    groupby_aggfunc="median", groupby_rangefunc="minmax")
        for chart in charts
    ]  # fmt: skip
    if section == "Outcome":
        panels += [wr.MediaBrowser(title=name, media_keys=[name]) for name in PICTURES]
        panels.append(wr.WeavePanelSummaryTable(table_name=TABLE))
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (index % 3), y=6 * (index // 3), w=8, h=6)
    return panels


def build_view(entity: str, project: str, name: str) -> Any:
    """The ``wandb_workspaces.workspaces.Workspace`` of a project."""
    ws, wr = _library()
    sections = [
        ws.Section(name=section, panels=_panels(wr, section, charts), is_open=section in SECTIONS)
        for section, charts in (SECTIONS | MORE_SECTIONS).items()
    ]
    expr = optional_module("wandb_workspaces.expr", "li2 wandb-view", "wandb")
    columns = ["run:displayName", "summary:test/accuracy", "summary:train/accuracy", "summary:stage/index"]
    runs = ws.RunsetSettings(groupby=[expr.Config(HASH)], pinned_columns=columns)
    settings = ws.WorkspaceSettings(x_axis="step", max_runs=50)
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections, settings=settings, runset_settings=runs
    )


def build_report(runs: Sequence[Run], entity: str, project: str, title: str) -> Any:
    """The ``wandb_workspaces.reports.v2.Report`` of some runs, which W&B finds by their hashes."""
    _, wr = _library()
    hashes = sorted({_hash(run) for run in runs})
    filters = f"Config('{HASH}') in {hashes!r}"
    differing = differing_settings(runs)
    blocks: list[Any] = [wr.P(f"{len(runs)} runs of {len(hashes)} settings. Seeds are a median with their range.")]
    blocks += [wr.H1("Outcome of each setting"), wr.MarkdownBlock(outcomes(runs))]
    logged = {name for run in runs for name in run.metrics}
    more = {
        section: charts
        for section, charts in MORE_SECTIONS.items()
        if any(logged.intersection(chart.columns) for chart in charts)
    }
    for section, charts in (SECTIONS | more).items():
        panels = _panels(wr, section, charts)
        if section == "Outcome" and differing:
            settings = [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in differing]
            outcome = wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("test/accuracy"))
            panels.append(wr.ParallelCoordinatesPlot(title="Settings and outcome", columns=[*settings, outcome],
                                                     layout=wr.Layout(x=0, y=18, w=24, h=8)))  # fmt: skip
        shown = wr.Runset(entity=entity, project=project, name=title, filters=filters, groupby=[f"config.{HASH}"])
        blocks += [wr.H1(section), wr.PanelGrid(runsets=[shown], panels=panels)]
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def outcomes(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each setting: its seeds, and medians over them."""
    lines = ["| setting | runs | generalized | median step of test accuracy .99 | median test accuracy at the end |",
             "|---|---|---|---|---|"]  # fmt: skip
    for label, group in groups_of_seeds(runs).items():
        steps = [step for run in group if (step := run.first_step("test/accuracy", 0.99)) is not None]
        final = [run.metrics["test/accuracy"].iloc[-1] for run in group if "test/accuracy" in run.metrics]
        middle = f"{statistics.median(steps):g}" if steps else "–"
        accuracy = f"{statistics.median(final):.3f}" if final else "–"
        lines.append(f"| {label or 'all'} | {len(group)} | {len(steps)} | {middle} | {accuracy} |")
    return "\n".join(lines)


def outline(page: Any) -> str:
    """What a view or a report contains, as text: its sections, with the panels and their columns, and its table."""
    lines: list[str] = []
    for part in getattr(page, "sections", None) or page.blocks:
        if (runs := getattr(part, "runsets", None)) is not None:
            lines += [f"  runs: {shown.filters}, grouped by {', '.join(shown.groupby)}" for shown in runs]
        lines += str(getattr(part, "name", None) or getattr(part, "text", "")).splitlines()
        lines += map(_line, getattr(part, "panels", ()))
    return "\n".join(lines)


def _line(panel: Any) -> str:
    """The kind, the title and the columns of one panel."""
    title = getattr(panel, "title", None) or panel.table_name
    columns = getattr(panel, "y", None) or [column.metric.name for column in getattr(panel, "columns", ())]
    scale = " (logarithmic)" if getattr(panel, "log_y", None) else ""
    return f"  {type(panel).__name__}: {title}{scale}{': ' if columns else ''}{', '.join(columns)}"


def _hash(run: Run) -> str:
    """The config hash; of a run that has not ended, the beginning of the name of its directory."""
    return str((run.summary or {}).get(HASH) or run.directory.resolve().name.partition("-s")[0])


def _library() -> tuple[Any, Any]:
    purpose = "A page on W&B"
    return (
        optional_module("wandb_workspaces.workspaces", purpose, "wandb"),
        optional_module("wandb_workspaces.reports.v2", purpose, "wandb"),
    )


def _place(parser: ArgumentParser) -> None:
    parser.add_argument("--entity", help="user or team; by default logger.entity of the runs, WANDB_ENTITY, or yours")
    parser.add_argument("--project", help=f"by default logger.project of the runs, WANDB_PROJECT, or {PROJECT}")
    parser.add_argument("--dry-run", action="store_true", help="print what would be created, and create nothing")


def _entity(given: str | None, dry_run: bool) -> str:
    """The entity, which W&B is asked for where nothing names it."""
    if (entity := given or os.environ.get("WANDB_ENTITY")) is not None:
        return entity
    if dry_run:
        return "your-entity"
    import wandb

    return str(wandb.Api().default_entity)


def _publish(page: Any, kind: str, dry_run: bool) -> None:
    if dry_run:
        print(f"{kind} for {page.entity}/{page.project}, which --dry-run does not create:")
        print(outline(page))
        return
    try:
        page.save()
    # The library raises errors of many kinds, among them bare ones, about what the server answers.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(".")
        raise InputError(f"W&B did not take the {kind}: {reason}.") from error
    print(page.url)


def _check_credentials(dry_run: bool) -> None:
    if not dry_run and not has_credentials():
        raise InputError(
            "A page on W&B needs credentials; run `wandb login`, or add --dry-run to see what it would be."
        )


def view(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Create the view of a project."""
    _place(parser)
    parser.add_argument("--name", default="Li2", help="name of the view")
    parsed = parser.parse_args(arguments)
    _check_credentials(parsed.dry_run)
    project = parsed.project or os.environ.get("WANDB_PROJECT") or PROJECT
    page = build_view(_entity(parsed.entity, parsed.dry_run), project, parsed.name)
    _publish(page, f"view {parsed.name!r}", parsed.dry_run)


def report(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Create the report of a sweep."""
    parser.add_argument("sweep", metavar="SWEEP", type=Path, help="the folder of a sweep, as in outputs/NAME")
    _place(parser)
    parser.add_argument("--title", help="by default the name of the folder")
    parsed = parser.parse_args(arguments)
    runs = find_runs([parsed.sweep])
    _check_credentials(parsed.dry_run)
    logged = runs[0].config.get("logger", {})
    entity = _entity(parsed.entity or logged.get("entity"), parsed.dry_run)
    project = parsed.project or logged.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT
    title = parsed.title or parsed.sweep.resolve().name
    _publish(build_report(runs, entity, project, title), f"report {title!r}", parsed.dry_run)
