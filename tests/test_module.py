"""Row t describes the weights after t updates: against a plain training loop, whatever the options."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor

import train
from callbacks.gradient import Gradient
from li2_lightning.config.schema import NetworkConfig
from li2_lightning.errors import DivergenceError, InputError
from li2_lightning.losses import build_loss
from li2_lightning.measurement.rows import rows_to_host
from li2_lightning.networks.build import build_network
from li2_lightning.runs.checkpoints import read_weights
from li2_lightning.seeds import generator
from li2_lightning.tasks.tasks import build_task
from li2_lightning.theory.lazy import center
from li2_lightning.trainer import quiet_lightning

M, K = 7, 16
LOSSES = ["mse", "projected_mse", "cross_entropy"]
Weights = dict[str, Tensor]

# -- a plain loop, of its own making ----------------------------------------------------------------------------------


class Plain:
    """Z7 by dense matrices, hand-written losses, and Adam with coupled decay, from weights and rows of its own."""

    def __init__(self, folder: Path, complex_weights: bool = False, hidden: int = 0) -> None:
        draw = np.random.default_rng(5)
        shapes = {"W": (2 * M, K), "V": (K, M), **{f"H{layer + 1}": (K, K) for layer in range(hidden)}}
        arrays = {name: draw.uniform(-0.5, 0.5, shape) for name, shape in shapes.items()}
        if complex_weights:
            arrays = {name: array + 1j * draw.uniform(-0.5, 0.5, array.shape) for name, array in arrays.items()}
        order = draw.permutation(M * M)
        np.savez(folder / "weights.npz", **arrays)  # type: ignore[arg-type]
        np.savez(folder / "split.npz", train=order[:30], test=order[30:])
        self.overrides = (
            f"network.initial_weights={folder / 'weights.npz'}",
            f"data.split_file={folder / 'split.npz'}",
            f"network.complex_weights={complex_weights}",
            f"network.hidden_layers={hidden}",
        )
        self.weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
        one = torch.eye(M, dtype=torch.float64)
        self.X, self.labels = {}, {}
        for split, chosen in (("train", order[:30]), ("test", order[30:])):
            chosen = np.sort(chosen)
            self.X[split] = torch.cat([one[chosen // M], one[chosen % M]], dim=1)
            self.labels[split] = torch.from_numpy((chosen // M + chosen % M) % M)

    def outputs(self, w: Weights, split: str, batch_norm: bool = False, scale: float = 1.0) -> Tensor:
        z = self.X[split].to(w["W"].dtype) @ w["W"]
        if batch_norm:
            known = self.X["train"] @ w["W"]
            z = (z - known.mean(dim=0)) / (known.var(dim=0, unbiased=False) + 1e-5).sqrt()
        F = z * z
        for layer in range(len(w) - 2):
            z = F + F @ w[f"H{layer + 1}"]
            F = z * z
        outputs = scale * F @ w["V"]
        return outputs.real if outputs.is_complex() else outputs

    def measure(self, w: Weights, loss: str, **options: Any) -> dict[str, Tensor]:
        """Losses and accuracies of both splits."""
        found = {}
        shift = torch.zeros(M, dtype=torch.float64)
        for split in ("train", "test"):
            outputs, labels = self.outputs(w, split, **options), self.labels[split]
            Y = torch.eye(M, dtype=torch.float64)[labels]
            if loss == "projected_mse":
                if split == "train":
                    shift = (Y - outputs).mean(dim=0)
                outputs = outputs + shift
                value = (Y - outputs).square().sum() / len(Y)
            elif loss == "mse":
                value = (outputs - outputs.mean(dim=1, keepdim=True) - Y + 1 / M).square().sum() / len(Y)
            elif loss == "stablemax":
                s = torch.where(outputs >= 0, outputs + 1, 1 / (1 - outputs))
                value = -((s * Y).sum(dim=1) / s.sum(dim=1)).log().mean()
            else:
                value = (outputs.logsumexp(dim=1) - (outputs * Y).sum(dim=1)).mean()
            found[f"{split}/loss"] = value
            found[f"{split}/accuracy"] = (outputs.argmax(dim=1) == labels).double().mean()
        return found

    def rows(self, steps: int, loss: str, lr: float = 1e-3, decay: float = 2e-4, **options: Any) -> list[Any]:
        w = {name: value.clone().requires_grad_() for name, value in self.weights.items()}
        first = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        second = {name: torch.zeros_like(torch.view_as_real(v) if v.is_complex() else v) for name, v in first.items()}
        rows = []
        for t in range(1, steps + 2):
            found = self.measure(w, loss, **options)
            rows.append({name: value.item() for name, value in found.items()})
            gradients = torch.autograd.grad(found["train/loss"], list(w.values()))
            for (name, value), gradient in zip(w.items(), gradients, strict=True):
                g = gradient + decay * value.detach()
                first[name] = 0.9 * first[name] + 0.1 * g
                parts = torch.view_as_real(g) if g.is_complex() else g
                second[name] = 0.999 * second[name] + 0.001 * parts**2
                m = torch.view_as_real(first[name]) if g.is_complex() else first[name]
                move = lr * (m / (1 - 0.9**t)) / ((second[name] / (1 - 0.999**t)).sqrt() + 1e-8)
                value.data -= torch.view_as_complex(move) if g.is_complex() else move
        return rows


def assert_rows(run: Any, expected: list[dict[str, float]]) -> None:
    assert run.column("step") == list(range(len(expected)))
    for row, plain in zip(run.rows, expected, strict=True):
        for name, value in plain.items():
            tolerance = 1e-6 if name.endswith("accuracy") else 1e-10
            assert row[name] == pytest.approx(value, rel=tolerance, abs=1e-12), (row["step"], name)


@pytest.mark.parametrize("loss", [*LOSSES, "cross_entropy_float64", "stablemax"])
def test_ten_rows_of_every_loss_are_those_of_a_plain_loop(tiny_run: Any, tmp_path: Path, loss: str) -> None:
    plain = Plain(tmp_path)
    expected = plain.rows(10, loss)
    assert expected[10]["train/loss"] < expected[0]["train/loss"]
    assert_rows(tiny_run(*plain.overrides, f"loss={loss}"), expected)


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ({"scale": 0.3}, ["network.output_scale=0.3"]),
        ({"batch_norm": True}, ["network.batch_norm=true"]),
        ({"lr": 0.02, "decay": 0.0}, ["optimizer.lr=0.02", "optimizer.weight_decay=0"]),
    ],
    ids=["output_scale", "batch_norm", "optimizer"],
)
@pytest.mark.parametrize("loss", ["mse", "projected_mse"])
def test_rows_with_an_option_are_those_of_a_plain_loop(
    tiny_run: Any, tmp_path: Path, loss: str, options: dict[str, Any], overrides: list[str]
) -> None:
    plain = Plain(tmp_path)
    assert_rows(tiny_run(*plain.overrides, *overrides, f"loss={loss}"), plain.rows(10, loss, **options))


@pytest.mark.parametrize(("complex_weights", "hidden"), [(True, 0), (False, 2), (True, 1)])
def test_rows_of_other_networks_are_those_of_a_plain_loop(
    tiny_run: Any, tmp_path: Path, complex_weights: bool, hidden: int
) -> None:
    plain = Plain(tmp_path, complex_weights, hidden)
    assert_rows(tiny_run(*plain.overrides, "max_steps=5"), plain.rows(5, "mse"))


@pytest.mark.parametrize("loss", LOSSES)
def test_ten_rows_in_float32_are_those_of_a_plain_loop_in_float64(tiny_run: Any, tmp_path: Path, loss: str) -> None:
    plain = Plain(tmp_path)
    run = tiny_run(*plain.overrides, f"loss={loss}", "trainer.precision=32-true")
    for row, expected in zip(run.rows, plain.rows(10, loss), strict=True):
        for name in ("train/loss", "test/loss"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), (row["step"], name)


# -- one forward pass a step, whatever the precision ------------------------------------------------------------------


class Passes(lightning.Callback):
    """Counts forward passes over the training rows, evaluations, and what the rows are measured with."""

    def __init__(self) -> None:
        self.forward: list[int] = []
        self.evaluated = 0
        self.gradients: list[Tensor | None] = []
        self.second_pass_done: list[bool] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        forward, evaluate = pl_module.network.forward, pl_module.network.evaluate
        training = len(pl_module.data.train)

        def counted(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
            if len(tokens) == training:
                self.forward.append(trainer.global_step)
            return forward(tokens, *args, **kwargs)

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            self.evaluated += 1
            return evaluate(*args, **kwargs)

        pl_module.network.forward, pl_module.network.evaluate = counted, evaluated

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        self.gradients.append(state.readout_gradient)
        self.second_pass_done.append(state._sums.second_pass_done)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("overrides", [[], ["network.hidden_layers=1", "network.batch_norm=true"],
                                       ["network.readout=ridge"], ["network.complex_weights=true"],
                                       ["data.batch_size=999"], ["data.evaluate_every_n_steps=3"]],
                         ids=",".join)  # fmt: skip
def test_a_step_is_one_forward_pass_in_every_precision(tiny_run: Any, precision: str, overrides: list[str]) -> None:
    """And one more for the last row; a row is the very pass that trains."""
    passes = Passes()
    overrides = [*overrides, "max_steps=4", f"trainer.precision={precision}"]
    if precision == "bf16-mixed" and "network.complex_weights=true" in overrides:
        pytest.skip("torch has no mixed precision for complex numbers")
    run = tiny_run(*overrides, callbacks=[passes])
    assert passes.forward == [0, 1, 2, 3, 4]
    assert passes.evaluated == len(run.rows)
    *within, last = passes.gradients
    assert last is None
    known = precision != "bf16-mixed" and "network.readout=ridge" not in overrides
    assert {gradient is not None for gradient in within} == {known}


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 2e-4)])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("overrides", [[], ["network.complex_weights=true"], ["network.output_scale=0.3"],
                                       ["network.activation=silu", "network.trainable_embedding=true"]],
                         ids=",".join)  # fmt: skip
def test_what_a_step_sums_up_is_what_the_features_whole_give(
    tiny_run: Any, overrides: list[str], loss: str, precision: str, tolerance: float
) -> None:
    """In the rows within a run, where the backward pass is the second one over the features."""
    found: list[tuple[Tensor, Tensor]] = []

    class Compare(lightning.Callback):
        def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
            if state.step < 3:
                assert state.readout_gradient is not None
                assert state._sums.second_pass_done
            R, F = state.residual, torch.cat(list(state.share_blocks()))
            F = F - F.mean(dim=0)
            found.append((state.residual_features.clone(), F.mH @ R.to(F.dtype)))
            mean = torch.cat(list(state.share_blocks())).mean(dim=0)
            found.append((state.mean_spread.clone(), (F @ mean.conj()).abs().square().sum().double()))
            found.append((state.feature_norms.clone(), F.abs().square().sum(dim=0).double()))

    options = ["max_steps=3", "optimizer.lr=0.02", f"loss={loss}", f"trainer.precision={precision}"]
    tiny_run(*overrides, *options, callbacks=[Compare()])
    assert len(found) == 12
    for actual, expected in found:
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


# -- a row with a forward pass of its own is measured as one within the run -------------------------------------------


def differences(last: dict[str, Any], within: dict[str, Any]) -> dict[str, Any]:
    """The columns that are not the same."""
    return {name: (value, within[name]) for name, value in last.items() if value != within[name]}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["network.hidden_layers=1", "loss=projected_mse"],
        ["network.batch_norm=true", "network.activation=silu"],
        ["network.readout=ridge", "network.hidden_layers=1"],
        ["network.trainable_embedding=true", "network.activation=tanh", "loss=cross_entropy"],
        ["data.batch_size=6", "data.evaluate_every_n_steps=5"],
        ["network={name: transformer, activation: relu, width: 16, transformer: {heads: 2, feedforward: 16}}"],
    ],
    ids=",".join,
)
def test_in_mixed_precision_the_last_row_is_that_of_a_longer_run_bit_for_bit(
    tiny_run: Any, overrides: list[str]
) -> None:
    """Row 20 is the first with an eigengap."""
    steps = 10 if overrides else 20
    options = [*overrides, "trainer.precision=bf16-mixed", "optimizer.lr=0.01", "callbacks.interaction.every_n_steps=5"]
    short, long = tiny_run(*options, f"max_steps={steps}"), tiny_run(*options, f"max_steps={steps + 5}")
    last, within = short.rows[-1], next(row for row in long.rows if row["step"] == steps)
    assert last["step"] == steps
    assert last["gradient/norm"] is not None
    assert differences(last, within) == {}


def test_in_mixed_precision_the_row_that_ends_a_run_early_is_that_of_the_whole_run(tiny_run: Any) -> None:
    options = ["trainer.precision=bf16-mixed", "optimizer.lr=0.01", "max_steps=12", "network.hidden_layers=1"]
    options += ["task.name=expression", "task.modulus=7", "task.expression=x", "callbacks.interaction.enabled=false"]
    whole = tiny_run(*options)
    stopped = tiny_run(*options, f"stop_at_test_accuracy={max(whole.column('test/accuracy')[:8])}")
    last = stopped.rows[-1]
    assert 1 <= last["step"] <= 8
    within = whole.rows[int(last["step"])]
    assert differences(last, within | {"gradient/node_coupling": last["gradient/node_coupling"]}) == {}


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-3)])
def test_the_last_row_is_that_of_a_longer_run_up_to_rounding(tiny_run: Any, precision: str, tolerance: float) -> None:
    """Without a backward pass it sums the features up in another order; what comes from the outputs is the same."""
    options = [f"trainer.precision={precision}", "optimizer.lr=0.01"]
    short, long = tiny_run(*options, "max_steps=20"), tiny_run(*options, "max_steps=25")
    # A last row has the columns of every cadence.
    assert short.rows[20]["interaction/repulsion"] is not None
    for name in (name for name, value in long.rows[20].items() if value is not None):
        value, within = short.rows[20][name], long.rows[20][name]
        assert value == pytest.approx(within, rel=tolerance, abs=1e-12), name
        if name.startswith(("train/", "test/", "weights/", "update/")):
            assert value == within, name


def test_the_kernel_that_a_run_announces_is_the_one_it_uses(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for precision, words in (("bf16-mixed", "plain formula (mixed precision)"), ("64-true", "rows in blocks")):
        tiny_run(f"trainer.precision={precision}", "max_steps=1")
        assert words in capsys.readouterr().out


# -- which rows there are, and of what --------------------------------------------------------------------------------


def weights_after(run: Any, plain: Plain, loss: str) -> None:
    """Every row's losses are those of the weights that the callbacks saw in it, over the whole of both splits."""
    for row in run.rows:
        weights = run.seen[int(row["step"])].weights
        found = {name: value.item() for name, value in plain.measure(weights, loss).items()}
        assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-6)
        assert row["train/loss"] == pytest.approx(found["train/loss"], rel=1e-10)
        assert row["test/loss"] == pytest.approx(found["test/loss"], rel=1e-10)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["data.batch_size=8"], [0, 4, 8, 10]),  # 30 rows make four batches: once an epoch
        (["data.batch_size=8", "data.evaluate_every_n_steps=3"], [0, 3, 6, 9, 10]),
        (["data.batch_size=8", "data.evaluate_every_n_steps=5"], [0, 5, 10]),
        (["data.batch_size=8", "data.evaluate_every_n_steps=1", "max_steps=3"], [0, 1, 2, 3]),
        (["data.evaluate_every_n_steps=4"], [0, 4, 8, 10]),
        (["data.evaluate_every_n_steps=99"], [0, 10]),
        (["data.evaluate_every_n_steps=log3"], [0, 1, 3, 5, 10]),
        (["data.batch_size=8", "data.evaluate_every_n_steps=log1", "max_steps=12"], [0, 1, 10, 12]),
    ],
    ids=lambda value: ",".join(map(str, value)),
)
@pytest.mark.parametrize("loss", ["mse", "projected_mse"])
def test_rows_stand_at_the_cadence_and_describe_all_rows_of_both_splits(
    tiny_run: Any, tmp_path: Path, overrides: list[str], steps: list[int], loss: str
) -> None:
    plain = Plain(tmp_path)
    run = tiny_run(*plain.overrides, *overrides, f"loss={loss}")
    assert run.column("step") == steps == sorted(run.seen)
    weights_after(run, plain, loss)
    for step, seen in run.seen.items():
        z = plain.X["train"] @ seen.weights["W"]
        torch.testing.assert_close(seen.features, z * z, rtol=1e-10, atol=1e-12, msg=f"features of row {step}")


