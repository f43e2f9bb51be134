"""Which blocks of the group are still missing, and whether residual and gradient turn to them (Theorem 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from callbacks.blocks import BlockDiagnostic
from callbacks.diagnostic import Cadence, positive_integer
from callbacks.energy import computed_energies, is_homogeneous, scaled_energies
from callbacks.registry import CALLBACKS
from li2_lightning.files import replacing
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.base import EVALUATION_BLOCK
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.seeds import generator
from li2_lightning.theory.energy import ascend, energy
from li2_lightning.theory.features import (
    BlockNorms,
    block_norms,
    covered,
    explained,
    feature_shares,
    missing_ratio,
    target_block_norms,
)

FILE = "blocks.npz"
QUANTITIES = ("explained", "residual", "gradient", "coupled", "covered")
"""The arrays of features/blocks.npz beside ``steps`` and ``labels``; each is steps × blocks."""

# Rows of the table between two writes of the file.
WRITE_EVERY = 20


@CALLBACKS.register("missing")
class Missing(BlockDiagnostic):
    """Features that are missing, by isotypic block k of the group; the trivial block is left out of every share.

    =============================  ==================================================================================
    features/explained             number of blocks with 1 − ‖RΠ_k‖²/‖ỸΠ_k‖² > .5, over the training rows
    interaction/missing_residual   share of ‖R‖² in blocks that no node covers (``features/coverage``), over the share
                                   of ‖Ỹ‖² in them: above 1 the residual has turned to what is missing
    interaction/missing_gradient   the same for ‖G_F‖², whose part in block k is RΠ_kVᴴ
    energy/residual_mean           mean over nodes, at unit norm, of E_S(w) = ½‖Rᵀσ(Xw)‖², R centred over classes
    energy/residual_new            mean E_S of fresh nodes: Gaussian, then a few steps of ascent of E_S at unit norm
    energy/residual_missing        share of the fresh nodes with more than half of themselves in a missing block
    =============================  ==================================================================================

    ``interaction/missing_…`` are empty where every block is covered. A network without nodes on the one-hots has only
    ``features/explained``. The fresh nodes are the same in every row, and in every run of the same size; they need a
    homogeneous σ without batch norm.

    ``features/blocks.npz`` has for rows × blocks: ``explained``; the shares ``residual``, ``gradient`` and ``coupled``
    (of RRᵀF̃) in each block; ``covered``. The file is written after every 20 rows of the table, when a run stops and at
    its end. The table is part of every checkpoint, so that a resumed run continues it.

    The callback is off by default; ``callbacks.missing.enabled=true`` switches it on.

    Args:
        every_n_steps: cadence of the first four columns.
        table_every_n_steps: rows of the table.
        ascent_every_n_steps: cadence of the columns of fresh nodes.
        new_nodes: number of fresh nodes. ``residual_missing`` has a standard error of at most .5/√new_nodes.
        ascent_steps: steps of ascent.

    Source: arXiv:2509.21519, Theorem 7.
    """

    group_columns = "features/explained and the columns of missing blocks"

    def __init__(
        self,
        every_n_steps: int | str = 1,
        table_every_n_steps: int | str = 10,
        ascent_every_n_steps: int | str = 100,
        new_nodes: int = 64,
        ascent_steps: int = 20,
    ) -> None:
        super().__init__(every_n_steps)
        self.table_cadence = Cadence("missing.table_every_n_steps", table_every_n_steps)
        self.ascent_cadence = Cadence("missing.ascent_every_n_steps", ascent_every_n_steps)
        self.new_nodes = positive_integer("missing.new_nodes", new_nodes)
        self.ascent_steps = positive_integer("missing.ascent_steps", ascent_steps)
        self._steps: list[int] = []
        self._table: list[Tensor] = []

    def on_step_state(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        rows = len(self._steps)
        super().on_step_state(trainer, module, state)
        if len(self._steps) > rows and len(self._steps) % WRITE_EVERY == 0:
            self._write(trainer)

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        if self.group is None:
            return {}
        target = target_block_norms(state.class_counts.to(state.accumulation_dtype), self.group)
        norms = block_norms(state.residual_gram, state.readout, state.residual_features, self.group)
        share = explained(norms.residual, target)
        columns: dict[str, Tensor | float] = {"features/explained": (share > 0.5).sum()}
        found = torch.zeros_like(share, dtype=torch.bool)
        network = module.network
        if isinstance(network, TwoLayerNetwork) and state.node_shares is not None:
            found = covered(state.node_shares)
            columns |= {
                "interaction/missing_residual": missing_ratio(norms.residual, target, found),
                "interaction/missing_gradient": missing_ratio(norms.gradient, target, found),
                "energy/residual_mean": _residual_energies(network, state).nanmean(),
            }
            if self.ascent_cadence.due(state.step, state.is_last) and is_homogeneous(network):
                columns |= self._fresh_nodes(network, state, self.group, found)
        if self.table_cadence.due(state.step, state.is_last):
            self._steps.append(state.step)
            self._table.append(_table_row(share, norms, found))
        return columns

    def _fresh_nodes(
        self, network: TwoLayerNetwork, state: StepState, group: FiniteGroup, found: Tensor
    ) -> dict[str, Tensor | float]:
        weights = network.input_weights()
        draw = generator(0, "fresh nodes")

        def gaussian() -> Tensor:
            drawn = torch.randn(len(weights), self.new_nodes, generator=draw, dtype=torch.float64)
            return drawn.to(weights.dtype.to_real()).to(weights.device)

        start = torch.complex(gaussian(), gaussian()) if weights.is_complex() else gaussian()
        tokens, residual = state.tokens, _class_centered(state.residual)

        def energy_and_gradient(w: Tensor) -> tuple[Tensor, Tensor]:
            return residual_energy_and_gradient(network, tokens, residual, w)

        end = ascend(start, energy_and_gradient, tolerance=0, max_steps=self.ascent_steps)
        shares = feature_shares(end.weights, group)
        return {
            "energy/residual_new": end.energies.mean(),
            "energy/residual_missing": ((shares > 0.5) & ~found[:, None]).any(dim=0).to(shares.dtype).mean(),
        }

    # -- the table --------------------------------------------------------------------------------------------------

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._write(trainer)

    def on_interrupt(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "table_last_row": self.table_cadence.last_row,
            "ascent_last_row": self.ascent_cadence.last_row,
            "steps": list(self._steps),
            # A tuple: a row of the table is never written to again, so a checkpoint needs no copy of it.
            "table": tuple(self._table),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.table_cadence.last_row = state_dict["table_last_row"]
        self.ascent_cadence.last_row = state_dict["ascent_last_row"]
        self._steps, self._table = list(state_dict["steps"]), list(state_dict["table"])

    def _write(self, trainer: lightning.Trainer) -> None:
        if not trainer.is_global_zero or not self._steps or self.group is None:
            return
        folder = Path(trainer.default_root_dir) / "features"
        folder.mkdir(exist_ok=True)
        table = torch.stack([row.cpu() for row in self._table]).numpy()
        arrays = {name: table[:, :, place] for place, name in enumerate(QUANTITIES)}
        labels = [block.label for block in isotypic_blocks(self.group)[1:]]
        with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, steps=np.array(self._steps), labels=np.array(labels), **arrays)


def residual_energy_and_gradient(
    network: TwoLayerNetwork, tokens: Tensor, residual: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """E_S = ½‖Rᵀσ(Xw)‖² of nodes (m,) and ∇E_S (d×m), for every σ and form of the network, without batch norm.

    Args:
        tokens: operands of the rows, n×k.
        residual: R, n×C.
        weights: d×m.
    """
    blocks = list(zip(tokens.split(EVALUATION_BLOCK), residual.split(EVALUATION_BLOCK), strict=True))
    with torch.no_grad():
        products = torch.stack([R.mT.to(weights.dtype) @ network.node_features(rows, weights) for rows, R in blocks])
        driven = products.sum(dim=0)
    w = weights.detach().requires_grad_()
    with torch.enable_grad():
        for rows, R in blocks:
            inner = driven.conj() * (R.mT.to(w.dtype) @ network.node_features(rows, w))
            inner.sum().real.backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    return energy(driven), w.grad


def _residual_energies(network: TwoLayerNetwork, state: StepState) -> Tensor:
    """E_S of every node at unit norm, (K,)."""
    if is_homogeneous(network) and network.config.hidden_layers == 0:
        return scaled_energies(network, _class_centered(state.residual_features).mT)
    return computed_energies(network, state.tokens, _class_centered(state.residual))


def _class_centered(columns: Tensor) -> Tensor:
    """Without the mean over the classes, which a loss that is centred over classes does not see; …×C."""
    return columns - columns.mean(dim=-1, keepdim=True)


def _table_row(share: Tensor, norms: BlockNorms, covered: Tensor) -> Tensor:
    """One row of the table, blocks × `QUANTITIES`, in float32."""
    shares = [part / part.sum() for part in (norms.residual, norms.gradient, norms.coupled)]
    return torch.stack([share, *shares, covered.to(share.dtype)], dim=-1).float()
