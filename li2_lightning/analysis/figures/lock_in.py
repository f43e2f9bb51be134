"""The marker of feature lock-in: σ₂/σ₃ of the last 20 updates of W, the slope of its logarithm, and where it fires."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from li2_lightning.analysis.figures import FIGURES
from li2_lightning.analysis.figures.style import BAND, GREY, curve_style, last_step, logarithmic, new_figure, span
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, groups_of_seeds
from li2_lightning.theory.updates import FIRING_SLOPE, FIRST_STEP, SLOPE_OVER, eigengap_slope, lock_in_step

COLUMN, ACCURACY = "update/eigengap", "test/accuracy"


@FIGURES.register("lock_in")
def lock_in(runs: list[Run]) -> Figure:
    """Test accuracy, σ₂/σ₃ and the slope of its logarithm over the step, with a curve for each setting.

    A dot marks the step at which the marker of a seed fires; the legend gives the number of these seeds.

    Raises:
        InputError: no run has the column ``update/eigengap`` in a row at every step.
    """
    runs = [run for run in runs if COLUMN in run.metrics and _is_dense(run.metrics)]
    if not runs:
        raise InputError(f"No run has {COLUMN} in a row at every step; train with callbacks.updates.enabled=true.")
    groups = groups_of_seeds(runs)
    figure = new_figure(11.5, 4.4)
    panels = figure.subplots(1, 3)
    for index, (label, group) in enumerate(groups.items()):
        style = curve_style(index, len(groups))
        steps = [firing_step(run) for run in group]
        fired = [step for step in steps if step is not None]
        outcome = f"fires at {span(fired)}" if fired else "does not fire"
        tables = [_columns(run) for run in group]
        for axes, name in zip(panels, (ACCURACY, COLUMN, "slope"), strict=True):
            columns = pd.concat([table[name] for table in tables], axis=1)
            axes.plot(columns.index, columns.median(axis=1), linewidth=1.4, **style,
                      label=f"{label or 'all'} ({len(fired)} of {len(group)}: {outcome})")  # fmt: skip
            axes.fill_between(columns.index.to_numpy(), columns.min(axis=1), columns.max(axis=1),
                              color=style["color"], alpha=0.2, lw=0)  # fmt: skip
        for step, table in zip(steps, tables, strict=True):
            if step is None:
                continue
            for axes, name in zip(panels[1:], (COLUMN, "slope"), strict=True):
                axes.plot(step, table[name][step], "o", color=style["color"], markeredgecolor="black", zorder=5)
    panels[2].axhline(FIRING_SLOPE, color=GREY, linestyle=(0, (4, 4)), linewidth=1)
    panels[2].axvspan(0, FIRST_STEP, color=GREY, alpha=0.12, lw=0)
    panels[0].set_ylim(-0.02, 1.02)
    logarithmic(panels[1])
    for axes, name in zip(panels, (ACCURACY, "σ₂/σ₃ (update/eigengap)", f"slope of ln σ₂/σ₃ over {SLOPE_OVER} steps"),
                          strict=True):  # fmt: skip
        axes.set_ylabel(name)
        axes.set_xlabel("step (optimizer updates)")
        axes.set_xlim(0, last_step(runs))
        axes.grid(alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False, handlelength=3)
    bands = f"{BAND}; " if any(len(group) > 1 for group in groups.values()) else ""
    figure.suptitle(f"{bands}dot: first step ≥ {FIRST_STEP} with a slope above {FIRING_SLOPE}", fontsize=9)
    return figure


def firing_step(run: Run) -> int | None:
    """The step at which the marker of a run fires (`li2_lightning.theory.updates.lock_in_step`), or None."""
    return lock_in_step(_ratio(run))


def _ratio(run: Run) -> torch.Tensor:
    return torch.tensor(run.metrics[COLUMN].to_numpy(dtype=float))


def _is_dense(metrics: pd.DataFrame) -> bool:
    return len(metrics) > 1 and np.array_equal(metrics.index.to_numpy(), np.arange(len(metrics)))


def _columns(run: Run) -> pd.DataFrame:
    return run.metrics[[ACCURACY, COLUMN]].assign(slope=eigengap_slope(_ratio(run)).numpy())
