"""From a config to a network with its initial weights, and to the optimizer of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from li2_lightning.config.schema import Config, NetworkConfig
from li2_lightning.errors import InputError
from li2_lightning.networks import transformer, two_layer  # noqa: F401 (they register themselves)
from li2_lightning.networks.base import NETWORKS, Network, Sizes
from li2_lightning.plugins import package
from li2_lightning.seeds import generator, keeping_random_state


def build_network(
    config: NetworkConfig,
    sizes: Sizes,
    dtype: torch.dtype,
    generator: torch.Generator,
    weights: Mapping[str, Tensor] | None = None,
    where: str | None = None,
) -> Network:
    """The network of the ``network`` section.

    Args:
        config: the section.
        sizes: the sizes of the task.
        dtype: the type of the parameters.
        generator: draws the initial weights.
        weights: the arrays of ``network.initial_weights`` (`li2_lightning.runs.checkpoints.read_weights`), or of a
            trained network, which replace the drawn weights.
        where: names the source of ``weights`` in an error; None: ``network.initial_weights``.

    Raises:
        InputError: ``weights`` do not fit the network.
        ValueError: the section names initial weights, and ``weights`` are missing.
    """
    if config.initial_weights is not None and weights is None:
        raise ValueError(f"The weights of network.initial_weights={config.initial_weights!r} are missing.")
    network: Network = NETWORKS.build(config.name, "network", {}, config, sizes, dtype, generator)
    if weights is not None:
        _set_weights(network, weights, where or f"network.initial_weights={config.initial_weights!r}")
    return network


def restore_network(config: Config, sizes: Sizes, weights: Mapping[str, Tensor] | None, where: str | None) -> Network:
    """The network of a run with its initial weights or those of a checkpoint; arguments as for `build_network`."""
    dtype = torch.float64 if config.trainer.precision == "64-true" else torch.float32
    return build_network(config.network, sizes, dtype, generator(config.seed, "initial weights"), weights, where)


def build_optimizer(config: Config, network: Network) -> tuple[Optimizer, LRScheduler | None]:
    """The optimizer of the weights of a network, and its schedule.

    Raises:
        InputError: a name or an option of an optimizer or of the schedule does not fit.
    """
    optimizers = package("optimizers")
    optimizers.check_cover(list(network.named_parameters()), network.roles())
    build = partial(optimizers.build_optimizer, config=asdict(config.optimizer), layouts=network.layouts())
    with keeping_random_state():
        optimizers.rehearse(build, network.roles())
    optimizer = build(network.roles())
    return optimizer, optimizers.build_scheduler(optimizer, config.scheduler, config.max_steps)


def _set_weights(network: Network, weights: Mapping[str, Tensor], where: str) -> None:
    """Replace every parameter by the array of its name; ``where`` begins each error."""
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
