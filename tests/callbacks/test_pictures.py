"""The learned features as pictures: when they are drawn, and that they show the weights of that row."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import train
from li2_lightning.analysis.figures import features
from li2_lightning.analysis.figures.features import draw_features
from li2_lightning.errors import Interrupted
from li2_lightning.groups.finite_group import symmetric
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.theory.features import feature_shares
from tests.callbacks.test_checkpoint import InterruptAt

PNG = b"\x89PNG\r\n\x1a\n"


def run(folder: Path, **values: Any) -> Path:
    """Directory of a tiny run with pictures."""
    base = {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 5,
        "output_dir": str(folder),
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1},
        "callbacks": {"pictures": {"every_n_steps": 2}, "report": {"enabled": False}},
    }
    return train.run({**base, **values}).directory


def test_pictures_on_a_log_scale(tmp_path: Path) -> None:
    sections = {"pictures": {"every_n_steps": "log1"}, "report": {"enabled": False}}
    folder = run(tmp_path, callbacks=sections) / "features"
    assert sorted(path.name for path in folder.glob("*.png")) == [f"row-{step:06d}.png" for step in (0, 1, 5)]


def test_pictures_at_the_cadence_and_of_the_last_row(tmp_path: Path) -> None:
    folder = run(tmp_path) / "features"
    drawn = sorted(path.name for path in folder.glob("*.png"))
    assert drawn == [f"row-{step:06d}.png" for step in (0, 2, 4, 5)]
    assert all((folder / name).read_bytes().startswith(PNG) for name in drawn)
    last = torch.load(folder.parent / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["network.W"]
    with np.load(folder / "last.npz") as arrays:
        assert arrays["step"] == 5
        assert np.array_equal(arrays["W"], last.numpy())


def test_a_picture_in_the_first_row_after_a_transition(tmp_path: Path) -> None:
    at_once = {"rows": 1, "train_accuracy": 0.0, "independence": -1.0, "independence_fall": -1.0}
    sections = {"pictures": {"every_n_steps": 100}, "stages": at_once, "report": {"enabled": False}}
    directory = run(tmp_path, callbacks=sections)
    assert [path.name for path in sorted((directory / "features").glob("*.png"))] == [
        "row-000000.png",
        "row-000001.png",
        "row-000005.png",
    ]


def test_after_an_interrupt_every_picture_so_far_is_there_and_whole(tiny_run: Any, make_record: Any) -> None:
    record = make_record()
    with pytest.raises(Interrupted):
        tiny_run("callbacks.pictures={enabled: true, every_n_steps: 2}", into=record, callbacks=[InterruptAt(4)])
    folder = record.directory / "features"
    drawn = sorted(folder.glob("*.png"))
    assert [path.name for path in drawn] == [f"row-{step:06d}.png" for step in (0, 2, 4)]
    for path in drawn:
        with Image.open(path) as picture:
            picture.load()
    with np.load(folder / "last.npz") as arrays:
        assert arrays["step"] == 4
        assert np.array_equal(arrays["W"], record.seen[4].weights["W"].numpy())


@pytest.mark.parametrize(
    "values",
    [
        {"task": {"name": "expression", "expression": "x*y", "modulus": 5}},
        {"network": {"name": "transformer", "width": 8, "activation": "relu"}},
    ],
)
def test_what_has_no_features_on_a_group_has_no_pictures(tmp_path: Path, values: dict[str, Any]) -> None:
    assert not (run(tmp_path, **values) / "features").exists()


def test_a_drawing_leaves_no_garbage_also_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[weakref.ref[Figure]] = []

    def draw(*args: Any, fails: bool = False) -> Any:
        # As each figure of matplotlib is: part of a cycle.
        figure = Figure()
        FigureCanvasAgg(figure)
        drawn.append(weakref.ref(figure))
        if fails:
            raise OSError("a disk")
        return draw_features(*args)

    monkeypatch.setattr(features, "draw_features", draw)
    run(tmp_path / "drawn")
    assert [figure() for figure in drawn] == [None] * 4
    assert gc.isenabled()
    monkeypatch.setattr(features, "draw_features", partial(draw, fails=True))
    with pytest.raises(OSError, match="a disk"):
        run(tmp_path / "failed")
    assert gc.isenabled()


def test_the_report_is_taller_with_features(tmp_path: Path) -> None:
    heights = []
    for enabled in (True, False):
        directory = run(tmp_path / str(enabled), callbacks={"pictures": {"enabled": enabled}})
        heights.append(int.from_bytes((directory / "report.png").read_bytes()[20:24], "big"))
    assert heights[0] > 1.3 * heights[1]


def test_shares_are_those_of_the_projectors() -> None:
    group = symmetric(3)
    weights = torch.randn(2 * 6, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    shares = feature_shares(weights, group)
    energies = torch.stack(
        [
            sum(
                (torch.tensor(block.projector).to(weights.dtype) @ half).abs().square().sum(dim=0)
                for half in weights.split(6)
            )
            for block in isotypic_blocks(group)[1:]
        ]
    )
    assert torch.allclose(shares, energies / energies.sum(dim=0), rtol=1e-12)
