"""A run, or a sweep, as one HTML file that needs no network.

    li2 report RUN
    li2 report FOLDER [--each] [-o FILE]

The report of a run shows its outcome, the stages with their evidence, an interactive plot of every column, the learned
features, config and environment. The report of a folder shows a table of its runs with links, their curves, and, if the
runs differ in their training fraction, the phase diagram; --each also writes the report of every run. FILE defaults to
report.html in the directory.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from li2_lightning.analysis.block_maps import LOGITS, BlockMap, known_group, legend, logit_maps, missing_maps
from li2_lightning.analysis.charts import CHARTS, MISSING_CHARTS, OTHER_TITLES, PROGRESS_CHARTS, Charts
from li2_lightning.analysis.collect import outcome, report_unfinished
from li2_lightning.analysis.figures.features import features_figure, learned_nodes
from li2_lightning.analysis.figures.phase_diagram import FRACTION_KEYS, by_fraction, by_task, final_accuracy
from li2_lightning.analysis.figures.style import COLORS, DPI, GREY, evenly, headline, thin
from li2_lightning.analysis.motion import Film
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs, optional_module
from li2_lightning.errors import InputError
from li2_lightning.files import replacing
from li2_lightning.runs.load import Run, describe, differing_settings, find_runs, groups_of_seeds
from li2_lightning.runs.snapshots import snapshots
from li2_lightning.runs.terminal import STAGE_NAMES, verdict

SUFFIXES = (".html",)
MOST_ROWS = 2000
"""A longer curve is drawn through this many evenly spaced rows, the last included."""
MOST_ROWS_OF_MANY = 300
"""As `MOST_ROWS`, for plots of several runs."""
MOST_FRAMES = 30
"""A longer film is thinned to this many of its frames, the last included."""
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")


def write_run_report(run: Run, path: Path | None = None) -> Path:
    """Write the report of one run and return its path, by default ``report.html`` in the directory of the run.

    Raises:
        InputError: the extra ``report`` is not installed, or the run has no rows yet.
    """
    if run.metrics.empty:
        raise InputError(f"{run.directory} has no rows yet; there is nothing to report.")
    thinned = f" Curves of more than {MOST_ROWS} rows are thinned." if len(run.metrics) > MOST_ROWS else ""
    page = {
        "title": f"{run['name'] or run.directory.name}",
        "subtitle": headline([run]),
        "verdict": verdict(run.summary)
        if run.summary
        else f"It has not come to its end: row {run.metrics.index[-1]} of {run['max_steps']}.",
        "tables": [*_summary_tables(run), *_stage_tables(run)],
        "picture": _features_picture(run),
        "film": _film(run),
        "settings": _settings(run),
    }
    note = (
        f"Drag to zoom, which zooms all of them; double-click to go back. Dashed: where a stage was declared.{thinned}"
    )
    sections = [
        _section("Curves", note, [*_charts(run, CHARTS), *_other_charts(run)]),
        _section(
            "Missing features",
            f"By isotypic block of the group, on the training rows (callback missing). {legend(run)}",
            [*_charts(run, MISSING_CHARTS), *map(_map, missing_maps(run).values())],
        ),
        _section(
            "Progress measures",
            f"Columns of the callbacks circuits and spectra; docs/columns.md has their formulas. {legend(run)}",
            [*_charts(run, PROGRESS_CHARTS), *map(_map, logit_maps(run))],
        ),
    ]
    return _write(path or run.directory / "report.html", page, sections)


def write_sweep_report(runs: Sequence[Run], path: Path) -> Path:
    """Write the report of several runs and return its path.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    keys = differing_settings(runs)
    # Sorted by setting; the seeds of a setting follow each other.
    runs = [run for group in groups_of_seeds(runs).values() for run in group]
    figures = {"curves": _runs_chart(runs, "test/accuracy", "Test accuracy, a line for each run", height=420)}
    ended = [run for run in runs if run.summary is not None and "test/accuracy" in run.metrics]
    if len(ended) > 1 and set(differing_settings(ended)) & set(FRACTION_KEYS):
        for index, (name, members) in enumerate(by_task(ended).items()):
            figures[f"phase-{index}"] = _phase_chart(name, members, path)
    counts = pd.Series([run.status for run in runs]).value_counts()
    generalized = sum(run.first_step("test/accuracy", 0.99) is not None for run in runs)
    page = {
        "title": os.path.commonpath([run.directory.absolute() for run in runs]).rpartition("/")[2] or "Runs",
        "subtitle": "They differ in " + ", ".join([*keys, "seed"]) if keys else "They differ in their seeds.",
        "verdict": f"{len(runs)} runs: {', '.join(f'{count} {status}' for status, count in counts.items())}; "
        f"{generalized} reached test accuracy .99.",
        "tables": [_runs_table(runs, keys, path)],
    }
    title = "Curves and phase diagram" if len(figures) > 1 else "Curves"
    note = "Drag to zoom, double-click to go back; a click on a point of a single run opens its report."
    return _write(path, page, [Section(title, note, figures)])


