"""li2 animate: a frame for each snapshot, in both formats, of any group."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import train
from li2_lightning import groups
from li2_lightning.analysis.figures.features import features_figure
from li2_lightning.analysis.motion import Film
from li2_lightning.cli.main import main
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.runs.load import find_runs, load_run
from li2_lightning.runs.snapshots import read_snapshot, snapshots, write_snapshot

QUIET = {name: {"enabled": False} for name in ("report", "pictures", "progress", "interaction", "energy", "gram",
                                               "features", "updates", "checkpoint")}  # fmt: skip


@pytest.fixture
def directory(own_sweep: Path) -> Path:
    """A finished run of Z7 with 12 steps, to write into."""
    return next(run.directory for run in find_runs([own_sweep]))


def test_a_gif_has_a_frame_for_each_snapshot_and_stays_on_the_last(directory: Path, tmp_path: Path) -> None:
    assert main(["animate", str(directory), "-o", str(tmp_path / "a.gif"), "--fps", "4"]) == 0
    with Image.open(tmp_path / "a.gif") as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert len(durations) == len(snapshots(directory))
    assert {*durations[:-1]} == {250}
    assert durations[-1] == 2500


def test_an_mp4_has_the_same_frames(directory: Path, tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert main(["animate", str(directory), "-o", str(tmp_path / "a.mp4"), "--fps", "4"]) == 0
    frames, _ = imageio_ffmpeg.count_frames_and_secs(tmp_path / "a.mp4")
    assert frames == len(snapshots(directory)) + 10, "the last one is held for 2.5 s"
    assert [path.name for path in tmp_path.glob("*a.mp4*")] == ["a.mp4"]


def test_a_film_shows_the_weights_of_each_snapshot(directory: Path) -> None:
    """Frames of equal weights differ in nothing but the step, so the left half moves with the weights alone."""
    film = Film(load_run(directory))
    before = [np.asarray(frame)[60:, :500] for frame in film.frames()]
    assert all((a != b).any() for a, b in itertools.pairwise(before))
    first, last = snapshots(directory)[0], list(snapshots(directory).values())[-1]
    shutil.copyfile(last, first)
    after = [np.asarray(frame)[60:, :500] for frame in film.frames()]
    assert (after[0] == after[-1]).all()
    assert all((a == b).all() for a, b in zip(before[1:], after[1:], strict=True))


def test_a_long_film_is_thinned_evenly(directory: Path) -> None:
    steps = list(snapshots(directory))
    assert Film(load_run(directory)).steps == steps
    assert Film(load_run(directory), most=3).steps == [steps[0], steps[round((len(steps) - 1) / 2)], steps[-1]]
    assert Film(load_run(directory), most=100).steps == steps


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"task": {"name": "symmetric", "degree": 3}}, "R2"),
        pytest.param(
            {"task": {"name": "product", "factors": "2x2"}, "network": {"width": 8, "complex_weights": True}},
            "R1.3",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["S3", "Z2xZ2 with complex weights"],
)
def test_every_group_has_a_film(tmp_path: Path, values: dict[str, Any], label: str) -> None:
    base = {"network": {"width": 8}, "max_steps": 2, "output_dir": str(tmp_path), "callbacks": QUIET,
            "logger": {"mode": "disabled"}, "trainer": {"threads": 1, "accelerator": "cpu"}}  # fmt: skip
    film = Film(load_run(train.run({**base, **values}).directory))
    assert film.labels[-1] == label
    assert len(list(film.frames())) == 3


@pytest.mark.slow
def test_nodes_without_weights_have_no_share(directory: Path) -> None:
    for step, path in snapshots(directory).items():
        W = read_snapshot(path)
        write_snapshot(directory, step, torch.zeros(W.shape))
    assert len(list(Film(load_run(directory)).frames())) == len(snapshots(directory))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "-o", "a.webm"], "Unknown suffix of a.webm: '.webm'; known are .gif, .mp4."),
        (["{run}", "-o", "no/a.gif"], "no/a.gif cannot be written: there is no folder no."),
        (["{run}", "-o", "a.gif", "--fps", "0"], "--fps 0 does not fit; it is an integer from 1 to 60."),
    ],
)
def test_what_cannot_be_is_one_sentence(
    small_sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = next(run.directory for run in find_runs([small_sweep]))
    assert main(["animate", *(word.format(run=run) for word in arguments)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_run_without_snapshots_is_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in snapshots(directory).values():
        path.unlink()
    assert main(["animate", str(directory), "-o", str(tmp_path / "a.gif")]) == 2
    assert "has no snapshots of its weights" in capsys.readouterr().err
    (directory / "metrics.csv").unlink()
    assert main(["animate", str(directory), "-o", str(tmp_path / "a.gif")]) == 2
    assert "has no rows yet" in capsys.readouterr().err
    assert not (tmp_path / "a.gif").exists()


def test_an_mp4_without_the_extra(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["animate", str(directory), "-o", str(tmp_path / "a.mp4")]) == 2
    assert (
        "An MP4 needs imageio_ffmpeg; install it with pip install 'li2-lightning[report]'." in capsys.readouterr().err
    )
    assert not list(tmp_path.glob("*a.mp4*"))


@pytest.mark.parametrize(
    ("group", "labels", "legend"),
    [
        # Real irreps come first, as in every list of blocks.
        (groups.cyclic(6), ["k = 3", "k = 1", "k = 2"], "k: frequency"),
        (groups.symmetric(4), ["R1", "R2", "R3.1", "R3.2"], "irreps by kind (R real) and dimension"),
    ],
    ids=["Z6", "S4"],
)
def test_every_picture_names_the_blocks_alike(group: FiniteGroup, labels: list[str], legend: str) -> None:
    """The frames of a film take the same labels and legend; see `test_every_group_has_a_film`."""
    weights = np.random.default_rng(0).standard_normal((2 * group.order, 5))
    shown = [text.get_text().replace("\n", " ") for text in features_figure(weights, group, 0).axes[0].texts]
    assert [text for text in shown if text in labels] == labels
    assert any(text.startswith(legend) for text in shown)