def test_every_pass_of_mini_batches_trains_on_every_row_once(tiny_run: Any, tmp_path: Path) -> None:
    plain = Plain(tmp_path)
    run = tiny_run(*plain.overrides, "data.batch_size=8", "max_steps=12")
    assert [len(batch) for batch in run.batches] == [8, 8, 8, 6] * 3
    whole = sorted(map(tuple, run.data.train.tokens.tolist()))
    assert len(whole) == 30
    orders = []
    for part in range(0, 12, 4):
        orders.append([tuple(row) for batch in run.batches[part : part + 4] for row in batch.tokens.tolist()])
        assert sorted(orders[-1]) == whole
    assert orders[0] != orders[1]


def test_the_seed_of_the_data_varies_split_and_batches_and_the_seed_of_the_run_the_weights(tiny_run: Any) -> None:
    def run(*overrides: str) -> tuple[Path, Tensor, list[list[int]], list[list[int]]]:
        found = tiny_run("data.batch_size=8", "max_steps=4", *overrides)
        batches = [batch.tokens.tolist() for batch in found.batches]
        return found.directory, found.seen[0].weights["W"], found.data.train.tokens.tolist(), batches

    own, other_data, other_weights = run("seed=3"), run("seed=3", "data.seed=4"), run("seed=5", "data.seed=3")
    assert len({own[0], other_data[0], other_weights[0]}) == 3
    assert torch.equal(own[1], other_data[1])
    assert not torch.equal(own[1], other_weights[1])
    assert own[2:] == other_weights[2:]
    assert own[2] != other_data[2]


