"""Every hidden layer of a deeper network: what reaches it, and what its nodes have learned (arXiv:2509.21519, §6)."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from callbacks.blocks import BlockDiagnostic
from callbacks.energy import unit_energies
from callbacks.registry import CALLBACKS
from li2_lightning.log import say
from li2_lightning.measurement.layers import has_gates, input_inverse, measure_layers
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.depth import isometry
from li2_lightning.theory.features import covered, feature_shares, purity


@CALLBACKS.register("depth")
class Depth(BlockDiagnostic):
    """Columns of each hidden layer l = 1, 2, …; formulas in `li2_lightning.theory.depth`.

    ==========================  ====================================================================================
    gradient/<l>/norm           ‖G_l‖, G_l = −∂J/∂F_l; for the last layer the columns ``gradient/…`` say the same
    gradient/<l>/independence   cos(G_l, ỸỸᵀF̃_l)
    gradient/<l>/coupling       cos(G_l, RRᵀF̃_l)
    gradient/<l>/prediction     cos(G_l, D̃ỸỸᵀD̃F_l), section 6; below the last layer only
    energy/<l>/mean             mean over nodes of E(w) = ½‖Ỹᵀσ(F_{l−1}w)‖², w = the node's weights at unit norm
    features/<l>/label_share    mean over nodes of the share of their variance that lies between the classes
    features/<l>/label_purity   mean over nodes of the largest share that a block has of the means of the classes
    features/<l>/purity         mean over nodes of the largest share that a block has of X⁺z_l, the part of the
                                pre-activation that is a sum of functions of single operands
    features/<l>/coverage       number of blocks that have more than half of X⁺z_l of some node
    weights/<l>/isometry        cos(A_lA_lᴴ, I) of the weights from the layer below: 1 = a multiple of I; l ≥ 2
    ==========================  ====================================================================================

    For l = 1 energy, purity and coverage are those of the columns ``energy/mean``, ``features/purity`` and
    ``features/coverage``. A_l contains the residual link: A_l = I + H. The columns by block need a group,
    ``prediction`` real weights without batch norm. A transformer counts as one layer, the input of its readout. This
    layer has no nodes with weights and an activation, so its columns are norm, independence, coupling, label_share and
    label_purity.

    The layers are computed again, forward and backward, which takes about half as long as a step of a deeper network.
    The callback is off by default; ``callbacks.depth.enabled=true`` switches it on. The callback ``stages`` then
    follows each layer, too.

    Args:
        every_n_steps: cadence.

    Source: arXiv:2509.21519, section 6.
    """

    takes_stacks = True
    group_columns = "the columns by block of each layer"

    def __init__(self, every_n_steps: int | str = 1) -> None:
        super().__init__(every_n_steps)
        self._tokens, self._inverse = torch.zeros(0), torch.zeros(0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module.network, TwoLayerNetwork):
            say("depth: this network has no layers of nodes, so only what the readout sees is measured.")
        elif pl_module.network.config.hidden_layers and not has_gates(pl_module.network):
            say("depth: section 6 needs real weights without batch norm, so its prediction is left out.")

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        columns: dict[str, Tensor | float] = {}
        layers = measure_layers(state)
        for number, layer in enumerate(layers, start=1):
            structure, upper = layer.structure, layer.upper
            columns |= {
                f"gradient/{number}/norm": structure.norm,
                f"gradient/{number}/independence": structure.independence,
                f"gradient/{number}/coupling": structure.coupling,
                f"features/{number}/label_share": layer.label_shares.nanmean(dim=-1),
            }
            if number < len(layers) and has_gates(state.network):
                columns[f"gradient/{number}/prediction"] = structure.prediction
            shares = None
            if self.group is not None:
                means = layer.target_features / state.class_counts.clamp_min(1)[..., None]
                columns[f"features/{number}/label_purity"] = purity(feature_shares(means, self.group))
            if upper is not None:
                columns[f"energy/{number}/mean"] = upper.energies.nanmean(dim=-1)
                columns[f"weights/{number}/isometry"] = isometry(upper.weights)
                if self.group is not None:
                    shares = feature_shares(self._fit(upper.input_sums, state), self.group)
            elif isinstance(state.network, TwoLayerNetwork):
                columns[f"energy/{number}/mean"] = unit_energies(state.network, state).nanmean(dim=-1)
                shares = state.node_shares
            if shares is not None:
                columns[f"features/{number}/purity"] = purity(shares)
                columns[f"features/{number}/coverage"] = covered(shares).sum(dim=-1)
        return columns

    def _fit(self, input_sums: Tensor, state: StepState) -> Tensor:
        """X⁺z from Xᵀz; the training rows are the same in every row of a run."""
        if state.tokens is not self._tokens:
            self._tokens = state.tokens
            self._inverse = input_inverse(state.tokens, state.network.num_tokens, state.accumulation_dtype)
        return self._inverse.to(input_sums.dtype) @ input_sums
