"""The two-layer network Ŷ = β·σ(XW)V and its variants.

XW is a sum of k rows of W, and is never computed as a product with the zeros of X.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from li2_lightning._compat import kept_with
from li2_lightning.config.schema import NetworkConfig
from li2_lightning.distributed.collectives import moments_over_ranks
from li2_lightning.networks.activations import find_activation
from li2_lightning.networks.base import NETWORKS, Features, Moments, Network, Sizes
from li2_lightning.networks.kernel import Observer, blocked_outputs, feature_blocks

# The extra variance that keeps batch norm finite for a node that is constant over the rows; torch's value.
BATCH_NORM_EPSILON = 1e-5


@dataclass
class Layer:
    """One hidden layer for some rows.

    Attributes:
        features: F_l, …×n×K.
        pre_activation: z_l with F_l = σ(z_l), after batch norm; F_l itself in the inner-product form.
    """

    features: Tensor
    pre_activation: Tensor


@NETWORKS.register("two_layer")
class TwoLayerNetwork(Network):
    """Ŷ = β·σ(XW)V, no biases, with the options of the ``network`` section.

    Extra layer l takes F to σ(F + F·H_l), or to σ(F·H_l) with ``residual=False``. ``inner_product`` takes
    F = Π_i x_i W_i, without σ. With ``trainable_embedding`` each token's one-hot becomes a row of E. Batch norm acts on
    the pre-activation, has no parameters, and uses the statistics of the training rows.
    """

    takes_stacks = True

    def __init__(self, config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> None:
        dtype = dtype.to_complex() if config.complex_weights else dtype
        super().__init__(config, sizes, dtype, generator)
        self.activation = find_activation(config.activation)
        inputs = self.num_tokens * (1 if config.shared_embedding else self.num_operands)
        self.W = nn.Parameter(config.hidden_init_scale * self._uniform(inputs, config.width, dtype))
        for layer in range(1, config.hidden_layers + 1):
            self.register_parameter(f"H{layer}", nn.Parameter(self._uniform(config.width, config.width, dtype)))
        if config.trainable_embedding:
            self.E = nn.Parameter(self._uniform(self.num_tokens, self.num_tokens, dtype))

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        return "embedding" if name == "E" else super().role_of(name, parameter)

    def layout_of(self, name: str) -> dict[str, str | int]:
        # The projections of the operands are multiplied, so each operand has a matrix W_i of its own.
        if name == "W" and self.config.inner_product:
            return {**super().layout_of(name), "axis": -2, "matrices": len(self.W) // self.num_tokens}
        return super().layout_of(name)

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        used: list[Moments] = []
        layers = self._compute_layers(tokens, moments, used)
        first = last = next(layers).features
        for layer in layers:
            last = layer.features
        return Features(last, first, tuple(used))

    def layers(self, tokens: Tensor) -> list[Layer]:
        """The hidden layers for the training rows ``tokens``, the input of the readout last; gradients flow through."""
        return list(self._compute_layers(tokens, (), []))

    def _compute_layers(self, tokens: Tensor, moments: tuple[Moments, ...], used: list[Moments]) -> Iterator[Layer]:
        """The hidden layers one after the other; the statistics of each batch-normalized layer join ``used``."""
        z = self._batch_norm(self._combine(tokens, self._tables()), moments, used)
        features = z if self.config.inner_product else self.activation(z)
        yield Layer(features, z)
        for number in range(1, self.config.hidden_layers + 1):
            through = features @ self.get_parameter(f"H{number}")
            z = self._batch_norm(features + through if self.config.residual else through, moments, used)
            features = self.activation(z)
            yield Layer(features, z)

    def hidden_weights(self) -> list[Tensor]:
        """A_l between each hidden layer and the next, …×K×K each, detached: z_l = F_{l−1}A_l for l ≥ 2."""
        weights = [self.get_parameter(f"H{number}").detach() for number in range(1, self.config.hidden_layers + 1)]
        if self.config.residual:
            weights = [H + torch.eye(H.shape[-1], dtype=H.dtype, device=H.device) for H in weights]
        return weights

    @torch.no_grad()
    def feature_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        if self.why_plain() is None:
            yield from feature_blocks(self._table(), self._index(tokens), self.activation)
        else:
            yield from super().feature_blocks(tokens)

    def why_plain(self) -> str | None:
        for option in ("hidden_layers", "batch_norm", "inner_product"):
            if getattr(self.config, option):
                return f"network.{option}"
        if torch.compiler.is_compiling():
            return "trainer.compile"
        if self.W.device.type != "cpu":
            return f"a device of type {self.W.device.type}"
        return "mixed precision" if torch.is_autocast_enabled("cpu") else None

    def input_weights(self) -> Tensor:
        table = self._table().detach()
        return torch.cat([table] * self.num_operands, dim=-2) if self.config.shared_embedding else table

    def node_features(self, tokens: Tensor, input_weights: Tensor) -> Tensor:
        """σ(Xw) of m nodes with the given input weights (…×d×m), without batch norm; …×n×m; differentiable in w."""
        blocks = [block.reshape(-1, block.shape[-1]) for block in self.node_blocks(tokens, input_weights)]
        return (blocks[0] if len(blocks) == 1 else torch.cat(blocks)).view(*tokens.shape[:-1], -1)

    def node_blocks(self, tokens: Tensor, input_weights: Tensor) -> Iterator[Tensor]:
        """`node_features` in blocks like those of `feature_blocks`; one block where it is differentiated."""
        if self.why_plain() is None and not (torch.is_grad_enabled() and input_weights.requires_grad):
            # There is one table for each operand, also with shared_embedding.
            yield from feature_blocks(input_weights, self._rows_of_tables(tokens), self.activation)
        else:
            z = self._combine(tokens, list(torch.split(input_weights, self.num_tokens, dim=-2)))
            yield z if self.config.inner_product else self.activation(z)

    @property
    def node_degree(self) -> int | None:
        """The degree of homogeneity of a node's feature, f(cw) = c^degree f(w) for c > 0; None if it has none."""
        return self.num_operands if self.config.inner_product else self.activation.degree

    @torch.no_grad()
    def normalize(self) -> None:
        if not self.config.normalize_weights:
            return
        if self.config.inner_product:
            for table in self.W.view(-1, self.num_tokens, self.config.width):
                norm = torch.linalg.vector_norm(table, dim=0)
                table.div_(norm.clamp_min(1.0))
        else:
            self.W.sub_(self.W.mean(dim=-2, keepdim=True))
        self.V.sub_(self.V.mean(dim=-1, keepdim=True))

    def _combine(self, tokens: Tensor, tables: list[Tensor]) -> Tensor:
        """XW, or in the inner-product form the product of the operands' projections; …×n×K."""
        z = _take_rows(tables[0], tokens[..., 0])
        for operand, table in enumerate(tables[1:], start=1):
            projection = _take_rows(table, tokens[..., operand])
            z = z * projection if self.config.inner_product else z + projection
        return z

    def _blocked(self, tokens: Tensor, observe: Observer | None = None) -> Tensor:
        readout = self.output_scale * self.V
        outputs = blocked_outputs(self._table(), readout, self._index(tokens), self.activation, observe)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _table(self) -> Tensor:
        """The tables of all operands under each other (…×d×K); one table where they share it."""
        if not self.config.trainable_embedding:
            return self.W
        return torch.cat([self.E @ table for table in torch.split(self.W, self.num_tokens, dim=-2)], dim=-2)

    def _index(self, tokens: Tensor) -> Tensor:
        """The rows of `_table` whose sum is each row of XW, …×n×k."""
        return tokens if self.config.shared_embedding else self._rows_of_tables(tokens)

    def _rows_of_tables(self, tokens: Tensor) -> Tensor:
        """The row of each token in the tables of all operands under each other, …×n×k; kept as long as the tokens."""
        return kept_with(tokens, ("rows of tables", self.num_tokens), lambda: tokens + self._offsets(tokens))

    def _offsets(self, tokens: Tensor) -> Tensor:
        """The row of `_table` at which each operand's table begins, (k,)."""
        return self.num_tokens * torch.arange(self.num_operands, device=tokens.device)

    def _tables(self) -> list[Tensor]:
        """For each operand the M × K table whose row h is token h's contribution to the pre-activation."""
        tables = list(torch.split(self._table(), self.num_tokens, dim=-2))
        return tables * self.num_operands if self.config.shared_embedding else tables

    def _batch_norm(self, z: Tensor, moments: tuple[Moments, ...], used: list[Moments]) -> Tensor:
        """Normalize the next layer, by its entry of ``moments`` or by the rows of z; its moments join ``used``."""
        if not self.config.batch_norm:
            return z
        current = moments[len(used)] if moments else Moments(*moments_over_ranks(z))
        used.append(current)
        return (z - current.mean.unsqueeze(-2)) * torch.rsqrt(current.variance.unsqueeze(-2) + BATCH_NORM_EPSILON)


def _take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (…×M×K) at an index (…, n); torch differentiates the faster embedding for real tables only."""
    if table.ndim > 2:
        index = index + table.shape[-2] * torch.arange(len(table), device=index.device)[:, None]
        return _take_rows(table.flatten(0, 1), index.flatten()).view(*index.shape, -1)
    return table.index_select(0, index) if table.is_complex() else functional.embedding(index, table)