def test_a_mini_batch_step_is_one_update_on_that_batch(tiny_run: Any, tmp_path: Path) -> None:
    """SGD: the difference of the weights is −lr times the gradient of the batch's own loss."""
    plain = Plain(tmp_path)
    sgd = ["optimizer.hidden={name: sgd}", "optimizer.output={name: sgd}", "optimizer.weight_decay=0"]
    run = tiny_run(*plain.overrides, *sgd, "optimizer.lr=0.5", "data.batch_size=8", "data.evaluate_every_n_steps=1")
    for t, batch in enumerate(run.batches):
        before = {name: value.clone().requires_grad_() for name, value in run.seen[t].weights.items()}
        one = torch.eye(M, dtype=torch.float64)
        X = torch.cat([one[batch.tokens[:, 0]], one[batch.tokens[:, 1]]], dim=1)
        outputs = (X @ before["W"]).square() @ before["V"]
        loss = (outputs - outputs.mean(dim=1, keepdim=True) - one[batch.labels] + 1 / M).square().sum(dim=1).mean()
        loss.backward()
        for name, value in before.items():
            expected = value.detach() - 0.5 * value.grad  # type: ignore[operator]
            torch.testing.assert_close(run.seen[t + 1].weights[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inner_product", [False, True])
def test_normalized_weights_are_normalized_after_each_update(tiny_run: Any, inner_product: bool) -> None:
    """Row 0 is the initial weights, as they were drawn."""
    run = tiny_run(
        "network.normalize_weights=true", f"network.inner_product={inner_product}", "max_steps=3", "optimizer.lr=0.5"
    )
    for t in range(4):
        W, V = run.seen[t].weights["W"], run.seen[t].weights["V"]
        longest = torch.stack(W.split(M)).norm(dim=1).max().item()
        assert (V.sum(dim=1).abs().max().item() < 1e-10) is (t > 0)
        if inner_product:
            # Updates of .5 drive the longest column to the cap.
            assert (longest == pytest.approx(1, abs=1e-12)) is (t > 0)
        else:
            assert (W.sum(dim=0).abs().max().item() < 1e-10) is (t > 0)


# -- ridge readout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "projected_mse"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["network.width=60"],
        ["network.output_scale=0.4"],
        ["network.complex_weights=true"],
        ["network.complex_weights=true", "network.width=60", "network.output_scale=3"],
        ["network.hidden_layers=1", "network.batch_norm=true"],
        ["data.batch_size=5", "data.evaluate_every_n_steps=2"],
    ],
    ids=lambda value: ",".join(value),
)
def test_a_ridge_readout_minimizes_the_loss_with_decay_in_every_row(
    tiny_run: Any, overrides: list[str], loss: str
) -> None:
    """L(V) + (λ/2)‖V‖² with η = nλ/2 has no slope in V; and W is trained."""
    run = tiny_run("network.readout=ridge", "optimizer.weight_decay=0.05", f"loss={loss}", "max_steps=4", *overrides)
    network, rows = run.module.network, run.data.train
    for row in run.rows:
        seen = run.seen[int(row["step"])]
        V = seen.weights["V"].clone().requires_grad_()
        outputs = network.config.output_scale * seen.features @ V
        value = build_loss(loss)(outputs.real if outputs.is_complex() else outputs, rows.labels)
        assert row["train/loss"] == pytest.approx(value.item(), rel=1e-10)
        objective = value + 0.05 / 2 * V.abs().square().sum()
        (slope,) = torch.autograd.grad(objective, V)
        assert slope.abs().max() < 1e-10
        assert V.abs().max() > 1e-3
    assert not torch.equal(run.seen[0].weights["W"], run.seen[4].weights["W"])


