"""The base class of the networks: features, a linear readout V, and a role and a layout for each parameter.

Shapes in this package: n rows, k operands, M tokens, K = width, C classes, d = kM inputs. X is k one-hots side by side.
Matrices are (inputs × outputs), except in torch's encoder; `Network.layouts` gives the orientation of each. A network
whose class sets ``takes_stacks`` also computes with a leading axis of runs on its parameters and tokens (`stacked`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from li2_lightning._compat import copy_without_parameters, write_count
from li2_lightning.config.schema import NetworkConfig
from li2_lightning.networks.kernel import Observer
from li2_lightning.plugins import Registry

# Rows of a block where features need not be kept. On a CPU a block fits the cache. On an accelerator, where each block
# costs the host some kernel launches, a block is large enough to keep the device busy.
EVALUATION_BLOCK, ACCELERATOR_BLOCK = 256, 2**14


class Sizes(Protocol):
    """The numbers of a task that a network needs; `li2_lightning.tasks.tasks.Task` has them."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_operands(self) -> int: ...

    @property
    def num_classes(self) -> int: ...


@dataclass
class Moments:
    """Mean and variance over the training rows of one layer's pre-activation, each (…, K)."""

    mean: Tensor
    variance: Tensor


@dataclass
class Features:
    """The features of some rows.

    Attributes:
        last: F, the input of the readout (…×n×K).
        first: the output of the first hidden layer (…×n×K); F itself without extra layers.
        moments: the statistics of each batch-normalized layer; empty without batch norm.
    """

    last: Tensor
    first: Tensor
    moments: tuple[Moments, ...] = ()


@dataclass
class Activity:
    """The result of one forward pass.

    Attributes:
        outputs: Ŷ, real (…×n×C).
        features: None where the blocked kernel computed the outputs: it keeps no features.
    """

    outputs: Tensor
    features: Features | None = None

    @property
    def moments(self) -> tuple[Moments, ...]:
        """Batch norm's statistics of this pass; empty without batch norm."""
        return () if self.features is None else self.features.moments


