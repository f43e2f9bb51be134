"""A small transformer to compare the two-layer network with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from li2_lightning.config.schema import NetworkConfig
from li2_lightning.networks.base import NETWORKS, Features, Moments, Network, Sizes


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
                # torch draws from its global generator and initializes attention differently. Here every matrix gets
                # the default of torch.nn.Linear, drawn from the generator of the run.
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
        # The matrices of torch's encoder are outputs × inputs. One of them holds Q, K and V, each head after head.
        if not name.startswith("encoder."):
            return super().layout_of(name)
        fused = {"axis": -2, "matrices": 3, "heads": self.config.transformer.heads}
        return {"orientation": "output_input", **(fused if name.endswith("in_proj_weight") else {})}

    def compute_features(self, tokens: Tensor, moments: tuple[Moments, ...] = ()) -> Features:
        sequence = functional.embedding(tokens, self.tokens) + self.positions
        features = self.encoder(sequence).mean(dim=1)
        return Features(features, features)
