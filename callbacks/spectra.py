"""Progress measures of the whole network: the rank of the features and of W, the alignment of the tangent kernel."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from callbacks.diagnostic import Diagnostic, positive_integer
from callbacks.registry import CALLBACKS
from li2_lightning.log import say
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.networks.base import Network
from li2_lightning.networks.two_layer import TwoLayerNetwork
from li2_lightning.theory.measures import (
    KernelColumns,
    effective_rank,
    gram_spectrum,
    kernel_alignment,
    participation_ratio,
    spectrum,
    tangent_kernel,
)


@CALLBACKS.register("spectra")
class Spectra(Diagnostic):
    """Columns, with λ_i the squared singular values of F̃ (or W) and p_i = λ_i/Σλ:

    ==================================  =============================================================================
    spectra/features_effective_rank     exp(−Σ p_i ln p_i) of F̃, on the training rows
    spectra/features_participation      (Σλ)²/Σλ² of F̃
    spectra/weights_effective_rank      the same two of the weights from the one-hots to the nodes
    spectra/weights_participation
    spectra/kernel_alignment            cos(PΘP, PTP) of the tangent kernel Θ(x,x') = Σ_c ∇ŷ_c(x)·∇ŷ_c(x') with the
                                        task kernel T (1 for equal labels, else 0), P = I − 11ᵀ/n; **estimated**
    ==================================  =============================================================================

    The alignment is estimated from the columns of the kernel that belong to m = ``kernel_columns`` training rows, drawn
    once from a fixed seed (`li2_lightning.theory.measures.kernel_alignment`). Error of 128 columns of 2016 in the
    default run (root mean square of 12 draws against the whole kernel): at most 1.2 % at rows 0, 30, 60, 100, 200, 400.
    The kernel has a closed form for Ŷ = σ(XW)V with real weights; the column is left out with extra layers, batch norm,
    the inner-product form, a trainable embedding, complex weights, and for the transformer.

    The columns need eigenvalues of a matrix of size min(n, K) in float64, which take as long as some tens of training
    steps. The callback is off by default; ``callbacks.spectra.enabled=true`` switches it on.

    Args:
        every_n_steps: cadence.
        kernel_columns: m.

    Source: see `li2_lightning.theory.measures`.
    """

    needs_float64 = True

    def __init__(self, every_n_steps: int | str = 100, kernel_columns: int = 128) -> None:
        super().__init__(every_n_steps)
        self.kernel_columns = positive_integer("spectra.kernel_columns", kernel_columns)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Li2Module)
        if (reason := _no_closed_form(pl_module.network)) is not None:
            say(f"spectra: the tangent kernel has no closed form here ({reason}), so its column is left out.")

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        n, K = len(state.targets), state.readout.shape[0]
        of_features = gram_spectrum(state.gram()) if n >= K else spectrum(state.centered_features)
        columns: dict[str, Tensor | float] = {
            "spectra/features_effective_rank": effective_rank(of_features),
            "spectra/features_participation": participation_ratio(of_features),
        }
        network = module.network
        if (weights := network.input_weights()) is not None:
            of_weights = spectrum(weights)
            columns["spectra/weights_effective_rank"] = effective_rank(of_weights)
            columns["spectra/weights_participation"] = participation_ratio(of_weights)
        if _no_closed_form(network) is None:
            assert isinstance(network, TwoLayerNetwork)
            drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: self.kernel_columns]
            kernel = network_kernel(network, module.data.train.tokens, drawn.to(state.targets.device))
            counts = state.class_counts.double()
            columns["spectra/kernel_alignment"] = kernel_alignment(kernel, state.targets, counts)
        return columns


def network_kernel(network: TwoLayerNetwork, tokens: Tensor, drawn: Tensor) -> KernelColumns:
    """Columns of Θ for Ŷ = β·σ(XW)V in float64; by the chain rule the tangents of W and V both have a factor β.

    Args:
        tokens: operands of all training rows, n×k.
        drawn: which columns, (m,).
    """
    M = network.num_tokens
    X = functional.one_hot(tokens, M).double()
    X = X.sum(dim=1) if network.config.shared_embedding else X.flatten(1)
    z = X @ network.W.detach().double()
    sigma, beta = network.activation, network.config.output_scale
    V = network.V.detach().double()
    return tangent_kernel(beta * sigma(z), beta * sigma.derivative(z), V, X, drawn)


def _no_closed_form(network: Network) -> str | None:
    """Why `network_kernel` does not fit the network; None where it does."""
    if not isinstance(network, TwoLayerNetwork):
        return "it is no two-layer network"
    options = ("hidden_layers", "batch_norm", "inner_product", "trainable_embedding", "complex_weights")
    return next((f"network.{option}" for option in options if getattr(network.config, option)), None)
