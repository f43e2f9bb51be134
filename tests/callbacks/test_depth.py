"""The columns of each hidden layer: against G_l by autograd of J and dense matrices, alone, in a stack, and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional

import train
from li2_lightning import groups
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.networks.activations import find_activation
from tests.conftest import cosine
from tests.sweeps.test_stack import assert_same, rows

ON = "callbacks.depth.every_n_steps=1"
DEEP = [ON, "network.hidden_layers=2", "network.activation=relu"]


def forward(run: Any, w: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """F_l and z_l of the training rows, with X as a matrix of ones and zeros."""
    options = run.module.network.config
    X = functional.one_hot(run.data.train.tokens, run.data.task.num_tokens).to(w["W"].dtype)
    sigma = find_activation(options.activation)

    def norm(z: Tensor) -> Tensor:
        if not options.batch_norm:
            return z
        centred = z - z.mean(dim=0)
        return centred / (centred.abs().square().mean(dim=0) + 1e-5).sqrt()

    if options.inner_product:
        z = norm(torch.stack([X[:, i] @ part for i, part in enumerate(w["W"].split(X.shape[2]))]).prod(dim=0))
        features, before = [z], [z]
    else:
        before = [norm(X.flatten(1) @ w["W"])]
        features = [sigma(before[0])]
    for number in range(1, options.hidden_layers + 1):
        before.append(norm(features[-1] @ weights_between(run, w, number + 1)))
        features.append(sigma(before[-1]))
    return features, before


def weights_between(run: Any, w: dict[str, Tensor], number: int) -> Tensor:
    H = w[f"H{number - 1}"]
    return H + torch.eye(len(H), dtype=H.dtype) if run.module.network.config.residual else H


def largest(matrix: Tensor, blocks: list[Tensor]) -> tuple[float, int]:
    """Purity and coverage of the columns of a matrix of some operands under each other."""
    parts = torch.stack(
        [sum((P.to(h.dtype) @ h).abs().square().sum(dim=0) for h in matrix.split(len(P))) for P in blocks]  # type: ignore[misc]
    )
    shares = parts / parts.sum(dim=0)
    return float(shares.max(dim=0).values.nanmean()), int((shares > 0.5).any(dim=1).sum())


def dense(run: Any, step: int) -> dict[str, float]:
    """Every column of a row, from n×K matrices."""
    w, options, labels = run.seen[step].weights, run.module.network.config, run.data.train.labels
    C = run.seen[step].outputs.shape[1]
    Y = functional.one_hot(labels, C).double()
    features, before = forward(run, w)
    leaves = [F.detach() for F in features]
    F = [leaf.clone().requires_grad_() for leaf in leaves]
    # J as a function of each F_l alone, by the layers above it.
    sigma, found = find_activation(options.activation), {}
    Yc = Y - Y.mean(dim=0)
    blocks = [torch.tensor(block.projector) for block in isotypic_blocks(groups.cyclic(C))[1:]]
    X = functional.one_hot(run.data.train.tokens, C).double().flatten(1)
    for place, below in enumerate(F):
        number, last, gates = place + 1, below, torch.ones(len(labels), 1).double()
        for above in range(number + 1, len(F) + 1):
            z = last @ weights_between(run, w, above)
            if options.batch_norm:
                centred = z - z.mean(dim=0)
                z = centred / (centred.abs().square().mean(dim=0) + 1e-5).sqrt()
            if not w["W"].is_complex():
                gates = gates * sigma.derivative(z.detach()).mean(dim=1, keepdim=True)
            last = sigma(z)
        outputs = options.output_scale * (last @ w["V"])
        R = Y - (outputs.real if outputs.is_complex() else outputs)
        R = R - R.mean(dim=0)
        (slope,) = torch.autograd.grad(0.5 * R.square().sum(), below)
        G, here, R, T = -slope, leaves[place], R.detach().to(slope.dtype), Yc.to(slope.dtype)
        centred = here - here.mean(dim=0)
        means = torch.stack([here[labels == c].mean(dim=0) - here.mean(dim=0) for c in range(C)])
        between = sum(((labels == c).sum() * means[c].abs().square() for c in range(C)), torch.zeros(()))
        found |= {
            f"gradient/{number}/norm": float(G.norm()),
            f"gradient/{number}/independence": cosine(G, T @ (T.mT @ here)),
            f"gradient/{number}/coupling": cosine(G, R @ (R.mT @ here)),
            f"features/{number}/label_share": float((between / centred.abs().square().sum(dim=0)).nanmean()),
            f"features/{number}/label_purity": largest(means, blocks)[0],
        }
        if number < len(F) and not (options.batch_norm or w["W"].is_complex()):
            found[f"gradient/{number}/prediction"] = cosine(G, gates * (Yc @ (Yc.mT @ (gates * here))))
        fit = w["W"] if number == 1 else torch.linalg.pinv(X).to(here.dtype) @ before[place].detach()
        found[f"features/{number}/purity"], found[f"features/{number}/coverage"] = largest(fit, blocks)
        if number > 1:
            A = weights_between(run, w, number)
            E = 0.5 * (T.mT @ sigma(leaves[place - 1] @ (A / A.abs().square().sum(dim=0).sqrt()))).abs().square().sum(
                dim=0
            )
            found[f"energy/{number}/mean"] = float(E.mean())
            found[f"weights/{number}/isometry"] = cosine(A @ A.mH, torch.eye(len(A), dtype=A.dtype))
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.hidden_layers=2", "network.activation=relu"],
        ["network.hidden_layers=2", "network.activation=tanh", "network.residual=false", "loss=projected_mse"],
        ["network.hidden_layers=1", "network.batch_norm=true", "network.output_scale=0.5"],
        ["network.hidden_layers=1", "network.complex_weights=true", "network.residual=false"],
        ["network.hidden_layers=1", "network.inner_product=true", "loss=cross_entropy"],
    ],
    ids=",".join,
)
def test_columns_are_those_of_dense_matrices(tiny_run: Any, overrides: list[str]) -> None:
    """G_l is the gradient of J of Eq. 1, whatever the training loss."""
    run = tiny_run(ON, *overrides, "data.train_fraction=0.7", "max_steps=2", "optimizer.lr=0.05", "network.width=5")
    for row in run.rows:
        expected = dense(run, int(row["step"]))
        found = {name: row[name] for name in expected}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)
        layers = run.module.network.config.hidden_layers + 1
        measured = {name for name in row if len(name.split("/")) == 3 and not name.startswith("stage")}
        assert measured == {*expected, "energy/1/mean"}
        assert row["energy/1/mean"] == pytest.approx(row["energy/mean"], rel=1e-12)
        assert row["features/1/purity"] == pytest.approx(row["features/purity"], rel=1e-12)
        assert row["features/1/coverage"] == row["features/coverage"]
        for name in ("norm", "independence", "coupling"):
            assert row[f"gradient/{layers}/{name}"] == pytest.approx(row[f"gradient/{name}"], rel=1e-9, abs=1e-12)


def test_a_transformer_has_what_its_readout_sees(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(ON, "network={name: transformer, activation: relu}", "max_steps=1")
    assert "no layers of nodes" in capsys.readouterr().err
    for row in run.rows:
        names = {name for name in row if len(name.split("/")) == 3}
        gradient = ("norm", "independence", "coupling")
        assert names == {
            *(f"gradient/1/{name}" for name in gradient),
            "features/1/label_share",
            "features/1/label_purity",
            "stage/1/index",
        }
        for name in gradient:
            assert row[f"gradient/1/{name}"] == pytest.approx(row[f"gradient/{name}"], rel=1e-9)


def test_a_task_without_a_group_has_no_columns_by_block(tiny_run: Any) -> None:
    run = tiny_run(*DEEP, "task.name=expression", "task.modulus=7", "task.expression=x", "max_steps=1")
    assert not {"features/1/purity", "features/2/label_purity"} & run.rows[0].keys()
    assert run.rows[0]["features/2/label_share"] is not None


# Everything agrees: II at the fifth row, III at the fifth after it.
ALWAYS = (
    "callbacks.stages={train_accuracy: 0, independence: -1, independence_fall: 9, coupling_lead: -2, "
    "stalled_alignment: -1}"
)


def test_each_layer_has_its_own_stages(tiny_run: Any) -> None:
    run = tiny_run(*DEEP, ALWAYS, "max_steps=12")
    document = json.loads((run.directory / "stages.json").read_text(encoding="utf-8"))
    assert len(document["layers"]) == 3
    for number, layer in enumerate(document["layers"], start=1):
        assert [event["to"] for event in layer["events"]] == [2, 3]
        for event in layer["events"]:
            own = f"gradient/{number}/independence"
            assert event["evidence"][own] == run.rows[event["step"]][own]
            assert f"peak of {own}" in event["evidence"]
        first, second = (event["step"] for event in layer["events"])
        assert run.column(f"stage/{number}/index") == [1 + (t >= first) + (t >= second) for t in range(13)]
    # What the readout sees is the last layer.
    assert document["layers"][-1]["events"][0]["step"] == document["events"][0]["step"]


def test_a_resumed_run_continues_the_stages_of_its_layers(tiny_run: Any, tmp_path: Path) -> None:
    options = [*DEEP, ALWAYS, "callbacks.checkpoint.every_n_steps=3"]
    whole = tiny_run(*options, "max_steps=8", f"output_dir={tmp_path / 'whole'}")
    short = tiny_run(*options, "max_steps=5", f"output_dir={tmp_path / 'short'}")
    checkpoint = short.directory / "checkpoints" / "last.ckpt"
    resumed = tiny_run(*options, "max_steps=8", f"output_dir={tmp_path / 'more'}", f"resume={checkpoint}")
    for row in resumed.rows:
        own = {name: value for name, value in row.items() if len(name.split("/")) == 3}
        # The last row of the short run had a forward pass of its own, which rounds differently.
        assert own == pytest.approx({name: whole.rows[int(row["step"])][name] for name in own}, rel=1e-12)
    assert (whole.directory / "stages.json").read_text() == (resumed.directory / "stages.json").read_text()


@pytest.mark.parametrize(
    "network",
    [
        ["network.hidden_layers=2", "network.residual=false", "network.activation=relu"],
        pytest.param(
            ["network.hidden_layers=1", "network.batch_norm=true", "network.activation=tanh"], marks=pytest.mark.slow
        ),
        pytest.param(["network.hidden_layers=1", "network.complex_weights=true"], marks=pytest.mark.slow),
    ],
    ids=",".join,
)
def test_columns_in_a_stack_are_those_of_the_run_alone(network: list[str], tmp_path: Path) -> None:
    def config(folder: str, seed: int) -> Any:
        values = {
            "seed": seed,
            "max_steps": 6,
            "output_dir": str(tmp_path / folder),
            "task": {"order": 7},
            "network": {"width": 16},
            "callbacks": {"depth": {"every_n_steps": 1}, "report": {"enabled": False}, "pictures": {"enabled": False}},
            "logger": {"mode": "disabled"},
            "trainer": {"accelerator": "cpu", "precision": "64-true"},
        }
        return train.read_config(OmegaConf.merge(values, OmegaConf.from_dotlist(network)))

    alone = [train.run(config("alone", seed)) for seed in (0, 1)]
    together = train.run_stack([config("together", seed) for seed in (0, 1)])
    assert any(name.startswith("gradient/2/") for name in rows(alone[0])[0])
    for one, other in zip(alone, together, strict=True):
        assert_same(rows(one), rows(other))


def test_random_square_weights_are_no_isometry(tiny_run: Any) -> None:
    """cos(AAᵀ, I) = 1/√2 for a wide random square matrix; the residual link brings it nearer to 1."""
    options = [ON, "network.hidden_layers=1", "network.width=256", "max_steps=1"]
    bare = tiny_run(*options, "network.residual=false").rows[0]["weights/2/isometry"]
    assert bare == pytest.approx(math.sqrt(0.5), abs=0.01)
    # E‖AAᵀ − (4/3)I‖² = K(2/3 + 1/9) for A = I + H with entries of variance 1/(3K).
    assert tiny_run(*options).rows[0]["weights/2/isometry"] == pytest.approx(
        (4 / 3) / math.sqrt(16 / 9 + 7 / 9), abs=0.01
    )


def test_it_is_off_by_default() -> None:
    assert "depth" not in train.read_config({}).callbacks