def write_comparison(runs: Sequence[Run], table: Mapping[str, Any], path: Path) -> Path:
    """Write a page with a table and, for every column, one plot with the curves of all runs; return its path.

    Args:
        table: ``title``, ``head``, ``rows`` and ``notes``.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    names = {str(name): None for run in runs for name in run.metrics}
    known = [name for _, columns, _ in CHARTS for name in columns if name in names]
    ordered = [*known, *(name for name in names if name not in known)]
    figures = {f"chart-{index}": _runs_chart(runs, name, escape(name)) for index, name in enumerate(ordered)}
    page = {
        "title": "Comparison",
        "subtitle": f"{len(runs)} runs",
        "verdict": "They differ in " + (", ".join(differing_settings(runs)) or "their seeds") + ".",
        "tables": [table],
    }
    note = (
        "A line for each run, one style for the seeds of a setting. Drag to zoom, which zooms all of them. "
        f"Curves of more than {MOST_ROWS_OF_MANY} rows are thinned."
    )
    return _write(path, page, [Section("Curves", note, figures)])


class Section(NamedTuple):
    """Figures under a title, by the id of each; a section without figures is not shown."""

    title: str
    note: str
    figures: Mapping[str, Any]


def _section(title: str, note: str, charts: Sequence[Any]) -> Section:
    word = title.partition(" ")[0].lower()
    return Section(title, note, {f"{word}-{index}": chart for index, chart in enumerate(charts)})


def _write(path: Path, page: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    jinja2 = optional_module("jinja2", "report.html")
    plotly_js = optional_module("plotly.offline", "report.html").get_plotlyjs()
    resources = files("li2_lightning") / "resources"
    script = (resources / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    # Entities do not escape text inside a script element, but without "<" no text can end the element.
    data = json.dumps({name: json.loads(figure.to_json()) for name, figure in figures.items()}).replace("<", "\\u003c")
    sources = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly_js, script)]
    text = environment.from_string((resources / "report.html.jinja").read_text(encoding="utf-8")).render(
        **{"picture": None, "film": [], "settings": [], **page},
        sections=[section for section in sections if section.figures],
        figures=jinja2.utils.markupsafe.Markup(data),
        frames=jinja2.utils.markupsafe.Markup(json.dumps(page.get("film", []))),
        plotly=jinja2.utils.markupsafe.Markup(plotly_js),
        script=jinja2.utils.markupsafe.Markup(script),
        script_hashes=sources,
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _present(run: Run) -> list[str]:
    return [str(name) for name in run.metrics if run.metrics[name].notna().any()]


def _charts(run: Run, charts: Charts) -> list[Any]:
    """The charts of which the run has a column."""
    present = set(_present(run))
    found = [(title, [name for name in columns if name in present], log) for title, columns, log in charts]
    return [_chart(run, title, columns, log) for title, columns, log in found if columns]


def _other_charts(run: Run) -> list[Any]:
    """A chart for each first word of the columns that no other chart has."""
    named = {column for _, columns, _ in (*CHARTS, *MISSING_CHARTS, *PROGRESS_CHARTS) for column in columns}
    others: dict[str, list[str]] = {}
    for name in _present(run):
        if name not in named and not name.startswith(LOGITS):
            others.setdefault(name.partition("/")[0], []).append(name)
    return [_chart(run, OTHER_TITLES.get(word, escape(word)), columns, False) for word, columns in others.items()]


def _map(of: BlockMap) -> Any:
    """A heat map of steps × blocks; the colors go from 0 to the largest value."""
    chosen = evenly(len(of.steps), MOST_ROWS_OF_MANY)
    values = of.values[chosen].T
    heat = {"type": "heatmap", "x": of.steps[chosen], "y": [escape(label) for label in of.labels], "z": values,
            "zmin": 0, "zmax": float(np.nanmax(values, initial=1e-12)), "colorscale": "Viridis"}  # fmt: skip
    height = 180 + 12 * len(of.labels)
    return _figure(of.title, [heat], zoom="steps", height=height, yaxis_type="category", yaxis_autorange="reversed")


def _chart(run: Run, title: str, columns: Sequence[str], log: bool) -> Any:
    curves = []
    for index, name in enumerate(columns):
        values = thin(run.metrics[name].dropna(), MOST_ROWS)
        # The points show when a column that is measured rarely was measured.
        mode = "lines" if len(values) > 1 and len(values) > len(run.metrics) / 20 else "lines+markers"
        curves.append({"x": values.index.to_numpy(), "y": values.to_numpy(), "name": escape(name), "mode": mode,
                       "line": _line(index), "showlegend": True})  # fmt: skip
    lines: dict[float, str] = {step: stage * "I" for stage, step in run.entered.items()}
    return _figure(title, curves, log=log, lines=lines, zoom="steps", hovermode="x unified")


def _runs_chart(runs: Sequence[Run], column: str, title: str, **layout: Any) -> Any:
    """A column of several runs: a line for each run, one style for the seeds of a setting."""
    groups = groups_of_seeds(runs)
    curves = []
    for index, (label, group) in enumerate(groups.items()):
        members = [run for run in group if column in run.metrics]
        for count, run in enumerate(members):
            values = thin(run.metrics[column].dropna(), MOST_ROWS_OF_MANY)
            curves.append({"x": values.index.to_numpy(), "y": values.to_numpy(), "mode": "lines", "line": _line(index),
                           "name": escape(label) or escape(column), "legendgroup": str(index),
                           "showlegend": count == 0, "hovertext": escape(f"{label} seed {run.seeds}")})  # fmt: skip
    log = column in {name for _, names, log in CHARTS if log for name in names}
    return _figure(title, curves, log=log, zoom="steps", showlegend=len(groups) <= 20, **layout)


def _phase_chart(name: str, runs: Sequence[Run], path: Path) -> Any:
    curves = []
    keys = differing_settings(runs, ignore=(*FRACTION_KEYS, "task"))
    for index, (label, group) in enumerate(groups_of_seeds(runs, keys).items()):
        fractions = by_fraction(group)
        medians = [float(np.median([final_accuracy(run) for run in members])) for members in fractions.values()]
        line = _line(index)
        curves += [
            {"x": [fraction for _, fraction in fractions], "y": medians, "mode": "lines", "line": line,
             "name": f"{escape(label)} median".strip(), "showlegend": True},
            {"x": [run.train_fraction for run in group], "y": [final_accuracy(run) for run in group],
             "mode": "markers", "marker": {"color": line["color"], "size": 8, "opacity": 0.7}, "name": "a run",
             "showlegend": index == 0, "customdata": [_link(run, path) for run in group],
             "hovertext": [f"seed {run.seeds}" for run in group]},
        ]  # fmt: skip
    predicted = runs[0].task.predicted_fraction
    lines = {} if predicted is None else {predicted: "predicted"}
    title = f"{escape(name)}: test accuracy at the end"
    return _figure(title, curves, lines=lines, across="training fraction n/N", yaxis_range=[-0.03, 1.05])


def _figure(
    title: str,
    curves: Sequence[Mapping[str, Any]],
    *,
    log: bool = False,
    lines: Mapping[float, str] | None = None,
    across: str = "",
    zoom: str | None = None,
    **layout: Any,
) -> Any:
    """A Plotly figure of curves.

    Args:
        log: make the y axis logarithmic if any value is above zero.
        lines: position of each vertical line, and the text above it.
        across: title of the x axis.
        zoom: name of a set of figures that zoom together.
    """
    axis = {"gridcolor": "#e6eaee", "zerolinecolor": "#d0d7de", "ticks": "", "automargin": True}
    positive = log and any((np.asarray(curve["y"], dtype=float) > 0).any() for curve in curves)
    scale = {"type": "log", "exponentformat": "power", "nticks": 6} if positive else {"rangemode": "tozero"}
    lines = lines or {}
    everything = {
        "template": "none",
        "height": 300,
        "margin": {"l": 56, "r": 16, "t": 48, "b": 36},
        "title": {"text": title, "font": {"size": 14}, "x": 0.01, "xanchor": "left", "y": 0.96, "yanchor": "top"},
        "legend": {"orientation": "h", "y": -0.24 if across else -0.14, "yanchor": "top", "x": 0},
        "meta": zoom,
        "hovermode": "closest",
        "xaxis": {**axis, "title": {"text": across, "standoff": 6, "font": {"size": 12}}},
        "yaxis": {**axis, **scale},
        "shapes": [{"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"color": GREY, "width": 1, "dash": "dash"}} for x in lines],
        "annotations": [{"x": x, "yref": "paper", "y": 1, "yanchor": "bottom", "text": text, "showarrow": False,
                         "font": {"size": 11, "color": GREY}} for x, text in lines.items()],
    }  # fmt: skip
    plotly = optional_module("plotly.graph_objects", "report.html")
    figure = plotly.Figure([{"type": "scatter", **curve} for curve in curves], everything)
    return figure.update_layout(**layout) if layout else figure


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "dash": DASHES[(index + index // len(COLORS)) % len(DASHES)],
        "width": 1.8,
    }


def _summary_tables(run: Run) -> list[dict[str, Any]]:
    found = outcome(run)
    levels = [name.rpartition("/")[2] for name in found if name.startswith("first_step/train/")]
    rows = []
    for split in ("train", "test"):
        reached = [found[f"first_step/{split}/{level}"] for level in levels]
        final = [_number(found.get(f"final/{split}/{what}")) for what in ("accuracy", "loss")]
        rows.append([split, *("never" if step is None else step for step in reached), *final])
    head = ["accuracy reached at step", *levels, "accuracy at the end", "loss at the end"]
    notes = []
    if found["train_fraction"] is not None:
        predicted = found["predicted_fraction"]
        boundary = f"; test accuracy is predicted to jump near {predicted:.4f}" if predicted is not None else ""
        notes.append(f"Training fraction {found['train_fraction']:.4f}{boundary}.")
    if run.summary:
        speed = run.summary["steps_per_second"]
        notes.append(f"{run.summary['wall_time_s']:.1f} s{f', {speed:g} steps a second' if speed else ''}.")
    return [{"title": "", "head": head, "rows": rows, "notes": notes}]


def _stage_tables(run: Run) -> list[dict[str, Any]]:
    if run.stages is None:
        return []
    rows = [
        [
            f"{event['from'] * 'I'} → {STAGE_NAMES[event['to']]}",
            event["step"],
            event["lag"],
            ", ".join(f"{name} {value:.3g}" for name, value in event["evidence"].items()),
            event["caveat"] or "none",
        ]
        for event in run.stages["events"]
    ]
    notes = ["Lag: rows between the first that agreed and the declaration."] if rows else []
    if run.stages["stalled"]:
        notes.append("Stalled in stage II: G_F lost both alignments, and no stage III follows.")
    elif not rows:
        notes.append("No stage transition: it is in stage I.")
    head = ["transition", "step", "lag", "evidence", "caveat"] if rows else []
    return [{"title": "Stages", "head": head, "rows": rows, "notes": notes}]


def _features_picture(run: Run) -> str | None:
    learned = learned_nodes(run)
    if learned is None:
        return None
    buffer = io.BytesIO()
    features_figure(*learned).savefig(buffer, format="png", dpi=DPI)
    return base64.b64encode(buffer.getvalue()).decode()


def _film(run: Run) -> list[dict[str, Any]]:
    """The frames of the run's film with their steps, as data URLs; none for a run without snapshots."""
    if known_group(run) is None or not snapshots(run.directory):
        return []
    film, frames = Film(run, MOST_FRAMES), []
    for step, frame in zip(film.steps, film.frames(), strict=True):
        buffer = io.BytesIO()
        frame.save(buffer, "WEBP", quality=75, method=2)
        frames.append({"step": step, "src": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"})
    return frames


def _settings(run: Run) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[str, str]]] = {"run": [("directory", str(run.directory)), ("status", run.status)]}
    for key, value in run.settings.items():
        section, _, name = key.partition(".")
        groups.setdefault(section if name else "run", []).append((name or key, _text(value)))
    if run.summary:
        groups["environment"] = [(name, str(version)) for name, version in run.summary["versions"].items()]
        groups["environment"].append(("config hash", str(run.summary["config_hash"])))
    return [{"title": title, "rows": rows} for title, rows in groups.items()]


