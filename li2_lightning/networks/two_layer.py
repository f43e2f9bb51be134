"""The networks: Ŷ = β·σ(XW)V with its variants, and a small transformer to compare with.

Shapes: n rows, k operands, M tokens, K = width, C classes, d = kM inputs. X is k one-hots side by side, so XW is a
sum of k rows of W and is never formed as a product with zeros. All matrices are (inputs × outputs), but for those of
torch's encoder; `Network.layouts` says which is which.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from li2_lightning.config.schema import NetworkConfig
from li2_lightning.distributed.collectives import moments_over_ranks
from li2_lightning.errors import DamagedError, InputError
from li2_lightning.files import read_npz
from li2_lightning.networks.activations import find_activation
from li2_lightning.networks.kernel import Observer, blocked_outputs, feature_blocks
from li2_lightning.plugins import Registry

# The extra variance that keeps batch norm finite for a node that is constant over the rows; torch's value.
BATCH_NORM_EPSILON = 1e-5
# Rows whose features need not be kept go through the plain formula in blocks of this many: on a CPU as many as stay in
# cache, on an accelerator as many as keep it busy, where each block costs the host some launches.
EVALUATION_BLOCK, ACCELERATOR_BLOCK = 256, 2**14


class Sizes(Protocol):
    """What a network has to know of its task (`li2_lightning.tasks.tasks.Task` has it)."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_operands(self) -> int: ...

    @property
    def num_classes(self) -> int: ...


@dataclass
class Moments:
    """Mean and variance over the training rows of one layer's pre-activation, each (K,)."""

    mean: Tensor
    variance: Tensor


@dataclass
class Features:
    """Everything before the readout.

    Attributes:
        last: F, what the readout sees (n × K).
        first: what the first hidden layer gives (n × K); F itself without extra layers.
        moments: of every batch-normalized layer; empty without batch norm.
    """

    last: Tensor
    first: Tensor
    moments: tuple[Moments, ...] = ()


@dataclass
class Activity:
    """What one forward pass leaves behind.

    Attributes:
        outputs: Ŷ, real (n × C).
        features: None where the blocked kernel computed the outputs, which keeps none.
    """

    outputs: Tensor
    features: Features | None = None

    @property
    def moments(self) -> tuple[Moments, ...]:
        """Batch norm's statistics of this pass; empty without batch norm."""
        return () if self.features is None else self.features.moments


