"""The last row is an event: whatever ends a run, callbacks hear of it once, and a killed run ends as a whole one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Timer

import train
from callbacks.pictures import Pictures
from callbacks.report import Report
from li2_lightning.errors import InputError, Interrupted
from tests.callbacks.test_checkpoint import InterruptAt

OPTIONS = ("max_steps=30", "optimizer.lr=0.05", "seed=1")


class StopAt(lightning.Callback):
    """Asks the trainer to stop in one of Lightning's hooks, or in one of ours."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self.stop)

    def stop(self, trainer: Any, *args: Any, **more: Any) -> None:
        trainer.should_stop |= trainer.global_step >= self.step


class Last(lightning.Callback):
    """Notes every row that is the last, and each call of on_last_row."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.calls: list[int] = []

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        self.rows += [state.step] if state.is_last else []

    def on_last_row(self, trainer: Any, module: Any) -> None:
        self.calls.append(module.last_row)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of which a picture was drawn, and "report"; nothing is drawn."""
    rows: list[Any] = []
    monkeypatch.setattr(Pictures, "act", lambda self, trainer, module, state: rows.append(state.step))
    monkeypatch.setattr(Report, "on_last_row", lambda self, trainer, module: rows.append("report"))
    return rows


levels: list[float] = []


@pytest.fixture
def level(tiny_run: Any, tmp_path: Path) -> float:
    """A test accuracy that is reached for the first time somewhere between rows 5 and 25."""
    if not levels:
        accuracies = tiny_run(*OPTIONS, f"output_dir={tmp_path / 'for the level'}").column("test/accuracy")
        rows = [row for row in range(5, 25) if accuracies[row] > max(accuracies[:row])]
        assert rows, "no accuracy rises there"
        levels.append(float(accuracies[rows[-1]]))
    return levels[0]


ALL = ("callbacks.pictures={enabled: true, every_n_steps: 100}", "callbacks.report.enabled=true",
       "callbacks.interaction={every_n_steps: 100, pairs: 5}")  # fmt: skip


@pytest.mark.parametrize(
    ("stopper", "end"),
    [
        pytest.param(None, 30, id="max_steps", marks=pytest.mark.slow),
        pytest.param(StopAt("on_row", 4), 5, id="on_row"),
        pytest.param(StopAt("on_train_batch_end", 4), 4, id="on_train_batch_end"),
        pytest.param(StopAt("on_before_optimizer_step", 4), 5, id="before the update", marks=pytest.mark.slow),
        pytest.param(StopAt("on_train_epoch_end", 4), 30, id="end of the epoch", marks=pytest.mark.slow),
        pytest.param(StopAt("on_fit_start", 0), 0, id="before the first update"),
        pytest.param(Timer(duration=timedelta(microseconds=1)), 1, id="Timer"),
    ],
)
def test_whatever_ends_a_run_its_last_row_is_announced_once(
    tiny_run: Any, drawn: list[Any], capsys: pytest.CaptureFixture[str], stopper: Any, end: int
) -> None:
    last = Last()
    run = tiny_run(*OPTIONS, *ALL, callbacks=[last, *([] if stopper is None else [stopper])])
    assert [row["step"] for row in run.rows] == list(range(end + 1))
    assert (last.rows, last.calls) == ([end], [end])
    assert drawn == [*sorted({0, end}), "report"]
    rows = [row["step"] for row in run.rows if row["interaction/repulsion"] is not None]
    assert rows == sorted({0, end})
    assert capsys.readouterr().out.count(f"step {end}/30") == 1
    folder = run.directory / "checkpoints"
    assert torch.load(folder / "last.ckpt", weights_only=True)["li2_lightning"]["row"] == end


def test_a_run_that_reaches_its_accuracy_has_a_last_picture(tiny_run: Any, drawn: list[Any], level: float) -> None:
    last = Last()
    run = tiny_run(*OPTIONS, *ALL, f"stop_at_test_accuracy={level}", callbacks=[last])
    end = int(run.rows[-1]["step"])
    assert 5 < end < 30
    assert (last.rows, last.calls) == ([end], [end])
    assert drawn == [0, end, "report"]
    assert run.rows[-1]["interaction/repulsion"] is not None