def _runs_table(runs: Sequence[Run], keys: Sequence[str], path: Path) -> dict[str, Any]:
    rows = []
    for run in runs:
        test = [run.first_step("test/accuracy", level) for level in (0.5, 0.9, 0.99)]
        stalled = " (stalled)" if run.stages and run.stages["stalled"] else ""
        rows.append([
            {"href": _link(run, path), "text": describe(run, keys) or str(run["name"] or run.directory.name)},
            run.seeds,
            run.status,
            *("never" if step is None else step for step in test),
            _number(run.last("test/accuracy")),
            f"{run.entered.get(2, '–')} / {run.entered.get(3, '–')}{stalled}",
            _number((run.summary or {}).get("wall_time_s")),
        ])  # fmt: skip
    head = ["run", "seed", "status", "test .5 at", ".9 at", ".99 at", "at the end", "II / III at", "seconds"]
    return {"title": "Runs", "head": head, "rows": rows, "notes": []}


def _link(run: Run, path: Path) -> str:
    """The run's report.html, else report.png, else its folder, as a URL relative to the page ``path``."""
    there = next((name for name in ("report.html", "report.png") if (run.directory / name).exists()), "")
    # Without "./", a browser would read a folder named "http:" as a scheme.
    return "./" + quote(os.path.relpath(run.directory / there, path.parent))


def _number(value: Any) -> Any:
    return "–" if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def _text(value: Any) -> str:
    return "–" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 report``."""
    add_directories(parser)
    parser.add_argument("--each", action="store_true", help="of a sweep, write the reports of its runs, too")
    add_outputs(parser, SUFFIXES, required=False)
    given = parser.parse_args(arguments)

    runs = find_runs(given.directories)
    only = given.directories[0]
    outputs = given.output or [only / "report.html"]
    check_outputs(outputs, SUFFIXES)
    if len(runs) == 1 and runs[0].directory == only:
        for path in outputs:
            print(write_run_report(runs[0], path))
        return
    report_unfinished(runs)
    if len(given.directories) > 1 and not given.output:
        raise InputError("Several directories have no place of their own for the report; say -o FILE.html.")
    if given.each:
        for run in runs:
            if not run.metrics.empty:
                print(write_run_report(run))
    for path in outputs:
        print(write_sweep_report(runs, path))