def test_at_a_ridge_readout_of_eq_1_the_columns_show_the_equilibrium(tiny_run: Any) -> None:
    run = tiny_run("network.readout=ridge", "network.ridge=0.7", "loss=projected_mse", "network.output_scale=0.4")
    for row in run.rows:
        assert row["gradient/readout_equilibrium"] == pytest.approx(1, abs=1e-9)
        assert row["gradient/coupling"] == pytest.approx(1, abs=1e-9)
        assert row["gradient/effective_ridge"] == pytest.approx(0.7, rel=1e-8)


# -- a Trainer of one's own -------------------------------------------------------------------------------------------


class Rows(lightning.Callback):
    """The rows, by their step."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    def on_row(self, trainer: Any, module: Any, row: dict[str, Any]) -> None:
        self.rows[int(row["step"])] = dict(row)


Fit = Callable[..., tuple[dict[int, dict[str, Any]], Any]]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(max_steps=3, ...)``: rows and module of the tiny run, trained by a Trainer with these arguments."""

    def call(*, callbacks: Sequence[lightning.Callback] = (), hook: Any = None, **arguments: Any) -> Any:
        values = {"task": {"order": 7}, "network": {"width": 16}, "optimizer": {"lr": 0.02}}
        config = train.read_config({**values, "trainer": {"accelerator": "cpu"}})
        with train.RankGroup(config, [], train.join_process_group) as ranks:
            _, module, data = train.assemble(config, tmp_path, ranks)
        if hook is not None:
            module.network.V.register_hook(hook)
        rows = Rows()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            **{"max_steps": 3, "accelerator": "cpu", "devices": 1, "enable_model_summary": False, **quiet, **arguments},
            default_root_dir=tmp_path,
            callbacks=[*callbacks, Gradient(), rows],
        )
        with quiet_lightning():
            trainer.fit(module, data)
        return rows.rows, module

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler"),
        ({"max_steps": -1, "max_epochs": 3}, "give the Trainer max_steps"),
        ({"precision": "bf16-true"}, "precision='bf16-true'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_trainer_that_would_make_the_rows_wrong_is_refused_with_the_reason(
    fit: Fit, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        fit(**arguments)
    message = str(refused.value)
    assert words in message
    assert message.endswith(".")
    assert message.count(". ") == 0


@pytest.mark.parametrize("kind", [DDPStrategy, FSDPStrategy])
def test_a_strategy_that_does_not_sum_gradients_is_refused(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, kind: type[DDPStrategy]
) -> None:
    """Lightning's own average over devices as if shares were even; the rows would be divided by nobody."""
    module = fit(max_steps=1)[1]
    monkeypatch.setattr(lightning.Trainer, "strategy", kind(parallel_devices=[torch.device("cpu")]))
    with pytest.raises(InputError, match=rf"{kind.__name__} does not sum"):
        module.on_fit_start()


class Scaling(lightning.Callback):
    """Multiplies the gradients at a hook of Lightning's."""

    def __init__(self, at: str) -> None:
        setattr(self, at, self.scale)

    def scale(self, trainer: Any, module: Any, *args: Any) -> None:
        for parameter in module.network.parameters():
            parameter.grad.mul_(3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_clip_val": 1e-4},
        {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
        {"callbacks": [Scaling("on_after_backward")]},
        {"callbacks": [Scaling("on_before_optimizer_step")]},
        {"hook": lambda gradient: 3 * gradient},
        {"max_epochs": 5},
        {"limit_train_batches": 3, "max_epochs": 2},
        {"limit_train_batches": 1, "max_epochs": 3, "max_steps": -1},
        {"fast_dev_run": 3},
    ],
    ids=" ".join,
)
def test_a_row_describes_the_gradient_of_the_loss_whatever_is_done_to_it_later(
    fit: Fit, arguments: dict[str, Any]
) -> None:
    """The columns of G_F of each row are those of its weights, and there is a row for each step and one last row."""
    told: dict[int, tuple[float, float]] = {}

    class Dense(lightning.Callback):
        def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
            V, F = state.readout.double(), center(state.features.double())
            R = state.residual.double()
            G, coupled, pull = R @ V.T, R @ (R.T @ F), F.T @ R
            told[state.step] = (
                ((G * coupled).sum() / G.norm() / coupled.norm()).item(),
                (pull.norm() / V.norm()).item(),
            )

    callbacks = [*arguments.get("callbacks", ()), Dense()]
    rows, module = fit(**(arguments | {"callbacks": callbacks}))
    assert list(rows) == list(told) == [0, 1, 2, 3] == list(range(module.last_row + 1))
    for step, (coupling, ridge) in told.items():
        assert rows[step]["gradient/coupling"] == pytest.approx(coupling, rel=1e-4), step
        assert rows[step]["gradient/effective_ridge"] == pytest.approx(ridge, rel=1e-4), step


# -- how a run ends ---------------------------------------------------------------------------------------------------


def test_stopping_at_a_test_accuracy_ends_with_the_update_after_the_first_row_that_has_it(tiny_run: Any) -> None:
    """Also where the accuracy is the target to the last digit: 21 of 30 rows are .7."""
    options = ["task.name=expression", "task.modulus=7", "task.expression=x", "max_steps=50", "optimizer.lr=0.01"]
    options.append("trainer.precision=32-true")
    whole = tiny_run(*options)
    hits = [round(30 * accuracy) for accuracy in whole.column("test/accuracy")]
    first = next(t for t, count in enumerate(hits) if count >= 21)
    assert hits[first] == 21
    assert 3 < first < 49
    stopped = tiny_run(*options, "stop_at_test_accuracy=0.7")
    assert stopped.column("step") == list(range(first + 2))
    assert stopped.column("train/loss") == whole.column("train/loss")[: first + 2]
    never = tiny_run(*options, "stop_at_test_accuracy=1")
    assert max(hits) < 30
    assert never.column("step") == list(range(51))


@pytest.mark.parametrize(("lr", "value"), [(30.0, "inf"), (1e7, "nan"), (1e9, "inf")])
def test_a_loss_that_is_not_finite_is_divergence_and_no_checkpoint_holds_it(
    tiny_run: Any, make_record: Callable[[], Any], lr: float, value: str
) -> None:
    """Whether it creeps up over some rows or overflows at once."""
    record = make_record()
    with pytest.raises(DivergenceError, match=rf"Training diverged: train/loss is {value} in row \d+;"):
        tiny_run(
            f"optimizer.lr={lr}",
            "optimizer.hidden={name: sgd}",
            "optimizer.output={name: sgd}",
            "trainer.precision=32-true",
            "callbacks.checkpoint={every_n_steps: 1, keep: 99}",
            into=record,
        )
    losses = record.column("train/loss")
    assert len(losses) >= 2
    assert all(math.isfinite(loss) for loss in losses[:-1])
    kept = sorted((record.directory / "checkpoints").glob("row-*.ckpt"))
    assert [path.name for path in kept] == [f"row-{t:06d}.ckpt" for t in range(1, len(losses) - 1)]
    for path in kept:
        for value in torch.load(path, weights_only=True)["state_dict"].values():
            assert value.isfinite().all()


# -- a checkpoint of row t is row t -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss=projected_mse", "network.batch_norm=true", "network.hidden_layers=1"],
        ["loss=cross_entropy", "data.batch_size=8", "data.evaluate_every_n_steps=1"],
        ["network.readout=ridge"],
        ["network.trainable_embedding=true", "network.complex_weights=true", "network.normalize_weights=true"],
    ],
    ids=lambda value: ",".join(value),
)
def test_a_checkpoint_evaluated_reproduces_its_row_bit_for_bit(
    tiny_run: Any, overrides: list[str], precision: str
) -> None:
    run = tiny_run(*overrides, f"trainer.precision={precision}", "callbacks.checkpoint={every_n_steps: 3, keep: 9}")
    dtype = torch.float64 if precision == "64-true" else torch.float32
    task, loss, data = build_task({"name": "cyclic", "order": 7}), run.module.loss, run.data
    paths = sorted((run.directory / "checkpoints").glob("row-*.ckpt"))
    assert [path.name for path in paths] == [f"row-{t:06d}.ckpt" for t in (3, 6, 9, 10)]
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        row = run.rows[checkpoint["li2_lightning"]["row"]]
        assert path.name == f"row-{int(row['step']):06d}.ckpt"
        section = dict(checkpoint["li2_lightning"]["config"]["network"], initial_weights=str(path))
        del section["transformer"]
        weights = read_weights(str(path), "network.initial_weights")
        network = build_network(NetworkConfig(**section), task, dtype, generator(9, "other weights"), weights)
        with torch.no_grad():
            train = network(data.train.tokens)
            test = network(data.test.tokens, train.moments)
            offset = loss.offset(train.outputs, data.train.labels)
            for split, outputs, labels in (
                ("train", train.outputs, data.train.labels),
                ("test", test.outputs, data.test.labels),
            ):
                outputs = outputs if offset is None else outputs + offset
                assert row[f"{split}/loss"] == (loss.rows(outputs, labels).sum() / len(labels)).item()


