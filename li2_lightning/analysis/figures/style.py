"""Shared by all pictures: colours, line styles and markers, bands over seeds, shaded stages, and saving."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogFormatter
from PIL import Image

from li2_lightning.config.identity import role_value
from li2_lightning.files import replacing
from li2_lightning.runs.load import Run, task_name

# Okabe–Ito colours, which colour-blind readers can distinguish; line styles and markers serve grey prints.
BLUE, ORANGE, GREEN, PURPLE, GREY, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY)
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
STAGE_SHADES = {1: "#ffffff", 2: "#eef4fa", 3: "#fdf1e3"}
Rows = TypeVar("Rows", pd.Series, pd.DataFrame)
SUFFIXES = (".png", ".pdf", ".svg")
DPI = 120
MOST_POINTS = 2000
"""A longer curve is drawn through this many evenly spaced rows, the last included."""

BAND = "line: median over seeds, band: lowest to highest seed"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def fixed_figure(width: float, height: float) -> Figure:
    """As `new_figure`, with axes only where `add_panel` puts them, which spares a run the search for a layout."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes whose frame has this place and size in inches, from the lower left corner of the figure."""
    whole_width, whole_height = figure.get_size_inches()
    place = left / whole_width, bottom / whole_height, width / whole_width, height / whole_height
    return figure.add_axes(place)


def write_png(figure: Figure, path: Path) -> Path:
    """Write a `fixed_figure` as it is, in a fraction of the time of `save`; returns ``path``."""
    figure.set_dpi(DPI)
    canvas: Any = figure.canvas
    canvas.draw()
    with replacing(path) as temporary:
        pixels(canvas).save(temporary, "png", compress_level=2)
    return path


def pixels(canvas: Any) -> Image.Image:
    """What was drawn on an Agg canvas, without its opacity, which is the same everywhere and a tenth of a file."""
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the suffix and return ``path``; equal figures give equal bytes."""
    kind = path.suffix.removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    if figure.get_layout_engine() is not None:
        # Each drawing would move the panels a little; with one layout all formats look alike.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    # Text as text, not as outlines, makes an SVG smaller and searchable.
    with (
        replacing(path) as temporary,
        matplotlib.rc_context({"svg.hashsalt": "li2_lightning", "svg.fonttype": "none"}),
    ):
        # With 256 colours a colour map would show steps.
        if kind == "png" and not figure.findobj(lambda artist: isinstance(artist, (AxesImage, QuadMesh))):
            _save_with_palette(figure, temporary)
        else:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=undated)
    return path


def _save_with_palette(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours: enough for curves, and a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 0})
    image = Image.open(buffer).convert("RGB")
    # One round of k-means reproduces the colours of filled areas exactly.
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    image.save(path, format="png")


def curve_style(index: int, count: int) -> dict[str, Any]:
    """Colour and line style of curve ``index`` of ``count``: Okabe–Ito for up to six, a uniform map for more."""
    if count <= len(COLORS):
        color: Any = COLORS[index]
    else:
        color = matplotlib.colormaps["cividis"](0.92 * index / (count - 1))
    return {"color": color, "linestyle": LINES[index % len(LINES)]}


def curve_styles(labels: Collection[str]) -> dict[str, dict[str, Any]]:
    """`curve_style` of each label."""
    return {label: curve_style(index, len(labels)) for index, label in enumerate(labels)}


def span(steps: Sequence[int]) -> str:
    """The first and the last of some steps as text, or the step that they all are."""
    return f"{min(steps)}–{max(steps)}" if min(steps) < max(steps) else f"{min(steps)}"


def last_step(runs: Iterable[Run]) -> int:
    """The largest step that a run has a row of; 0 without rows."""
    return max((int(run.metrics.index[-1]) for run in runs if len(run.metrics)), default=0)


def seed_band(runs: Sequence[Run], column: str) -> pd.DataFrame:
    """``median``, ``low`` and ``high`` of a column over the runs, by step.

    A run that stopped at its target test accuracy keeps its last value. Any other run counts only at steps that it has.
    """
    last = last_step(runs)
    series = []
    for run in runs:
        if column not in run.metrics:
            continue
        values = run.metrics[column].dropna()
        if len(values) and stopped_early(run) and values.index[-1] < last:
            values = pd.concat([values, pd.Series([values.iloc[-1]], index=[last])])
        series.append(values)
    if not series:
        return pd.DataFrame({"median": [], "low": [], "high": []})
    table = pd.concat(series, axis=1).sort_index()
    stopped = [stopped_early(run) for run in runs if column in run.metrics]
    table.loc[:, stopped] = table.loc[:, stopped].ffill()
    band = pd.DataFrame({"median": table.median(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)})
    return thin(band, MOST_POINTS)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over seeds, and the 95 % interval of it by bootstrap (2,000 resamples)."""
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(sample), size=(2000, len(sample)))
    low, high = np.quantile(sample[picks].mean(axis=1), (0.025, 0.975))
    return float(sample.mean()), float(low), float(high)