def test_an_epoch_that_is_not_the_last_ends_no_run(tiny_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer of a user's own with two steps an epoch."""

    def build(config: Any, directory: Path, callbacks: Any, environment: Any) -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=3, limit_train_batches=2, limit_val_batches=0, accelerator="cpu", precision="64-true",
            callbacks=callbacks, default_root_dir=directory, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip

    monkeypatch.setattr(train, "build_trainer", build)
    last = Last()
    run = tiny_run(*OPTIONS, callbacks=[last])
    assert [row["step"] for row in run.rows] == list(range(7))
    assert (last.rows, last.calls) == ([6], [6])


def unfinish(run: Any) -> None:
    (run.directory / "summary.json").unlink()


def test_killed_after_the_last_row_it_ends_at_the_same_row(tiny_run: Any, level: float) -> None:
    options = (*OPTIONS, f"stop_at_test_accuracy={level}", "callbacks.checkpoint={every_n_steps: 4, keep: 9}")
    whole = tiny_run(*options)
    unfinish(whole)
    assert tiny_run(*options, "resume=auto").rows == whole.rows


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_in_the_stopping_row_it_ends_at_the_same_row(
    tiny_run: Any, make_record: Callable[[], Any], tmp_path: Path, level: float, again: bool
) -> None:
    options = (*OPTIONS, f"stop_at_test_accuracy={level}")
    whole = tiny_run(*options, f"output_dir={tmp_path / 'whole'}")
    end = int(whole.rows[-1]["step"])
    with pytest.raises(Interrupted):
        tiny_run(*options, "resume=auto", into=make_record(), callbacks=[InterruptAt(end - 1)])
    if again:
        with pytest.raises(Interrupted):
            tiny_run(*options, "resume=auto", into=make_record(), callbacks=[InterruptOnLoad()])
    resumed = tiny_run(*options, "resume=auto")
    assert resumed.rows == whole.rows


class InterruptOnLoad(lightning.Callback):
    """A signal comes before a resumed run has made an update."""

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        pl_module.stop_signal = 15


@pytest.mark.parametrize(
    "hook",
    [
        "on_row",
        pytest.param("on_step_state", marks=pytest.mark.slow),
        pytest.param("on_train_batch_start", marks=pytest.mark.slow),
    ],
)
def test_a_stop_of_a_users_own_outlives_a_kill(
    tiny_run: Any, make_record: Callable[[], Any], tmp_path: Path, hook: str
) -> None:
    options = (*OPTIONS, "callbacks.checkpoint={every_n_steps: 5, keep: 9}")
    whole = tiny_run(*options, callbacks=[StopAt(hook, 10)])
    assert whole.rows[-1]["step"] == 11
    unfinish(whole)
    # What asked for it is gone; row 10 was the one before the last update.
    again = tiny_run(*options, "resume=auto")
    assert again.rows == whole.rows


@pytest.mark.slow
def test_a_run_that_reached_its_accuracy_goes_on_with_another_one_only(
    tiny_run: Any, tmp_path: Path, level: float
) -> None:
    whole = tiny_run(*OPTIONS, f"stop_at_test_accuracy={level}")
    last = whole.directory / "checkpoints" / "last.ckpt"
    further = (*OPTIONS, "max_steps=32", f"resume={last}", f"output_dir={tmp_path / 'further'}")
    with pytest.raises(InputError, match="with which its run ended; another stop_at_test_accuracy lets it go on"):
        tiny_run(*further, f"stop_at_test_accuracy={level}")
    assert not (tmp_path / "further").exists()
    assert tiny_run(*further).rows[-1]["step"] == 32


@pytest.mark.slow
def test_an_accuracy_that_is_reached_in_the_row_of_max_steps_stops_a_longer_run(
    tiny_run: Any, tmp_path: Path, level: float
) -> None:
    options = (*OPTIONS, f"stop_at_test_accuracy={level}")
    end = int(tiny_run(*options, f"output_dir={tmp_path / 'whole'}").rows[-1]["step"])
    short = tiny_run(*options, f"max_steps={end - 1}")
    resume = f"resume={short.directory / 'checkpoints' / 'last.ckpt'}"
    assert tiny_run(*options, resume, f"output_dir={tmp_path / 'longer'}").rows[-1]["step"] == end
