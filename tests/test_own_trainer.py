"""`Li2Module` in anybody's Trainer: only Lightning's documented interface, and the numbers are those of `train.run`."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import train
from callbacks.gradient import Gradient
from callbacks.report import Report
from callbacks.stages import Stages
from li2_lightning import Li2Module, TableDataModule
from li2_lightning.errors import InputError
from li2_lightning.measurement.rows import MONITORED
from li2_lightning.tasks.splits import Split
from li2_lightning.tasks.tasks import Task
from li2_lightning.trainer import quiet_lightning

VALUES = {"task": {"order": 7}, "network": {"width": 16}, "optimizer": {"lr": 0.02}, "max_steps": 20}
MEASURES = list(MONITORED[:4])
MakeTrainer = Callable[..., lightning.Trainer]


class Rows(lightning.Callback):
    """Notes each row, each announcement of the last row, and what Lightning's callbacks can monitor after each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.last: list[int] = []
        self.monitored: list[dict[str, float]] = []

    def on_row(self, trainer: Any, module: Any, row: dict[str, Any]) -> None:
        self.rows.append(dict(row))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.monitored.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_last_row(self, trainer: Any, module: Any) -> None:
        self.last.append(module.last_row)

    @property
    def steps(self) -> list[int]:
        return [int(row["step"]) for row in self.rows]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with quiet_lightning():
        yield


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A Trainer without a logger and without checkpoints, unless the arguments say otherwise."""

    def make(*callbacks: lightning.Callback, **arguments: Any) -> lightning.Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
        files = {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
        everything = {"accelerator": "cpu", "default_root_dir": tmp_path / "own", **quiet, **files, **arguments}
        return lightning.Trainer(callbacks=list(callbacks), **everything)

    return make


def measures(row: Any) -> dict[str, float]:
    return {name: float(row[name]) for name in MEASURES}


def test_lightnings_own_interface_gives_the_numbers_of_a_run(
    tiny_run: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    run = tiny_run("network.width=16", "optimizer.lr=0.02", "max_steps=15", "trainer.precision=32-true")
    module, rows = Li2Module.from_config(VALUES), Rows()
    best = ModelCheckpoint(tmp_path / "best", monitor="test/loss")
    stop = EarlyStopping("test/loss", patience=2)
    logger = CSVLogger(tmp_path / "log")
    trainer = make_trainer(
        best, stop, Gradient(), Stages(), rows, max_epochs=4, limit_train_batches=5, logger=logger
    )  # fmt: skip
    trainer.fit(module, module.data)

    assert (stop.stopped_epoch, trainer.global_step) == (2, 15)
    assert [measures(row) for row in rows.rows] == [measures(row) for row in run.rows]
    assert trainer.callback_metrics["test/loss"].item() == run.rows[-1]["test/loss"]
    assert trainer.callback_metrics["stage/index"].item() == run.rows[-1]["stage/index"]
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        logged = [(float(row["step"]), float(row["gradient/norm"])) for row in csv.DictReader(file)]
    assert logged == [(row["step"], row["gradient/norm"]) for row in run.rows], "each row once"
    assert (Path(logger.log_dir) / "hparams.yaml").read_text().count("width: 16") == 1

    # Lightning validates at the end of each epoch.
    losses = [run.rows[row]["test/loss"] for row in (5, 10, 15)]
    assert best.best_model_score is not None
    assert best.best_model_score.item() == pytest.approx(min(losses), rel=1e-6)
    row = run.rows[5 * (1 + losses.index(min(losses)))]
    (reloaded,) = trainer.test(datamodule=module.data, ckpt_path="best", weights_only=True, verbose=False)
    assert reloaded == pytest.approx(measures(row), rel=1e-6)
    loaded = Li2Module.load_from_checkpoint(best.best_model_path)
    for found in (
        trainer.validate(loaded, loaded.data, verbose=False),
        trainer.test(loaded, loaded.data, verbose=False),
    ):
        assert found[0] == pytest.approx(measures(row), rel=1e-6)
    for split, part in (("train", loaded.data.train), ("test", loaded.data.test)):
        hits = (loaded(part.tokens).argmax(-1) == part.labels).double().mean().item()
        assert hits == row[f"{split}/accuracy"]
    (table,) = trainer.predict(loaded, loaded.data) or [None]
    torch.testing.assert_close(table, loaded(torch.from_numpy(loaded.data.task.operands)).detach())
    tokens = loaded.data.test.tokens
    chunks = make_trainer().predict(loaded, DataLoader(TensorDataset(tokens), batch_size=10))
    torch.testing.assert_close(torch.cat(chunks), loaded(tokens).detach())


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.batch_norm=true", "loss=projected_mse"],
        pytest.param(["network.readout=ridge"], marks=pytest.mark.slow),
        pytest.param(
            ["network.complex_weights=true", "data.batch_size=8", "data.evaluate_every_n_steps=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["network.name=transformer", "network.activation=relu"], marks=pytest.mark.slow),
        pytest.param(["loss=cross_entropy", "data.label_noise=0.2"], marks=pytest.mark.slow),
    ],
    ids=",".join,
)
def test_a_checkpoint_of_a_run_is_validated_as_its_row(
    tiny_run: Any, make_trainer: MakeTrainer, overrides: list[str]
) -> None:
    run = tiny_run(*overrides, "max_steps=6", "callbacks.checkpoint={every_n_steps: 4, keep: 9}")
    folder = run.directory / "checkpoints"
    for name, row in (("row-000004", 4), ("last", 6), ("best", None)):
        path = folder / f"{name}.ckpt"
        module = Li2Module.load_from_checkpoint(path, weights_only=True)
        row = torch.load(path, weights_only=True)["li2_lightning"]["row"] if row is None else row
        expected = next(other for other in run.rows if other["step"] == row)
        trainer = make_trainer(precision="64-true")
        (found,) = trainer.validate(module, module.data, verbose=False)
        assert found == pytest.approx(measures(expected), rel=1e-6)
        test = module.data.test
        hits = (module(test.tokens).argmax(-1) == test.labels).double().mean().item()
        assert hits == expected["test/accuracy"]


# -- the end of a fit -------------------------------------------------------------------------------------------------


class At(lightning.Callback):
    """Does something in one hook of Lightning."""

    def __init__(self, hook: str, step: int, act: Callable[[lightning.Trainer], None]) -> None:
        def call(trainer: lightning.Trainer, *args: Any) -> None:
            if trainer.global_step == step:
                act(trainer)

        setattr(self, hook, call)


def stop(trainer: lightning.Trainer) -> None:
    trainer.should_stop = True


def interrupt(trainer: lightning.Trainer) -> None:
    raise KeyboardInterrupt


def fail(trainer: lightning.Trainer) -> None:
    raise OSError("no space")


EPOCHS = {"max_epochs": 3, "limit_train_batches": 4}


@pytest.mark.parametrize(
    ("callback", "arguments", "end"),
    [
        (None, {"max_steps": 6}, 6),
        (None, EPOCHS, 12),
        (None, {**EPOCHS, "limit_val_batches": 0}, 12),
        (None, {**EPOCHS, "max_time": "00:00:00:00"}, 0),
        (None, {"fast_dev_run": 2}, 2),
        (EarlyStopping("test/loss", stopping_threshold=1e9), EPOCHS, 4),
        (EarlyStopping("train/accuracy", mode="max", stopping_threshold=0.0), {**EPOCHS, "limit_val_batches": 0}, 4),
        (EarlyStopping("test/loss", stopping_threshold=1e9), {**EPOCHS, "min_epochs": 2}, 8),
        (At("on_train_batch_end", 3, stop), EPOCHS, 3),
        (At("on_train_epoch_start", 4, stop), EPOCHS, 4),
        (At("on_validation_end", 8, stop), EPOCHS, 8),
        (At("on_train_start", 0, stop), EPOCHS, 0),
    ],
)
def test_whatever_ends_a_fit_its_last_row_is_published_once(
    make_trainer: MakeTrainer, callback: lightning.Callback | None, arguments: dict[str, Any], end: int
) -> None:
    module, rows = Li2Module.from_config(VALUES), Rows()
    trainer = make_trainer(*([] if callback is None else [callback]), rows, **arguments)
    trainer.fit(module, module.data)
    assert (rows.steps, rows.last) == ([*range(end + 1)], [end])


@pytest.mark.parametrize("act", [fail, interrupt])
def test_a_fit_that_an_exception_ends_has_no_last_row(
    make_trainer: MakeTrainer, act: Callable[[lightning.Trainer], None]
) -> None:
    """An update may be half made, so that a row would describe weights of no step."""
    module, rows = Li2Module.from_config(VALUES), Rows()
    with pytest.raises((OSError, SystemExit)):
        make_trainer(At("on_train_batch_end", 3, act), rows, **EPOCHS).fit(module, module.data)
    assert (rows.steps, rows.last) == ([0, 1, 2], [])


def test_a_second_fit_goes_on_and_a_further_trainer_counts_from_zero(make_trainer: MakeTrainer) -> None:
    whole, all_rows = Li2Module.from_config(VALUES), Rows()
    make_trainer(all_rows, max_steps=12).fit(whole, whole.data)
    module, rows = Li2Module.from_config(VALUES), Rows()
    trainer = make_trainer(rows, max_epochs=2, limit_train_batches=4)
    trainer.fit(module, module.data)
    trainer.fit(module, module.data)
    assert (rows.steps, rows.last) == ([*range(9)], [8]), "nothing is left to train"
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, module.data)
    assert (rows.steps, rows.last) == ([*range(13)], [8, 12])
    for row, other in zip(rows.rows, all_rows.rows, strict=True):
        assert measures(row) == pytest.approx(measures(other), rel=1e-5)
    further = Rows()
    make_trainer(further, max_steps=2).fit(module, module.data)
    assert (further.steps, further.last) == ([0, 1, 2], [2])
    assert measures(further.rows[0]) == pytest.approx(measures(all_rows.rows[12]), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("optimizer", ["adam", pytest.param("schedulefree", marks=pytest.mark.slow)])
def test_a_fit_continues_from_a_checkpoint_of_lightning(
    make_trainer: MakeTrainer, tmp_path: Path, optimizer: str
) -> None:
    if optimizer == "schedulefree":
        pytest.importorskip("pytorch_optimizer")
        role = {"name": "schedulefreeadamw"}
        values: dict[str, Any] = {**VALUES, "optimizer": {"lr": 0.02, "hidden": role, "output": role}}
    else:
        values = VALUES
    # A validation between two updates, and a checkpoint within it, change nothing.
    whole, all_rows, within = Li2Module.from_config(values), Rows(), ModelCheckpoint(tmp_path, save_top_k=-1)
    make_trainer(all_rows, within, max_steps=8, val_check_interval=3).fit(whole, whole.data)
    module = Li2Module.from_config(values)
    keep = ModelCheckpoint(tmp_path / "keep", every_n_train_steps=5, save_top_k=-1, filename="{step}")
    make_trainer(keep, max_steps=6).fit(module, module.data)
    path = tmp_path / "keep" / "step=5.ckpt"
    loaded = Li2Module.load_from_checkpoint(path)
    (found,) = make_trainer().validate(loaded, loaded.data, verbose=False)
    assert found == pytest.approx(measures(all_rows.rows[5]), rel=1e-5), "weights of row 5"
    validated = Li2Module.load_from_checkpoint(tmp_path / "epoch=0-step=6.ckpt")
    (found,) = make_trainer().validate(validated, validated.data, verbose=False)
    assert found == pytest.approx(measures(all_rows.rows[6]), rel=1e-5), "weights of row 6"
    resumed, rows = Li2Module.from_config(values), Rows()
    make_trainer(keep, rows, max_steps=8).fit(resumed, resumed.data, ckpt_path=path, weights_only=True)
    assert (rows.steps, rows.last) == ([5, 6, 7, 8], [8])
    assert [measures(row) for row in rows.rows] == [measures(row) for row in all_rows.rows[5:]]


# -- what Lightning's callbacks see -----------------------------------------------------------------------------------


def test_callbacks_of_lightning_find_the_newest_row_without_a_validation(make_trainer: MakeTrainer) -> None:
    module, rows = Li2Module.from_config(VALUES), Rows()
    make_trainer(Gradient(), Stages(), rows, max_steps=3, limit_val_batches=0).fit(module, module.data)
    expected = [{name: row[name] for name in (*MEASURES, "stage/index")} for row in rows.rows[:3]]
    for seen, row in zip(rows.monitored, expected, strict=True):
        assert seen == pytest.approx(row, rel=1e-12)


def test_every_run_of_a_stack_has_its_own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rows] = []
    build = train.build_callbacks

    def with_rows(sections: Any) -> list[lightning.Callback]:
        seen.append(Rows())
        return [*build(sections), seen[-1]]

    monkeypatch.setattr(train, "build_callbacks", with_rows)
    off = {name: {"enabled": False} for name in ("report", "pictures")}
    config = {**VALUES, "max_steps": 3, "output_dir": str(tmp_path), "callbacks": off, "logger": {"mode": "disabled"}}
    outcomes = train.run_stack([train.read_config({**config, "seed": seed}) for seed in (0, 1)])
    assert [type(outcome).__name__ for outcome in outcomes] == ["RunResult", "RunResult"]
    assert seen[0].monitored != seen[1].monitored
    for rows in seen:
        assert rows.last == [3]
        for found, row in zip(rows.monitored, rows.rows[:3], strict=True):
            assert measures(found) == pytest.approx(measures(row), rel=1e-12)


def test_a_notebook_can_silence_the_messages(make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    module = Li2Module.from_config(VALUES)
    make_trainer(max_steps=1).fit(module, module.data)
    assert capsys.readouterr().out == "forward and backward: rows in blocks that stay in cache\n"
    logger = logging.getLogger("li2_lightning")
    logger.setLevel(logging.ERROR)
    try:
        make_trainer(max_steps=1).fit(module, module.data)
    finally:
        logger.setLevel(logging.INFO)
    assert capsys.readouterr().out == ""


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_follow_the_weights_and_can_be_differentiated() -> None:
    module = Li2Module.from_config({**VALUES, "loss": "projected_mse", "network": {"width": 16, "batch_norm": True}})
    tokens = module.data.test.tokens[:5]
    before = module.eval()(tokens)
    assert before.shape == (5, 7)
    torch.testing.assert_close(module(tokens[:2]), before[:2], msg="rows do not depend on the rows beside them")
    (gradient,) = torch.autograd.grad(before.square().sum(), module.network.W)
    assert gradient.abs().max() > 0
    module.network.W.data *= torch.linspace(1, 2, 14)[:, None]  # which torch does not count as a change
    assert not torch.allclose(module(tokens), before)


def test_rows_of_ones_own_need_be_given_again(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    a, b = np.divmod(np.arange(49), 7)
    task = Task("max", np.stack([a, b], axis=1), np.maximum(a, b), num_tokens=7, num_classes=7)
    data = TableDataModule(task, Split(np.arange(0, 49, 2), np.arange(1, 49, 2)))
    module = Li2Module.from_config(VALUES, data)
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(InputError, match=r"other rows than its config describes; give load_from_checkpoint the rows"):
        Li2Module.load_from_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(InputError, match="other rows than those given"):
        Li2Module.load_from_checkpoint(tmp_path / "own.ckpt", data=TableDataModule.from_config(VALUES))
    loaded = Li2Module.load_from_checkpoint(tmp_path / "own.ckpt", data=data)
    torch.testing.assert_close(loaded(data.test.tokens), module(data.test.tokens))


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("entry", ["fit", "validate", "test"])
def test_another_loader_is_refused_with_what_is_needed(make_trainer: MakeTrainer, entry: str) -> None:
    module = Li2Module.from_config(VALUES)
    words = rf"takes a TableDataModule and no other loader; call trainer\.{entry}\(module, module\.data\)"
    with pytest.raises(InputError, match=words):
        getattr(make_trainer(max_steps=1), entry)(module, DataLoader(TensorDataset(torch.zeros(3))))


def test_rows_of_another_size_are_refused(make_trainer: MakeTrainer) -> None:
    module, other = Li2Module.from_config(VALUES), TableDataModule.from_config({"task": {"order": 5}})
    with pytest.raises(InputError, match="has 7 tokens, 2 operands and 7 classes, and the task Z5 has 5, 2 and 5"):
        make_trainer(max_steps=1).fit(module, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"overfit_batches": 2}, "overfit_batches=2) is refused: a run is one endless epoch"),
        ({"barebones": True, "log_every_n_steps": None, "logger": None}, "it switches off the callbacks"),
    ],
)
def test_what_would_make_rows_wrong_is_refused_as_in_trainer_extra(
    make_trainer: MakeTrainer, arguments: dict[str, Any], words: str
) -> None:
    module = Li2Module.from_config(VALUES)
    with pytest.raises(InputError) as refused:
        make_trainer(max_steps=1, **arguments).fit(module, module.data)
    assert words in str(refused.value)


def test_the_report_of_a_run_directory_is_refused_before_training(make_trainer: MakeTrainer) -> None:
    module = Li2Module.from_config(VALUES)
    with pytest.raises(InputError, match="leave it out of a Trainer of your own"):
        make_trainer(Report(), max_steps=1).fit(module, module.data)


def test_a_checkpoint_that_cannot_be_loaded_is_one_sentence(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Li2Module.from_config(VALUES)
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, module.data)
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(InputError, match=r"nowhere\.ckpt cannot be read: No such file"):
        Li2Module.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    for section, value, words in (
        ("network", {"activation": "mine"}, "Unknown activation 'mine'"),
        ("optimizer", {"hidden": {"name": "nobody:Knows"}}, "could not be imported"),
    ):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["li2_lightning"]["config"][section] |= value
        torch.save(checkpoint, tmp_path / "other.ckpt")
        with pytest.raises(InputError, match=words):
            Li2Module.load_from_checkpoint(tmp_path / "other.ckpt")
    checkpoint["li2_lightning"]["config"] = {}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"was not made by Li2Module\.from_config"):
        Li2Module.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_module_without_rows_says_when_it_needs_them() -> None:
    for loss, needed in (("mse", False), ("projected_mse", True)):
        made = Li2Module.from_config({**VALUES, "loss": loss})
        bare, tokens = Li2Module(made.network, made.loss, made.optimizer), made.data.test.tokens
        if needed:
            with pytest.raises(InputError, match=r"make it with Li2Module\.from_config, or give it a TableDataModule"):
                bare(tokens)
        else:
            torch.testing.assert_close(bare(tokens), made(tokens))