def test_a_checkpoint_holds_every_weight_once(tiny_run: Any) -> None:
    run = tiny_run("network.hidden_layers=1", "max_steps=1")
    state = torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {"network.W", "network.V", "network.H1"}


# -- rows on their way to the host ------------------------------------------------------------------------------------


def test_rows_reach_the_host_as_floats_with_none_where_undefined() -> None:
    rows: list[dict[str, Tensor | float]] = [
        {"step": 3.0, "train/loss": torch.tensor(float("nan")), "a": torch.tensor(0.1, dtype=torch.float64)},
        {
            "step": 4.0,
            "train/loss": torch.tensor(0.5),
            "b": float("inf"),
            "c": torch.tensor(7),
            "d": torch.tensor(True),
        },
    ]
    first, second = rows_to_host(rows)
    assert first["a"] == 0.1
    assert math.isnan(first["train/loss"])  # type: ignore[arg-type]
    assert second == {"step": 4.0, "train/loss": 0.5, "b": None, "c": 7.0, "d": 1.0}
    assert rows_to_host([]) == []


class Tiny(lightning.Callback):
    """Whether a number below the normal range was zero in the run."""

    is_zero: bool | None = None

    def on_train_start(self, *args: Any) -> None:
        self.is_zero = sys.float_info.min / 2 == 0 and not (torch.full((4,), 1e-39) * 1).any()


@pytest.mark.parametrize("before", [False, True])
def test_in_a_run_numbers_below_the_normal_range_are_zero(before: bool, tiny_run: Any) -> None:
    torch.set_flush_denormal(before)
    try:
        tiny_run("max_steps=1", callbacks=[look := Tiny()])
        assert look.is_zero
        assert (sys.float_info.min / 2 == 0) == before
    finally:
        torch.set_flush_denormal(False)
