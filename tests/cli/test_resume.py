"""Continuing from a checkpoint: what must agree, what goes, and which learning rates follow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

import train
from li2_lightning.errors import InputError, Interrupted
from li2_lightning.runs.checkpoints import read_own_part
from li2_lightning.runs.directory import RunResult
from li2_lightning.runs.load import find_runs, load_run
from li2_lightning.runs.metrics_csv import read_metrics
from optimizers.schedules import SCHEDULES, WITH_LENGTH
from tests.cli.conftest import CommandLine
from tests.cli.test_run_directory import stamps
from tests.cli.test_sweep import FAST
from tests.conftest import added


def config(folder: Path, **values: Any) -> dict[str, Any]:
    off = ("report", "pictures", "snapshots", "interaction", "energy", "gram", "features")
    return {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 6,
        "output_dir": str(folder),
        "logger": {"mode": "disabled"},
        "callbacks": {name: {"enabled": False} for name in off} | {"checkpoint": {"every_n_steps": 2, "keep": 9}},
        "trainer": {"accelerator": "cpu", "threads": 1},
    } | values


def last(folder: Path) -> str:
    return str(folder / "checkpoints" / "last.ckpt")


# -- what must agree --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "now"), [("32-true", "64-true"), ("32-true", "bf16-mixed"), ("64-true", "32-true")])
def test_another_precision_is_refused_before_anything_is_written(tmp_path: Path, before: str, now: str) -> None:
    values = config(tmp_path)
    short = train.run(values | {"trainer": {"accelerator": "cpu", "precision": before}}).directory
    seen, entries = stamps(tmp_path), sorted(tmp_path.rglob("*"))
    further = {"max_steps": 9, "resume": last(short), "trainer": {"accelerator": "cpu", "precision": now}}
    with pytest.raises(InputError, match=f"was trained with trainer.precision={before}, not {now}; set it alike"):
        train.run(values | further)
    assert (stamps(tmp_path), sorted(tmp_path.rglob("*"))) == (seen, entries)


def test_a_path_through_latest_is_that_of_the_run_before(tmp_path: Path) -> None:
    """A run points the link to itself before it loads the checkpoint; a stack does so before its second run begins."""
    first = train.run(config(tmp_path)).directory
    through_latest = last(tmp_path / "latest")
    longer = train.run(config(tmp_path, max_steps=8, resume=through_latest)).directory
    assert (tmp_path / "latest").resolve() == longer
    assert longer != first
    later = [
        train.read_config(
            config(tmp_path, seed=seed, network={"width": 8, "initial_weights": last(tmp_path / "latest")})
        )
        for seed in (1, 2)
    ]
    results = [result for result in train.run_stack(later) if isinstance(result, RunResult)]
    assert [load_run(result.directory)["network.initial_weights"] for result in results] == [last(longer)] * 2


def test_a_longer_run_has_the_best_weights_of_all_its_rows(tmp_path: Path) -> None:
    values = config(tmp_path, seed=1)
    short = train.run(values).directory
    # Test accuracy stays below that of an earlier row.
    rows = load_run(short).metrics["test/accuracy"]
    values |= {"max_steps": 7, "resume": last(short)}
    longer, best = load_run(train.run(values).directory), int(rows.idxmax())
    assert longer.metrics["test/accuracy"].idxmax() == best
    assert read_own_part(longer.checkpoint("best"), "best")["step"] == best
    without = train.run(values | {"name": "without", "callbacks": {"checkpoint": {"best": False}}}).directory
    assert not (without / "checkpoints" / "best.ckpt").exists()


@pytest.mark.slow
def test_the_runs_of_a_sweep_read_the_same_files(command_line: CommandLine, workplace: Path) -> None:
    first = train.run(config(workplace / "outputs")).directory
    outcome = command_line(
        "-m", *FAST, "task.order=7", "network.width=8", "name=later", "seed=1,2", "stack=1",
        "network.initial_weights=outputs/latest/checkpoints/last.ckpt",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    runs = find_runs([workplace / "outputs" / "later"])
    assert len({run.directory.name.partition("-")[0] for run in runs}) == 1
    assert {str(Path(run["network.initial_weights"]).resolve()) for run in runs} == {str(Path(last(first)).resolve())}


@pytest.mark.slow
def test_an_edited_input_file_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    rows = np.arange(49)
    np.savez(tmp_path / "split.npz", train=rows[:20], test=rows[20:])
    values = config(tmp_path / "runs", data={"split_file": str(tmp_path / "split.npz")})
    further = values | {"max_steps": 9, "resume": last(train.run(values).directory)}
    shutil.move(tmp_path / "split.npz", tmp_path / "moved.npz")
    np.savez(tmp_path / "split.npz", train=rows[:21], test=rows[21:])
    with pytest.raises(InputError, match=r"was trained with another file as data\.split_file"):
        train.run(further)
    assert not train.run(further | {"data": {"split_file": str(tmp_path / "moved.npz")}}).stored


# -- schedules --------------------------------------------------------------------------------------------------------


def rates(folder: Path) -> list[float]:
    """The column optimizer/hidden_lr."""
    return [float(rate) for rate in read_metrics(folder / "metrics.csv")["optimizer/hidden_lr"]]


def rates_before(folder: Path, row: int) -> dict[int, float]:
    return dict(enumerate(rates(folder)[:row]))


class Rates(lightning.Callback):
    """The learning rate that each update uses."""

    def __init__(self) -> None:
        self.used: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used[trainer.global_step] = optimizer.param_groups[0]["lr"]


def used(values: dict[str, Any]) -> tuple[Path, dict[int, float]]:
    """Run, and see the learning rate of each update."""
    callback = Rates()
    with added(lambda: callback):
        return train.run(values).directory, callback.used


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param({"name": "cosine"}, marks=pytest.mark.slow),
        {"name": "cosine", "final_fraction": 0.1, "warmup_steps": 3},
        pytest.param({"name": "linear_warmup", "warmup_steps": 8}, marks=pytest.mark.slow),
        pytest.param({"name": "multistep", "milestones": [5, 7]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_longer_run_has_the_learning_rates_of_its_own_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: dict[str, Any]
) -> None:
    values = config(tmp_path, scheduler=scheduler)
    short, _ = used(values)
    capsys.readouterr()
    folder, longer = used(values | {"max_steps": 12, "resume": last(short)})
    said = capsys.readouterr().out
    _, whole = used(values | {"max_steps": 12, "name": "whole"})
    assert longer == {step: rate for step, rate in whole.items() if step >= 6}
    assert min(longer.values()) > 0
    # Row t tells the rate of the update after it, also where the shorter run had told another.
    assert dict(enumerate(rates(folder))) == rates_before(short, 6) | longer | {12: rates(folder)[12]}
    line = "cosine now ends at row 12, not 6; from row 6 on learning rates are those of the new length"
    assert said.count(line) == (scheduler["name"] == "cosine")


def test_a_run_of_the_same_length_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    values = config(tmp_path, scheduler={"name": "cosine"})
    folder, whole = used(values)
    (folder / "summary.json").unlink()
    again, rest = used(values | {"resume": str(folder / "checkpoints" / "row-000002.ckpt")})
    assert again == folder
    assert rest == {step: rate for step, rate in whole.items() if step >= 2}


def test_the_schedules_that_know_their_length_are_those_whose_factors_depend_on_it() -> None:
    options: dict[str, dict[str, Any]] = {
        "none": {},
        "step": {"step_size": 3}, "multistep": {"milestones": [4]}, "exponential": {"gamma": 0.9}, "cosine": {},
        "linear_warmup": {"warmup_steps": 5},
    }  # fmt: skip
    depends = [
        name
        for name, schedule in SCHEDULES.items()
        if [schedule(10, **options[name])(t) for t in range(10)]
        != [schedule(20, **options[name])(t) for t in range(10)]
    ]
    assert tuple(depends) == WITH_LENGTH


# -- an older checkpoint in its own directory -------------------------------------------------------------------------

USERS = ("checkpoints/row-old.ckpt", "checkpoints/row-9.ckpt", "checkpoints/stage-mine.ckpt", "checkpoints/best",
         "features/row-mine.png", "notes.txt")  # fmt: skip


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, dict[str, bytes]]:
    """A run killed at its end, with files of its user's in between; its rows and weights."""
    values = config(tmp_path_factory.mktemp("unfinished"))
    values["callbacks"]["stages"] = {"rows": 1, "train_accuracy": 0.0, "independence": -1.0, "independence_fall": -1.0}
    folder = train.run(values).directory
    whole = results(folder)
    (folder / "summary.json").unlink()
    (folder / "features").mkdir()
    for row in (0, 2, 4, 6):
        (folder / "features" / f"row-{row:06d}.png").write_text("a picture")
        (folder / "features" / f"row-{row:06d}.npz").write_text("a snapshot")
    (folder / "features" / "last.npz").write_text("weights of row 6")
    for name in USERS:
        (folder / name).write_text("a user's")
    for name, row in (("best", 2), ("stage-2", 2), ("stage-3", 6)):
        shutil.copyfile(folder / "checkpoints" / f"row-{row:06d}.ckpt", folder / "checkpoints" / f"{name}.ckpt")
    return values, folder, whole