def share_interval(successes: float, trials: int) -> tuple[float, float, float]:
    """The share of successes, and the 95 % interval of it for a binomial distribution (Wilson)."""
    share, z = successes / trials, 1.96
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials**2)) ** 0.5
    return share, max(0.0, middle - reach), min(1.0, middle + reach)


def bar_lengths(value: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How far an interval reaches below and above its value, 2×…; never less than 0.

    By rounding, the end of an interval may be beyond its value, as at a share of 1 or where all draws agree.
    """
    return np.maximum(0, [np.subtract(value, low), np.subtract(high, value)])


def draw_intervals(
    axes: Axes, x: Sequence[float], intervals: Sequence[tuple[float, float, float]], **style: Any
) -> None:
    """Values over x, with a bar from the lower to the upper end of each interval."""
    middle, low, high = np.array(intervals).T
    axes.errorbar(x, middle, yerr=bar_lengths(middle, low, high), capsize=2.5, linewidth=1.6, markersize=5, **style)


def thin(rows: Rows, most: int) -> Rows:
    """At most ``most`` evenly spaced rows, the first and the last included."""
    return rows.iloc[evenly(len(rows), most)]


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of the places 0 … count − 1, evenly spaced, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def stopped_early(run: Run) -> bool:
    """Whether ``stop_at_test_accuracy`` ended the run."""
    target = run.config.get("stop_at_test_accuracy")
    return run.finished and target is not None and run.first_step("test/accuracy", target) is not None


def draw_band(axes: Axes, runs: Sequence[Run], column: str, label: str, **style: Any) -> bool:
    """Draw the median of a column over the step with its band; return whether there was any value."""
    band = seed_band(runs, column)
    if band.empty:
        return False
    axes.plot(band.index, band["median"], label=label, **{"linewidth": 1.6, **style})
    if len(runs) > 1:
        axes.fill_between(band.index.to_numpy(), band["low"], band["high"], color=style["color"], alpha=0.2, lw=0)
    return True


class PlainLogFormatter(LogFormatter):
    """Labels the same ticks as `LogFormatter`, but as 0.6 instead of 6e−01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic if any value is above zero."""
    if any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(PlainLogFormatter())
        axes.tick_params(axis="y", which="minor", labelsize=8)


def transition_steps(runs: Sequence[Run], stage: int) -> list[int]:
    """The steps at which runs entered a stage; a run that did not enter it is left out."""
    return [e["step"] for run in runs if run.stages for e in run.stages["events"] if e["to"] == stage]


def shade_stages(axes: Axes, runs: Sequence[Run], last: int) -> None:
    """Shade the stages and name them above the frame; a stage begins when half of the runs have entered it."""
    followed = [run for run in runs if run.stages is not None]
    if not followed:
        return
    starts = [0]
    for stage in (2, 3):
        steps = transition_steps(followed, stage)
        median = np.median([*steps, *[np.inf] * (len(followed) - len(steps))])
        if np.isfinite(median):
            starts.append(int(median))
    for stage, (start, end) in enumerate(zip(starts, [*starts[1:], last], strict=True), start=1):
        axes.axvspan(start, end, color=STAGE_SHADES[stage], zorder=0, linewidth=0)
        if start:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
        if end > start:
            # Just above the frame, so that no curve is covered.
            axes.annotate(stage * "I", ((start + end) / 2, 1.0), xycoords=("data", "axes fraction"),
                          xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8,
                          color=GREY, annotation_clip=False)  # fmt: skip


def legend_above(*panels: Axes) -> None:
    """Draw one legend for a panel and its right-hand axis, between title and frame, where it hides no curve."""
    entries = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if entries:
        handles, labels = zip(*entries, strict=True)
        panels[0].legend(handles, labels, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 1.04),
                         frameon=False, borderaxespad=0, columnspacing=1.2, handlelength=2.4)  # fmt: skip


def headline(runs: Sequence[Run]) -> str:
    """Task, network, optimizers and seeds of one group of runs, in a line."""
    run = runs[0]
    roles = ", ".join(
        f"{run[f'optimizer.{role}.name']} on {letter}" for role, letter in (("hidden", "W"), ("output", "V"))
    )
    seeds = f"seed {run.seeds}" if len(runs) == 1 else f"{len(runs)} seeds"
    lr, decay = (
        " / ".join(dict.fromkeys(str(role_value(run["optimizer"], role, key)) for role in ("hidden", "output")))
        for key in ("lr", "weight_decay")
    )
    return (
        f"{task_name(run)}   K={run['network.width']}, σ={run['network.activation']}, loss {run['loss']}, {roles}, "
        f"lr {lr}, weight decay {decay}, {seeds}"
    )