class Network(nn.Module):
    """Features and a linear readout V, with a role and a layout for each parameter.

    Args:
        config: the ``network`` section.
        sizes: the sizes of the task.
        dtype: the type of the parameters.
        generator: draws the initial weights, which thus depend on the seed alone.
    """

    def __init__(self, config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.output_scale: float | Tensor = config.output_scale
        self.num_tokens, self.num_operands = sizes.num_tokens, sizes.num_operands
        self._generator = generator
        scale = config.readout_init_scale
        self.V = nn.Parameter(scale * self._uniform(config.width, sizes.num_classes, dtype))
        # `Li2Module` solves for a ridge readout before each row instead of training it.
        self.V.requires_grad_(config.readout == "gradient")

    @property
    def readout(self) -> Tensor:
        """βV, the matrix that takes F to Ŷ (…×K×C), detached."""
        return self.output_scale * self.V.detach()

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        """The features of the rows ``tokens``; arguments as for `forward`."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, moments: tuple[Moments, ...] = (), observe: Observer | None = None) -> Activity:
        """Outputs of the rows ``tokens`` (…×n×k, integer), and their features if the computation keeps them.

        Args:
            moments: statistics for batch norm; empty for the statistics of these rows.
            observe: receives the features as they are computed, in blocks of rows or all at once.
        """
        if self.why_plain() is None:
            return Activity(self._blocked(tokens, observe))
        features = self.compute_features(tokens, moments)
        if observe is not None:
            observe.add_first_pass(features.last.detach())
        return Activity(self.read(features.last), features)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Tensor:
        """Ŷ of rows whose features are not needed, …×n×C."""
        if self.why_plain() is None:
            return self._blocked(tokens)
        rows = EVALUATION_BLOCK if tokens.device.type == "cpu" else ACCELERATOR_BLOCK
        blocks = torch.split(tokens, rows, dim=-2)
        return torch.cat([self(block, moments).outputs for block in blocks], dim=-2)

    @torch.no_grad()
    def feature_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """F of the rows in consecutive blocks, computed again: b × K, or g × n × K for the next runs of a stack."""
        yield self.compute_features(tokens).last

    def why_plain(self) -> str | None:
        """The reason for which the plain formula is used; None where the blocked kernel is used."""
        return "this network has no blocked kernel"

    def _blocked(self, tokens: Tensor, observe: Observer | None = None) -> Tensor:
        raise NotImplementedError

    def read(self, features: Tensor) -> Tensor:
        """Ŷ = Re(β F V), n × C; float32 at least, since losses are sums of small differences."""
        outputs = features @ (self.output_scale * self.V)
        outputs = outputs.real if outputs.is_complex() else outputs
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def roles(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The named parameters of each role: hidden, output and embedding. Each role has an optimizer of its own."""
        roles: dict[str, list[tuple[str, nn.Parameter]]] = {"hidden": [], "output": [], "embedding": []}
        for name, parameter in self.named_parameters():
            roles[self.role_of(name, parameter)].append((name, parameter))
        return roles

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """The role of one parameter."""
        return "output" if name == "V" else "hidden"

    def layouts(self) -> dict[str, dict[str, str | int]]:
        """The layout of each matrix: its input side, and the number of matrices in it (`optimizers.layouts`)."""
        return {name: self.layout_of(name) for name, parameter in self.named_parameters() if parameter.ndim > 1}

    def layout_of(self, name: str) -> dict[str, str | int]:
        """The layout of one matrix."""
        return {"orientation": "input_output"}

    def input_weights(self) -> Tensor | None:
        """The weights from the one-hots to the first hidden layer, …×d×K, detached; None in other networks."""
        return None

    def write_counts(self) -> list[int]:
        """The number of writes to each parameter, to notice a change of the weights."""
        return [write_count(parameter) for parameter in self.parameters()]

    @torch.no_grad()
    def normalize(self) -> None:
        """Apply ``network.normalize_weights`` after an update; nothing where it is off."""

    def _uniform(self, fan_in: int, fan_out: int, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """The default of ``torch.nn.Linear``, uniform in ±1/√fan_in, times ``init_scale``.

        Both parts of a complex number are uniform in ±1/√(2·fan_in), so that it has the variance of a real weight.
        """
        bound = 1 / math.sqrt(2 * fan_in if dtype.is_complex else fan_in)
        shape = (rows or fan_in, fan_out)

        def draw() -> Tensor:
            # Always drawn in float32, so that runs of every precision start at the same weights.
            values = torch.empty(shape).uniform_(-bound, bound, generator=self._generator)
            return self.config.init_scale * values.to(dtype.to_real())

        return torch.complex(draw(), draw()) if dtype.is_complex else draw()


def stacked(networks: Sequence[Network]) -> Network:
    """One network that computes with the weights of several: its parameters have a leading axis of runs.

    The parameters of ``networks`` stay the objects that optimizers hold. From now on they are slices of the parameters
    of the new network, so an update of either is an update of both.

    Args:
        networks: of one class and of equal shapes; their options may differ in the output scale.
    """
    first = networks[0]
    whole: Network = copy_without_parameters(first)
    for name, parameter in first.named_parameters():
        members = [network.get_parameter(name) for network in networks]
        storage = torch.stack([member.detach() for member in members])
        whole.register_parameter(name, nn.Parameter(storage, requires_grad=parameter.requires_grad))
        for member, part in zip(members, storage.unbind(), strict=True):
            member.data = part
    scales = [float(network.output_scale) for network in networks]
    if len(set(scales)) > 1:
        whole.output_scale = first.V.real.new_tensor(scales)[:, None, None]
    # Writes to the slices are counted at the slices.
    slices = [parameter for network in networks for parameter in network.parameters()]
    whole.write_counts = lambda: [write_count(part) for part in slices]  # type: ignore[method-assign]
    return whole


NETWORKS: Registry[type[Network]] = Registry("network", "li2_lightning.networks", makes=Network)