def results(folder: Path) -> dict[str, bytes]:
    weights = torch.load(last(folder), weights_only=True)["state_dict"]
    rows = {"rows": (folder / "metrics.csv").read_bytes()}
    return rows | {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.fixture
def own(unfinished: Any, tmp_path: Path) -> tuple[dict[str, Any], Path, dict[str, bytes]]:
    """The same, to write into."""
    values, folder, whole = unfinished
    copy = shutil.copytree(values["output_dir"], tmp_path / "own", symlinks=True)
    return values | {"output_dir": str(copy)}, copy / folder.relative_to(values["output_dir"]), whole


class Dies(BaseException):
    """The process is killed."""


class Watch(lightning.Callback):
    """What the directory holds when training begins."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        self.names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "row-000002.ckpt",
        "best.ckpt",
        pytest.param("stage-2.ckpt", marks=pytest.mark.slow),
        pytest.param("mine.ckpt", marks=pytest.mark.slow),
    ],
)
def test_what_later_rows_left_goes_and_a_users_files_stay(own: Any, name: str) -> None:
    values, folder, whole = own
    checkpoints = folder / "checkpoints"
    if name != "row-000002.ckpt":
        # Kept under another name only.
        path = checkpoints / "row-000002.ckpt"
        path.rename(checkpoints / name)
    watch = Watch()
    with added(lambda: watch):
        train.run(values | {"resume": str(checkpoints / name)})
    ours = {"config.yaml", "metrics.csv", "stages.json", ".lock", "checkpoints/row-000002.ckpt",
            "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/stage-2.ckpt", "features/row-000000.png",
            "features/row-000000.npz", "features/row-000002.png", "features/row-000002.npz"}  # fmt: skip
    assert watch.names == ours | {*USERS, f"checkpoints/{name}"}
    assert results(folder) == whole
    assert all((folder / name).read_text() == "a user's" for name in USERS)
    assert (checkpoints / "last.ckpt").samefile(checkpoints / "row-000006.ckpt")
    assert (checkpoints / "row-000004.ckpt").exists()


class InterruptBetweenRows(lightning.Callback):
    """A signal comes in step 5, which has no row."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            pl_module.stop_signal = 15


def test_a_run_that_was_stopped_between_two_rows_keeps_its_checkpoint(tmp_path: Path) -> None:
    values = config(tmp_path, max_steps=8, data={"batch_size": 6, "evaluate_every_n_steps": 3})
    with added(InterruptBetweenRows), pytest.raises(Interrupted):
        train.run(values)
    resumed = train.run(values | {"resume": "auto"}).directory
    assert (resumed / "checkpoints" / "row-000005.ckpt").exists()
    assert results(resumed) == results(train.run(values | {"name": "whole"}).directory)


@pytest.mark.slow
def test_without_a_checkpoint_everything_of_ours_comes_anew(own: Any) -> None:
    values, folder, whole = own
    for path in (folder / "checkpoints").glob("row-0*.ckpt"):
        path.unlink()
    assert not train.run(values | {"resume": "auto"}).stored
    assert results(folder) == whole
    assert not list((folder / "features").glob("row-0*"))
    assert all((folder / name).read_text() == "a user's" for name in USERS)


@pytest.mark.slow
def test_killed_between_any_two_removals_it_can_be_resumed(
    unfinished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because of a run for each file that goes."""
    values, folder, whole = unfinished
    inside = folder.relative_to(values["output_dir"])
    for survived in range(40):
        copy = shutil.copytree(values["output_dir"], tmp_path / str(survived), symlinks=True)
        mine, there = values | {"output_dir": str(copy)}, copy / inside
        older = {"resume": str(there / "checkpoints" / ("best.ckpt" if survived % 2 else "row-000002.ckpt"))}
        # Then best.ckpt is the only file of row 2.
        if survived % 2:
            (there / "checkpoints" / "row-000002.ckpt").unlink()
        left = iter([None] * survived)
        changes = {name: getattr(owner, name) for owner, name in ((Path, "unlink"), (os, "replace"), (os, "link"))}

        def dying(name: str, real: Any = changes, left: Any = left) -> Any:
            def change(*arguments: Any, **options: Any) -> Any:
                if ".part" not in str(arguments[0]) or name != "unlink":
                    try:
                        next(left)
                    except StopIteration:
                        raise Dies from None
                return real[name](*arguments, **options)

            return change

        died = True
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying("unlink"))
            patch.setattr(os, "replace", dying("replace"))
            patch.setattr(os, "link", dying("link"))
            patch.setattr(train, "fit", _survived)
            try:
                train.run(mine | older)
            except Dies:
                pass
            except _Survived:
                died = False
        train.run(mine | {"resume": "auto"})
        assert results(there) == whole, survived
        assert all((there / name).read_text() == "a user's" for name in USERS)
        if not died:
            assert survived > 5
            return
    pytest.fail("it never came to the fit")


class _Survived(Exception):
    pass


def _survived(*arguments: Any) -> Any:
    raise _Survived
