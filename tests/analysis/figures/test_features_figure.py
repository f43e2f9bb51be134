"""The pictures that a run draws: places that are known beforehand, and nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from li2_lightning.analysis import overview
from li2_lightning.analysis.block_maps import TITLES
from li2_lightning.analysis.figures.features import BOTTOM, NODES, SHARES, TALL, draw_features, features_figure
from li2_lightning.analysis.figures.style import DPI
from li2_lightning.groups.finite_group import FiniteGroup, cyclic, dihedral, symmetric
from li2_lightning.groups.representations import isotypic_blocks

GROUPS: dict[str, Callable[[], FiniteGroup]] = {
    "Z2": lambda: cyclic(2),
    "Z71": lambda: cyclic(71),
    "D6": lambda: dihedral(6),
    "S4": lambda: symmetric(4),
}


def weights(order: int, width: int = 40) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((2 * order, width)).astype(np.float32)


def assert_nothing_is_cut_off(figure: Figure) -> None:
    figure.canvas.draw()
    used = figure.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    width, height = figure.get_size_inches()
    # In inches: more than half of the figure, and nothing beyond its edges.
    assert 0 <= used.x0 < 0.5 * width < used.x1 <= width
    assert 0 <= used.y0 < 0.5 * height < used.y1 <= height
    assert len([text for text in figure.findobj(Text) if text.get_text()]) > 10


@pytest.mark.parametrize("name", GROUPS)
def test_features_are_one_image_and_nothing_is_cut_off(name: str) -> None:
    group = GROUPS[name]()
    figure = features_figure(weights(group.order), group, 12345)
    assert figure.get_layout_engine() is None
    assert len(figure.findobj(AxesImage)) == len(figure.axes) == 1
    assert_nothing_is_cut_off(figure)


def test_a_pixel_has_the_color_of_the_share_of_its_node(tmp_path: Path) -> None:
    """Nodes that lie in one block each: yellow in the row of their block, dark blue elsewhere."""
    group = symmetric(3)
    blocks = isotypic_blocks(group)[1:]
    columns = []
    for block in blocks:
        vector = block.projector @ np.arange(1.0, 7.0)
        columns += [np.concatenate([vector, vector])] * 4
    drawn = Image.open(draw_features(tmp_path / "a.png", np.stack(columns, axis=1).real, group, 0)).convert("RGB")
    pixels = np.asarray(drawn, dtype=int)
    for node in range(len(columns)):
        x = DPI * (SHARES[0] + SHARES[1] * (node + 0.5) / len(columns))
        for block in range(len(blocks)):
            y = drawn.height - DPI * (BOTTOM + TALL * (1 - (block + 0.5) / len(blocks)))
            red, green, blue = pixels[round(y), round(x)]
            assert (red > 200 and green > 200 and blue < 100) == (node // 4 == block), (node, block)


def test_a_curve_lies_where_its_weights_say(tmp_path: Path) -> None:
    """A node with all of its weight at one element has its peak there."""
    group = cyclic(5)
    one = np.zeros((10, 1))
    one[3] = 1.0
    figure = features_figure(one, group, 0)
    solid = figure.axes[0].collections[0].get_segments()[0]  # type: ignore[attr-defined]
    assert solid[:, 1].argmax() == 3
    assert solid[3, 0] == pytest.approx(NODES[0] + NODES[1] * 3 / 4)


def test_the_report_needs_no_layout_and_no_palette(small_sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(overview, "write_png", lambda figure, path: figures.append(figure))
    for directory in sorted(path.parent for path in small_sweep.rglob("features"))[:1]:
        overview.draw_overview(directory)
    (figure,) = figures
    assert figure.get_layout_engine() is None
    assert_nothing_is_cut_off(figure)


def test_the_overview_has_maps_of_steps_and_blocks_where_the_run_counted_them(
    own_sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is explained and of the gradient, with a row for each block in the order of the features."""
    figures: list[Figure] = []
    monkeypatch.setattr(overview, "write_png", lambda figure, path: figures.append(figure))
    directory = sorted(path.parent for path in own_sweep.rglob("features"))[0]
    tables = {name: np.random.default_rng(place).random((4, 3)) for place, name in enumerate(TITLES)}
    steps, labels = np.array([0, 5, 10, 12]), np.array(["k = 1", "k = 2", "k = 3"])
    np.savez(directory / "features" / "blocks.npz", steps=steps, labels=labels, **tables)
    overview.draw_overview(directory)
    (figure,) = figures
    assert_nothing_is_cut_off(figure)
    maps = {
        axes.get_title(loc="left"): axes for axes in figure.axes if axes.findobj(QuadMesh) and axes.get_title("left")
    }
    assert [*maps] == [TITLES["explained"], TITLES["gradient"]]
    for name in ("explained", "gradient"):
        axes = maps[TITLES[name]]
        (mesh,) = axes.findobj(QuadMesh)
        np.testing.assert_array_equal(np.asarray(mesh.get_array()), tables[name].T)  # type: ignore[attr-defined]
        top_down = sorted(axes.get_yticklabels(), key=lambda label: -label.get_window_extent().y0)
        assert [label.get_text() for label in top_down] == [*labels]
