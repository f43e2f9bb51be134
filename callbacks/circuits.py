"""Progress measures: how far the learned blocks carry the outputs, and how unequal the blocks are."""

from __future__ import annotations

import torch
from torch import Tensor

from callbacks.blocks import BlockDiagnostic
from callbacks.registry import CALLBACKS
from li2_lightning.groups.representations import isotypic_blocks
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.matmul import squared_magnitudes
from li2_lightning.theory.features import block_energies, covered, output_block_norms, per_dimension, split_outputs
from li2_lightning.theory.lazy import center
from li2_lightning.theory.measures import gini


@CALLBACKS.register("circuits")
class Circuits(BlockDiagnostic):
    """Progress measures on the training rows, by isotypic block k of the group; for a cyclic group k is a frequency.

    ==============================  =================================================================================
    circuits/restricted_loss        training loss of the outputs of which only the learned blocks are kept
    circuits/excluded_loss          training loss of the outputs from which only the learned blocks are removed
    circuits/logit_share/<block>    ‖P₁⊥ŶΠ_k‖² over its sum over the blocks
    circuits/logit_gini             Gini coefficient over the blocks of ‖P₁⊥ŶΠ_k‖² per dimension of the block
    circuits/weight_gini            the same of Σ_j‖Π_k w_j‖², over all nodes and operands
    circuits/weight_norm            ‖θ‖, over all parameters
    circuits/softmax_collapse       share of training rows whose loss is 0 for outputs in float32: without a gradient
    ==============================  =================================================================================

    A block is learned if some node has more than half of itself in it (``features/coverage``). Constants over the
    classes stay in the outputs. With cross-entropy, excluded loss rises as the network comes to depend on the learned
    blocks, and restricted loss falls to the loss as the memorizing rest becomes unnecessary. A task without a group has
    only the last two columns; a network without nodes on the one-hots has these two and the logit columns.

    The callback is off by default; ``callbacks.circuits.enabled=true`` switches it on.

    Args:
        every_n_steps: cadence.

    Source: Nanda et al., "Progress measures for grokking via mechanistic interpretability", arXiv:2301.05217. The paper
    projects the logits, as functions of the inputs, on Fourier components. Here each row of logits is projected as a
    function on the classes, which is defined on any subset of rows and for any group. The learned blocks are those of
    the present weights; the paper takes those of the trained network. Softmax collapse: Prieto et al., "Grokking at the
    edge of numerical stability", arXiv:2501.04697.
    """

    group_columns = "its columns by block"

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        parameters = [squared_magnitudes(p.detach()).sum() for p in module.network.parameters()]
        in_single = module.loss.fitted_rows(state.outputs.float(), state.targets)
        columns: dict[str, Tensor | float] = {
            "circuits/weight_norm": torch.stack(parameters).sum().sqrt(),
            "circuits/softmax_collapse": (in_single == 0).to(state.outputs.dtype).mean(),
        }
        if self.group is None:
            return columns
        norms = output_block_norms(center(state.outputs), self.group)
        shares = norms / norms.sum()
        columns |= {
            f"circuits/logit_share/{block.label.replace(' ', '')}": share
            for block, share in zip(isotypic_blocks(self.group)[1:], shares, strict=True)
        }
        columns["circuits/logit_gini"] = gini(per_dimension(norms, self.group))
        weights = module.network.input_weights()
        if weights is not None and state.node_shares is not None:
            energies = block_energies(weights, self.group).sum(dim=1)
            columns["circuits/weight_gini"] = gini(per_dimension(energies, self.group))
            split = split_outputs(state.outputs, covered(state.node_shares), self.group)
            for name, outputs in zip(("restricted", "excluded"), split, strict=True):
                columns[f"circuits/{name}_loss"] = module.loss.fitted_rows(outputs, state.targets).mean()
        return columns
