"""report.png: one run at a glance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from li2_lightning.figures.features import draw_panels
from li2_lightning.files import read_npz, replacing
from li2_lightning.groups import FiniteGroup
from li2_lightning.metrics_file import read_metrics

# Okabe–Ito: told apart by colour-blind readers; line styles differ too, for grey prints.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STAGE_SHADES = {1: "#ffffff", 2: "#eef4fa", 3: "#fdf1e3"}


def draw_report(directory: Path) -> Path:
    """Draw ``report.png`` into a run directory from its files, and return its path.

    Four panels over the step: accuracy and loss; G_F; energy and purity; updates. Stages are shaded and named. Below
    them the learned features, where the run has kept them.
    """
    metrics = read_metrics(directory / "metrics.csv")
    config = OmegaConf.load(directory / "config.yaml")
    stages_file = directory / "stages.json"
    stages = json.loads(stages_file.read_text(encoding="utf-8")) if stages_file.exists() else None

    learned = directory / "features" / "last.npz"
    heights = [8.0, 4.2] if learned.exists() else [8.0]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    # Figures of their own, since a colour bar would narrow the panels above it.
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    learning, gradient, features, updates = parts[0].subplots(2, 2, sharex=True).ravel()
    if learned.exists():
        arrays = read_npz(learned, ("W", "table", "step"))
        left, right = parts[1].subplots(1, 2)
        draw_panels(left, right, arrays["W"], FiniteGroup("", arrays["table"]), int(arrays["step"]))
    parts[0].suptitle(_title(config, stages), fontsize=11)
    _draw_learning(learning, metrics)
    _draw_gradient(gradient, metrics)
    _draw_features(features, metrics)
    _draw_updates(updates, metrics)
    last = int(metrics["step"].iloc[-1])
    for axes in (learning, gradient, features, updates):
        axes.set_xlim(0, max(last, 1))
        axes.grid(alpha=0.25)
        _shade(axes, stages, last)
    for axes in (features, updates):
        axes.set_xlabel("step (optimizer updates)")
    path = directory / "report.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _title(config: Any, stages: dict[str, Any] | None) -> str:
    task = config.task
    size = task.order or task.factors or task.degree or task.expression or task.path or ""
    text = (
        f"{task.name} {size}   K={config.network.width}, σ={config.network.activation}, loss {config.loss}, "
        f"{config.optimizer.hidden.name} on W, {config.optimizer.output.name} on V, "
        f"lr {config.optimizer.lr}, weight decay {config.optimizer.weight_decay}, seed {config.seed}"
    )
    if stages is None:
        return text
    legend = "shaded: stages I lazy, II independent, III interactive"
    return f"{text}\n{legend}" + ("; stalled, G_F lost both alignments" if stages["stalled"] else "")


def _draw_learning(axes: Axes, metrics: pd.DataFrame) -> None:
    axes.set_title("Accuracy and loss", loc="left", fontsize=10, pad=26)
    right = axes.twinx()
    _line(axes, metrics, "train/accuracy", BLUE, "train accuracy")
    _line(axes, metrics, "test/accuracy", ORANGE, "test accuracy")
    _line(right, metrics, "train/loss", BLUE, "train loss (right)", ":")
    _line(right, metrics, "test/loss", ORANGE, "test loss (right)", ":")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("accuracy")
    right.set_ylabel("loss")
    right.set_yscale("log")
    _legend(axes, right)


def _draw_gradient(axes: Axes, metrics: pd.DataFrame) -> None:
    axes.set_title("Backpropagated gradient G_F", loc="left", fontsize=10, pad=26)
    right = axes.twinx()
    _line(axes, metrics, "gradient/norm", GREY, "‖G_F‖")
    _line(right, metrics, "gradient/independence", BLUE, "independence (right)", "--")
    _line(right, metrics, "gradient/coupling", ORANGE, "coupling (right)", "-.")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("‖G_F‖")
    right.set_ylim(-1.02, 1.02)
    right.set_ylabel("cosine")
    _legend(axes, right)


def _draw_features(axes: Axes, metrics: pd.DataFrame) -> None:
    axes.set_title("Features", loc="left", fontsize=10, pad=26)
    _line(axes, metrics, "energy/mean", GREEN, "mean energy E")
    _line(axes, metrics, "energy/max", GREEN, "max energy E", ":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("energy at unit norm")
    right = axes.twinx()
    if "features/purity" in metrics:
        _line(right, metrics, "features/purity", PURPLE, "purity (right)", "--")
        right.set_ylabel("purity")
    right.set_ylim(0, 1.02)
    if "features/purity" not in metrics:
        right.set_yticks([])
    _legend(axes, right)


def _draw_updates(axes: Axes, metrics: pd.DataFrame) -> None:
    axes.set_title("Relative updates ‖X_t − X_{t−1}‖/‖X_{t−1}‖", loc="left", fontsize=10, pad=26)
    _line(axes, metrics, "update/hidden", BLUE, "hidden (W)")
    _line(axes, metrics, "update/output", ORANGE, "output (V)", "--")
    axes.set_yscale("log")
    axes.set_ylabel("relative update")
    _legend(axes)


def _line(axes: Axes, metrics: pd.DataFrame, column: str, color: str, label: str, style: str = "-") -> None:
    if column in metrics:
        known = metrics[["step", column]].dropna()
        if len(known):
            axes.plot(known["step"], known[column], style, color=color, label=label, linewidth=1.6)


def _legend(*panels: Axes) -> None:
    """One legend for a panel and its right-hand axis, between the title and the frame, where no curve is."""
    entries = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if entries:
        handles, labels = zip(*entries, strict=True)
        panels[0].legend(handles, labels, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1.04),
                         frameon=False, borderaxespad=0, columnspacing=1.2, handlelength=2.4)  # fmt: skip


def _shade(axes: Axes, stages: dict[str, Any] | None, last: int) -> None:
    if stages is None:
        return
    starts = [0, *(event["step"] for event in stages["events"])]
    for stage, (start, end) in enumerate(zip(starts, [*starts[1:], last], strict=True), start=1):
        axes.axvspan(start, end, color=STAGE_SHADES[stage], zorder=0, linewidth=0)
        if start:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=(0, (4, 4)))
        if end > start:
            # Just above the frame, so that no curve is covered.
            axes.annotate(stage * "I", ((start + end) / 2, 1.0), xycoords=("data", "axes fraction"),
                          xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8,
                          color=GREY, annotation_clip=False)  # fmt: skip