class Network(nn.Module):
    """What every network here offers: features, a linear readout V, and a role for each parameter.

    Args:
        config: the ``network`` section.
        sizes: of the task.
        dtype: of the parameters.
        generator: draws the initial weights, so that they depend on the seed alone.
    """

    def __init__(self, config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.num_operands = sizes.num_tokens, sizes.num_operands
        self._generator = generator
        scale = config.readout_init_scale
        self.V = nn.Parameter(scale * self._uniform(config.width, sizes.num_classes, dtype))
        # The ridge readout is solved before each row, not trained.
        self.V.requires_grad_(config.readout == "gradient")

    @property
    def readout(self) -> Tensor:
        """βV, the matrix that takes F to Ŷ (K × C), detached."""
        return self.config.output_scale * self.V.detach()

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        """Everything before the readout."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, moments: tuple[Moments, ...] = (), observe: Observer | None = None) -> Activity:
        """Outputs of the rows ``tokens`` (n × k, integer), and their features where they are kept.

        Args:
            moments: statistics for batch norm; those of the rows at hand where empty.
            observe: looks at the features as they pass, in blocks of rows or all at once.
        """
        if self.why_plain() is None:
            return Activity(self._blocked(tokens, observe))
        features = self.compute_features(tokens, moments)
        if observe is not None:
            observe.look(features.last.detach())
        return Activity(self.read(features.last), features)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Tensor:
        """Ŷ of rows whose features nobody needs, n × C."""
        if self.why_plain() is None:
            return self._blocked(tokens)
        rows = EVALUATION_BLOCK if tokens.device.type == "cpu" else ACCELERATOR_BLOCK
        return torch.cat([self(block, moments).outputs for block in torch.split(tokens, rows)])

    @torch.no_grad()
    def feature_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """F of the rows in order, some rows at a time, computed anew; the blocks together are n × K."""
        yield self.compute_features(tokens).last

    def why_plain(self) -> str | None:
        """Why the plain formula is used instead of `li2_lightning.kernel`; None where the kernel is used."""
        return "this network has no blocked kernel"

    def _blocked(self, tokens: Tensor, observe: Observer | None = None) -> Tensor:
        raise NotImplementedError

    def read(self, features: Tensor) -> Tensor:
        """Ŷ = Re(β F V), n × C; float32 at least, since losses are sums of small differences."""
        outputs = features @ (self.config.output_scale * self.V)
        outputs = outputs.real if outputs.is_complex() else outputs
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def roles(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every parameter under the role whose optimizer moves it: hidden, output or embedding."""
        roles: dict[str, list[tuple[str, nn.Parameter]]] = {"hidden": [], "output": [], "embedding": []}
        for name, parameter in self.named_parameters():
            roles[self.role_of(name, parameter)].append((name, parameter))
        return roles

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """The role of one parameter."""
        return "output" if name == "V" else "hidden"

    def layouts(self) -> dict[str, dict[str, str | int]]:
        """For every matrix which side is its input, and of how many matrices it is made (`optimizers.layouts`)."""
        return {name: self.layout_of(name) for name, parameter in self.named_parameters() if parameter.ndim > 1}

    def layout_of(self, name: str) -> dict[str, str | int]:
        """The layout of one matrix."""
        return {"orientation": "input_output"}

    def input_weights(self) -> Tensor | None:
        """The weights from the one-hots to the first hidden layer, d × K, detached; None where there are none."""
        return None

    @torch.no_grad()
    def normalize(self) -> None:
        """Apply ``network.normalize_weights`` after an update; nothing where it is off."""

    def _uniform(self, fan_in: int, fan_out: int, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """``torch.nn.Linear``'s default: uniform in ±1/√fan_in. Complex parts are drawn independently, each so."""
        bound = 1 / math.sqrt(fan_in)
        shape = (rows or fan_in, fan_out)

        def draw() -> Tensor:
            # Drawn in float32 whatever the precision, so that a float64 run starts where the float32 one does.
            values = torch.empty(shape).uniform_(-bound, bound, generator=self._generator)
            return values.to(dtype.to_real())

        return torch.complex(draw(), draw()) if dtype.is_complex else draw()


NETWORKS: Registry[type[Network]] = Registry("network", "li2_lightning.networks", makes=Network)


@NETWORKS.register("two_layer")
class TwoLayerNetwork(Network):
    """Ŷ = β·σ(XW)V, no biases, with the options of the ``network`` section.

    Extra layer l is residual, F ← σ(F + F·H_l). ``inner_product`` takes F = Π_i x_i W_i, without σ. With
    ``trainable_embedding`` each token's one-hot becomes a row of E. Batch norm acts on the pre-activation, has no
    parameters, and uses the statistics of the training rows.
    """

    def __init__(self, config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> None:
        dtype = dtype.to_complex() if config.complex_weights else dtype
        super().__init__(config, sizes, dtype, generator)
        self.activation = find_activation(config.activation)
        inputs = self.num_tokens * (1 if config.shared_embedding else self.num_operands)
        self.W = nn.Parameter(self._uniform(inputs, config.width, dtype))
        for layer in range(1, config.hidden_layers + 1):
            self.register_parameter(f"H{layer}", nn.Parameter(self._uniform(config.width, config.width, dtype)))
        if config.trainable_embedding:
            self.E = nn.Parameter(self._uniform(self.num_tokens, self.num_tokens, dtype))

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        return "embedding" if name == "E" else super().role_of(name, parameter)

    def layout_of(self, name: str) -> dict[str, str | int]:
        # The projections of the operands are multiplied, so each operand's W_i is a map by itself.
        if name == "W" and self.config.inner_product:
            return {**super().layout_of(name), "axis": -2, "matrices": len(self.W) // self.num_tokens}
        return super().layout_of(name)

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        seen: list[Moments] = []
        z = self._batch_norm(self._combine(tokens, self._tables()), moments, seen)
        features = first = z if self.config.inner_product else self.activation(z)
        for layer in range(1, self.config.hidden_layers + 1):
            z = features + features @ self.get_parameter(f"H{layer}")
            features = self.activation(self._batch_norm(z, moments, seen))
        return Features(features, first, tuple(seen))

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
        return table.repeat(self.num_operands, 1) if self.config.shared_embedding else table

    def node_features(self, tokens: Tensor, input_weights: Tensor) -> Tensor:
        """σ(Xw) of nodes with other input weights (d × any number), without batch norm; n × as many."""
        if self.why_plain() is None:
            index = tokens + self._offsets(tokens)
            blocks = list(feature_blocks(input_weights, index, self.activation))
            return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        z = self._combine(tokens, list(torch.split(input_weights, self.num_tokens)))
        return z if self.config.inner_product else self.activation(z)

    @property
    def node_degree(self) -> int | None:
        """How a node's feature scales with its input weights: f(cw) = c^degree f(w); None where it does not."""
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
            self.W.sub_(self.W.mean(dim=0, keepdim=True))
        self.V.sub_(self.V.mean(dim=1, keepdim=True))

    def _combine(self, tokens: Tensor, tables: list[Tensor]) -> Tensor:
        """XW, or in the inner-product form the product of the operands' projections; n × K."""
        z = _take_rows(tables[0], tokens[:, 0])
        for operand, table in enumerate(tables[1:], start=1):
            projection = _take_rows(table, tokens[:, operand])
            z = z * projection if self.config.inner_product else z + projection
        return z

    def _blocked(self, tokens: Tensor, observe: Observer | None = None) -> Tensor:
        readout = self.config.output_scale * self.V
        outputs = blocked_outputs(self._table(), readout, self._index(tokens), self.activation, observe)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _table(self) -> Tensor:
        """The tables of all operands under each other (d × K); one table where they share it."""
        if not self.config.trainable_embedding:
            return self.W
        return torch.cat([self.E @ half for half in torch.split(self.W, self.num_tokens)])

    def _index(self, tokens: Tensor) -> Tensor:
        """The rows of `_table` that make up each row of XW, n × k."""
        if self.config.shared_embedding:
            return tokens
        return tokens + self._offsets(tokens)

    def _offsets(self, tokens: Tensor) -> Tensor:
        """Where each operand's table begins, (k,)."""
        return self.num_tokens * torch.arange(self.num_operands, device=tokens.device)

    def _tables(self) -> list[Tensor]:
        """Per operand the M × K table whose row h is what token h adds to the pre-activation."""
        tables = list(torch.split(self._table(), self.num_tokens))
        return tables * self.num_operands if self.config.shared_embedding else tables

    def _batch_norm(self, z: Tensor, moments: tuple[Moments, ...], seen: list[Moments]) -> Tensor:
        if not self.config.batch_norm:
            return z
        current = moments[len(seen)] if moments else Moments(*moments_over_ranks(z))
        seen.append(current)
        return (z - current.mean) * torch.rsqrt(current.variance + BATCH_NORM_EPSILON)


@NETWORKS.register("transformer")
class TransformerNetwork(Network):
    """Token embedding + learned positions, an encoder, mean pooling, and a linear readout V.

    The encoder is torch's (post-norm, no dropout: full-batch runs are deterministic).
    """

    def __init__(self, config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__(config, sizes, dtype, generator)
        self.tokens = nn.Parameter(self._uniform(config.width, config.width, dtype, rows=self.num_tokens))
        self.positions = nn.Parameter(self._uniform(config.width, config.width, dtype, rows=self.num_operands))
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.transformer.heads,
            config.transformer.feedforward,
            dropout=0.0,
            activation=config.activation,
            batch_first=True,
            dtype=dtype,
        )
        self.encoder = nn.TransformerEncoder(layer, config.transformer.layers, enable_nested_tensor=False)
        with torch.no_grad():
            for module in self.encoder.modules():
                # torch draws from its global generator, and differently for the attention; ours is Linear's default
                # for every matrix, from our generator.
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.ndim == 2:
                        parameter.copy_(self._uniform(parameter.shape[1], parameter.shape[0], dtype).T)
                    elif name.endswith("bias"):
                        parameter.zero_()

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        if name in ("tokens", "positions") or parameter.ndim == 1:
            return "embedding"
        return super().role_of(name, parameter)

    def layout_of(self, name: str) -> dict[str, str | int]:
        # torch's encoder has outputs × inputs, and Q, K, V under each other, each of them head after head.
        if not name.startswith("encoder."):
            return super().layout_of(name)
        fused = {"axis": -2, "matrices": 3, "heads": self.config.transformer.heads}
        return {"orientation": "output_input", **(fused if name.endswith("in_proj_weight") else {})}

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        sequence = functional.embedding(tokens, self.tokens) + self.positions
        features = self.encoder(sequence).mean(dim=1)
        return Features(features, features)


def _take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table; torch differentiates the faster embedding for real tables only."""
    return table.index_select(0, index) if table.is_complex() else functional.embedding(index, table)


def build_network(config: NetworkConfig, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Network:
    """The network of the ``network`` section, with its initial weights."""
    network: Network = NETWORKS.build(config.name, "network", {}, config, sizes, dtype, generator)
    if config.initial_weights is not None:
        _load_weights(network, config.initial_weights)
    return network


def _load_weights(network: Network, path: str) -> None:
    """Replace the parameters by those of an ``.npz`` or of a checkpoint of ours."""
    where = f"network.initial_weights={path!r}"
    if not Path(path).is_file():
        raise InputError(f"{where} is no file; give an .npz with W and V, or a checkpoint of an earlier run.")
    weights = _read_npz(path, where) if path.endswith(".npz") else _read_checkpoint(path, where)
    parameters = dict(network.named_parameters())
    for name in sorted(parameters.keys() ^ weights.keys()):
        have = "has no" if name in parameters else "has an unexpected"
        raise InputError(f"{where} {have} array {name!r}; this network has {', '.join(parameters)}.")
    for name, parameter in parameters.items():
        value = weights[name]
        if value.shape != parameter.shape:
            raise InputError(
                f"{where}: {name} has shape {tuple(value.shape)}, but this network needs {tuple(parameter.shape)}."
            )
        if value.is_complex() and not parameter.is_complex():
            raise InputError(f"{where}: {name} is complex, so it needs network.complex_weights=true.")
        with torch.no_grad():
            parameter.copy_(value)
        # After the copy: a float64 value may be too large for this network's precision.
        if not torch.isfinite(parameter.abs()).all():
            raise InputError(f"{where}: {name} holds values that are not finite in {parameter.dtype}.")


def _read_npz(path: str, where: str) -> dict[str, Tensor]:
    try:
        weights = read_npz(Path(path))
    except (OSError, ValueError) as error:
        # numpy goes on with advice to unpickle, which nobody should follow.
        reason = re.split(r"[.;]\s|\n", str(error))[0].rstrip(".")
        raise InputError(f"{where} is not a readable .npz of plain arrays: {reason}.") from error
    for name, array in weights.items():
        if array.dtype.name not in ("float16", "float32", "float64", "complex64", "complex128", "int32", "int64"):
            raise InputError(f"{where}: {name} holds {array.dtype}; save it as float32, float64 or complex128.")
    # torch knows this machine's byte order only.
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in weights.items()}


def _read_checkpoint(path: str, where: str) -> dict[str, Tensor]:
    return network_weights(read_checkpoint(path, where))


def read_checkpoint(path: str, where: str) -> Mapping[str, object]:
    """A checkpoint's plain contents; data only, never code.

    Raises:
        DamagedError: no complete archive, or a checksum that differs.
        InputError: a file that cannot be read, is no checkpoint of ours, or holds more than plain data.
    """
    try:
        # torch writes checksums and does not look at them.
        with zipfile.ZipFile(path) as archive:
            is_whole = archive.testzip() is None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}.") from error
    except Exception:  # zipfile raises many kinds over an altered file
        is_whole = False
    if not is_whole:
        raise DamagedError(f"{where} is damaged or no checkpoint.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{where} is whole, but holds {_unsafe(path)}, which cannot be loaded safely.") from error
    except Exception as error:  # torch raises many kinds over an archive of another kind
        raise InputError(f"{where} is no checkpoint ({type(error).__name__}).") from error
    if not _is_ours(checkpoint):
        raise InputError(f"{where} is not a checkpoint of this project.")
    assert isinstance(checkpoint, dict)
    return checkpoint


def _unsafe(path: str) -> str:
    """The classes and functions that a checkpoint would have Python call, by name; none of them is called here."""
    with contextlib.suppress(Exception):  # what stands in a pickle need not be one
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "more than data"
    return "more than data"


def _is_ours(checkpoint: object) -> bool:
    """Whether it has the weights, and the row and config that `Li2Module` adds."""
    if not isinstance(checkpoint, dict):
        return False
    weights, ours = checkpoint.get("state_dict"), checkpoint.get("li2_lightning")
    if not isinstance(weights, dict) or not isinstance(ours, dict):
        return False
    all_tensors = all(isinstance(value, Tensor) for value in weights.values())
    return all_tensors and isinstance(ours.get("row"), int) and isinstance(ours.get("config"), dict)


def network_weights(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The network's parameters out of a checkpoint's ``state_dict``."""
    state = checkpoint["state_dict"]
    assert isinstance(state, dict)
    prefix = "network."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
