"""Pictures on disk: small, and true in colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from li2_lightning.analysis.figures.style import (
    COLORS,
    DPI,
    draw_intervals,
    logarithmic,
    mean_interval,
    new_figure,
    save,
    share_interval,
)


def test_a_png_of_curves_has_a_palette_that_nobody_sees(tmp_path: Path) -> None:
    figure = new_figure(5, 3)
    axes = figure.subplots()
    for shift, color in enumerate(COLORS):
        axes.plot(np.sin(np.linspace(0, 6, 200) + shift), color=color)
        axes.fill_between(range(200), shift, shift + 0.5, color=color, alpha=0.2)
    whole = io.BytesIO()
    saved = Image.open(save(figure, tmp_path / "a.png"))
    figure.savefig(whole, format="png", dpi=DPI)
    assert saved.mode == "P"
    assert saved.size == (5 * DPI, 3 * DPI)
    colors, exact = (np.asarray(image.convert("RGB"), dtype=int) for image in (saved, Image.open(whole)))
    assert np.abs(colors - exact).max() <= 20
    assert (tmp_path / "a.png").stat().st_size < 0.6 * len(whole.getvalue())


def test_a_color_map_keeps_its_colors(tmp_path: Path) -> None:
    for name, draw in (("a", "imshow"), ("b", "pcolormesh")):
        figure = new_figure(5, 3)
        getattr(figure.subplots(), draw)(np.linspace(0, 1, 900).reshape(30, 30))
        with Image.open(save(figure, tmp_path / f"{name}.png")) as saved:
            assert saved.mode == "RGBA"


def test_ticks_between_powers_of_ten_are_plain_numbers() -> None:
    axes = new_figure(5, 3).subplots()
    axes.plot([0, 1], [0.15, 0.95])
    logarithmic(axes)
    axes.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels(minor=True)]
    assert {"0.2", "0.6"} <= set(labels)


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    # Brown, Cai and DasGupta (2001): of 10 trials, none and one half.
    assert share_interval(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert share_interval(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    low, high = share_interval(10, 10)[1:]
    assert (low, high) == pytest.approx((0.7225, 1), abs=1e-4)


def test_the_interval_of_a_mean_is_two_standard_errors_wide_on_each_side() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=400)
    mean, low, high = mean_interval(values.tolist())
    assert mean == pytest.approx(values.mean())
    error = values.std() / 20
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)
    assert mean_interval([2.0, 2.0]) == (2, 2, 2)


def test_the_bar_of_a_certain_share_ends_at_one() -> None:
    axes = new_figure(2, 2).subplots()
    draw_intervals(axes, [1, 2, 3], [share_interval(n, n) for n in (1, 24, 48)], color=COLORS[0])
    assert [path[-1, 1] for path in axes.containers[0][2][0].get_segments()] == pytest.approx([1, 1, 1])
