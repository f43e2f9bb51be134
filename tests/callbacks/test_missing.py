"""Explained and missing blocks: against dense matrices, on a network that is built by hand, and over a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import train
from callbacks.missing import Missing
from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.seeds import generator
from li2_lightning.theory.energy import ascend, block_shares, energy_gradient
from li2_lightning.theory.interaction import top_down_energy
from tests.theory.test_features import SQUARE, all_rows, nodes_in

ON = "callbacks.missing.every_n_steps=1"
OFTEN = [ON, "callbacks.missing.table_every_n_steps=1", "callbacks.missing.ascent_every_n_steps=2"]
S3 = ["task.name=symmetric", "task.degree=3"]


def dense(run: Any, group: groups.FiniteGroup, step: int) -> dict[str, Any]:
    """Every quantity of a row from n×C and n×K matrices."""
    seen = run.seen[step]
    projectors = [torch.tensor(block.projector) for block in isotypic_blocks(group)[1:]]
    Y = functional.one_hot(run.data.train.labels, group.order).double()
    R, Yc = (m - m.mean(dim=0) for m in (Y - seen.outputs, Y))
    V = run.module.network.config.output_scale * seen.weights["V"]
    F = seen.features - seen.features.mean(dim=0)

    def by_block(of: Any) -> Tensor:
        return torch.stack([of(P).abs().square().sum() for P in projectors])

    residual = by_block(lambda P: R @ P)
    target = by_block(lambda P: Yc @ P)
    gradient = by_block(lambda P: (R @ P).to(V.dtype) @ V.mH)
    coupled = by_block(lambda P: (R @ P @ R.mT).to(F.dtype) @ F)
    halves = seen.weights["W"].split(group.order)
    parts = torch.stack([sum((P.to(h.dtype) @ h).abs().square().sum(dim=0) for h in halves) for P in projectors])  # type: ignore[misc]
    covered = (parts / parts.sum(dim=0) > 0.5).any(dim=1)
    missing = {name: (x[~covered].sum() / x.sum()).item() for name, x in
               (("residual", residual), ("gradient", gradient), ("target", target))}  # fmt: skip
    return {
        "explained": 1 - residual / target,
        "residual": residual / residual.sum(),
        "gradient": gradient / gradient.sum(),
        "coupled": coupled / coupled.sum(),
        "covered": covered,
        "R": R - R.mean(dim=1, keepdim=True),
        "missing": missing,
    }


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        ([], groups.cyclic(7)),
        ([*S3, "loss=projected_mse", "network.output_scale=2"], groups.symmetric(3)),
        ([*S3, "network.activation=silu", "network.hidden_layers=1", "loss=cross_entropy"], groups.symmetric(3)),
        pytest.param(
            ["network.complex_weights=true", "network.activation=relu"], groups.cyclic(7), marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value.name,
)
def test_columns_and_table_are_those_of_dense_matrices(
    tiny_run: Any, overrides: list[str], group: groups.FiniteGroup
) -> None:
    run = tiny_run(*overrides, *OFTEN, "network.width=4", "max_steps=3", "optimizer.lr=0.1")
    network = run.module.network
    with np.load(run.directory / "features" / "blocks.npz") as table:
        arrays = dict(table)
    assert arrays["steps"].tolist() == [0, 1, 2, 3]
    assert arrays["labels"].tolist() == [block.label for block in isotypic_blocks(group)[1:]]
    for step, row in enumerate(run.rows):
        found = dense(run, group, step)
        for name in ("explained", "residual", "gradient", "coupled", "covered"):
            np.testing.assert_allclose(arrays[name][step], found[name].numpy(), rtol=1e-5, atol=1e-6)
        assert row["features/explained"] == (found["explained"] > 0.5).sum().item()
        for name in ("residual", "gradient"):
            if found["covered"].all():
                assert row[f"interaction/missing_{name}"] is None
            else:
                ratio = found["missing"][name] / found["missing"]["target"]
                assert row[f"interaction/missing_{name}"] == pytest.approx(ratio, rel=1e-9)
        W = run.seen[step].weights["W"]
        unit = network.node_features(run.data.train.tokens, W / W.abs().square().sum(dim=0).sqrt())
        energies = 0.5 * (found["R"].mT.to(unit.dtype) @ unit).abs().square().sum(dim=0)
        assert row["energy/residual_mean"] == pytest.approx(energies.mean().item(), rel=1e-9)
        homogeneous = network.node_degree is not None
        assert (row.get("energy/residual_missing") is not None) == (homogeneous and step in (0, 2, 3))


@pytest.mark.parametrize(
    "overrides", [["network.activation=relu"], ["loss=projected_mse", "network.shared_embedding=true"]]
)
def test_fresh_nodes_ascend_the_energy_of_the_residual(tiny_run: Any, overrides: list[str]) -> None:
    """By the gradient of the theory on a dense X; Gaussian nodes of the same seed."""
    run = tiny_run(*overrides, *OFTEN, "callbacks.missing.ascent_steps=5", "network.width=4", "max_steps=2")
    group, sigma, tokens = groups.cyclic(7), run.module.network.activation, run.data.train.tokens
    X = torch.cat([functional.one_hot(part, 7) for part in tokens.unbind(dim=1)], dim=1).double()
    for step in (0, 2):
        found = dense(run, group, step)
        R = found["R"]

        def climb(w: Tensor, R: Tensor = R) -> tuple[Tensor, Tensor]:
            return top_down_energy(w, X, R, sigma), energy_gradient(w, X, R, sigma)

        start = torch.randn(14, 64, generator=generator(0, "fresh nodes"), dtype=torch.float64)
        end = ascend(start, climb, tolerance=0, max_steps=5)
        assert run.rows[step]["energy/residual_new"] == pytest.approx(end.energies.mean().item(), rel=1e-9)
        shares = block_shares(end.weights, group)
        inside = (shares / shares.sum(dim=0) > 0.5)[~found["covered"]].any(dim=0)
        assert run.rows[step]["energy/residual_missing"] == inside.double().mean().item()


def built(path: Path, group: groups.FiniteGroup, spanned: tuple[int, ...], at_random: int = 0) -> int:
    """Write weights whose nodes span some blocks, with their ridge readout; returns the width."""
    X, Y = all_rows(group)
    W = (
        torch.cat([nodes_in(group, k, 30) for k in spanned], dim=1)
        if spanned
        else torch.zeros(2 * group.order, 0).double()
    )
    draw = torch.Generator().manual_seed(0)
    W = torch.cat([W, torch.randn(2 * group.order, at_random, generator=draw, dtype=torch.float64)], dim=1)
    F = SQUARE(X @ W)
    F = F - F.mean(dim=0)
    V = (
        torch.linalg.lstsq(F, Y - Y.mean(dim=0), driver="gelsd").solution
        if spanned
        else 1e-3 * torch.ones(at_random, group.order)
    )
    np.savez(path, W=W.numpy(), V=V.numpy())
    return W.shape[1]


@pytest.mark.parametrize(("group", "spanned"), [(groups.cyclic(7), (0, 2)), (groups.symmetric(3), (0,))])
def test_residual_and_fresh_nodes_turn_to_blocks_that_nobody_spans(
    tiny_run: Any, tmp_path: Path, group: groups.FiniteGroup, spanned: tuple[int, ...]
) -> None:
    """The gradient of the nodes in place has nothing in the missing blocks. Random nodes are the control."""
    task = S3 if group.order == 6 else []
    common = [ON, *task, "data.train_fraction=0.99", "max_steps=1", "loss=projected_mse"]
    count = len(isotypic_blocks(group)) - 1
    width = built(tmp_path / "w.npz", group, spanned)
    row = tiny_run(*common, f"network.width={width}", f"network.initial_weights={tmp_path / 'w.npz'}").rows[0]
    assert row["features/explained"] == len(spanned) < count
    assert row["energy/residual_missing"] == 1
    # All of the residual, which is at most 1 over the share of the missing blocks; one row of the table is for testing.
    dims = [block.rank for block in isotypic_blocks(group)[1:]]
    share = 1 - sum(dims[k] for k in spanned) / sum(dims)
    assert row["interaction/missing_residual"] == pytest.approx(1 / share, rel=0.05)
    assert row["interaction/missing_gradient"] < 0.05
    width = built(tmp_path / "r.npz", group, (), at_random=3)
    row = tiny_run(*common, f"network.width={width}", f"network.initial_weights={tmp_path / 'r.npz'}").rows[0]
    assert row["features/explained"] == 0
    assert row["energy/residual_missing"] < 1
    assert row["interaction/missing_residual"] is None or row["interaction/missing_residual"] == pytest.approx(
        1, abs=0.1
    )


def test_a_resumed_run_continues_the_table(tiny_run: Any, tmp_path: Path) -> None:
    options = [*OFTEN, "callbacks.checkpoint.every_n_steps=3"]
    whole = tiny_run(*options, "max_steps=8", f"output_dir={tmp_path / 'whole'}")
    short = tiny_run(*options, "max_steps=5", f"output_dir={tmp_path / 'short'}")
    checkpoint = short.directory / "checkpoints" / "last.ckpt"
    resumed = tiny_run(*options, "max_steps=8", f"output_dir={tmp_path / 'more'}", f"resume={checkpoint}")
    tables = [np.load(run.directory / "features" / "blocks.npz") for run in (whole, resumed)]
    for name in tables[0].files:
        np.testing.assert_array_equal(tables[0][name], tables[1][name])
    assert tables[1]["steps"].tolist() == [*range(9)]


def test_a_task_without_a_group_has_no_such_columns_and_says_so(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(ON, "task.name=expression", "task.modulus=7", "task.expression=x", "max_steps=1")
    assert not {"features/explained", "interaction/missing_residual", "energy/residual_mean"} & run.rows[0].keys()
    assert not (run.directory / "features" / "blocks.npz").exists()
    assert "missing: this task is no group" in capsys.readouterr().err


def test_a_transformer_has_explained_blocks_only(tiny_run: Any) -> None:
    run = tiny_run(ON, "network={name: transformer, activation: relu}", "max_steps=1")
    assert run.rows[0]["features/explained"] == 0
    assert "interaction/missing_residual" not in run.rows[0]


def test_it_is_off_by_default_and_its_options_are_positive_integers() -> None:
    assert "missing" not in train.read_config({}).callbacks
    for option in ("every_n_steps", "table_every_n_steps", "ascent_every_n_steps", "new_nodes", "ascent_steps"):
        with pytest.raises(InputError, match=rf"callbacks\.missing\.{option}=0 does not fit"):
            Missing(**{option: 0})
