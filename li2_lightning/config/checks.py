"""From the user's values to a checked config, or to an error of one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from operator import attrgetter
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from li2_lightning.cadence import spelled_once
from li2_lightning.config.identity import follow_latest, multiplied, multiply, run_name
from li2_lightning.config.schema import Config, NetworkConfig, OptimizerConfig, declared, keys, to_plain
from li2_lightning.errors import InputError, nearest, readable, unknown
from li2_lightning.plugins import package


def read_config(values: Config | DictConfig | Mapping[str, Any]) -> Config:
    """The checked config, with the defaults of callbacks and optimizers written into it.

    Equal settings therefore share a hash, and config.yaml holds every value that was used.

    Raises:
        InputError: a key, a value or a plug-in does not fit.
    """
    config = load_config(values)
    config.callbacks = package("callbacks").with_defaults(config.callbacks)
    spelled = package("optimizers").spell_out(asdict(config.optimizer), multiplied(config))
    config.optimizer = OptimizerConfig(**spelled)
    multiply(config)
    return config


def load_config(values: Config | DictConfig | Mapping[str, Any]) -> Config:
    """Merge ``values`` into the defaults and check them.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range, keys that exclude each other.
    """
    try:
        if not isinstance(values, DictConfig):
            values = OmegaConf.create(to_plain(values) if isinstance(values, Config) else dict(values))
        # Made plain first: in a typed config OmegaConf accepts an unknown key that was added by "+key=…".
        plain = OmegaConf.to_container(values)
        _refuse_environment(plain)
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), plain))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    if config.task.name == "cyclic" and config.task.order is None:
        config.task.order = 71
    config.data.evaluate_every_n_steps = spelled_once(config.data.evaluate_every_n_steps)
    follow_latest(config)
    _check_values(config)
    _check_combinations(config)
    return config


@cache
def _schema() -> DictConfig:
    """The defaults as a typed config, which takes half as long to make as the rest of a config; not to be changed."""
    schema: DictConfig = OmegaConf.structured(Config)
    return schema


def _refuse_environment(value: Any, key: str = "") -> None:
    """Refuse ``${oc.env:…}``, whose value may be a secret that config.yaml, checkpoints and W&B would store."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_environment(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _refuse_environment(item, key)
    elif isinstance(value, str) and re.search(r"\$\{\s*oc\.env", value):
        raise InputError(f"{key}={value!r} reads the environment, which may hold secrets; write the value itself.")


def explain(error: OmegaConfBaseException) -> InputError:
    """An error of OmegaConf as one sentence with the key and, for an unknown key, the nearest known one."""
    key = readable(error.full_key or "")
    if re.search(r"not in|is not in struct", str(error.msg)):
        return unknown_key(key)
    lines = str(error.msg).splitlines() if error.msg else []
    reason = readable(lines[0].rstrip(".")) if lines else type(error).__name__
    if key and "is not Optional" in reason:
        return InputError(f"{key} cannot be null; write a value, or leave the key out for its default.")
    if key and re.match(r"Cannot assign \w+ to Dict", reason):
        return InputError(f"{key} is a section and takes no value itself; set its keys, as in {key}.KEY=VALUE.")
    if "type hint 'Optional[Union" in reason:
        words = (bound.words for name, item in declared() if name == key for bound in item.metadata["range"])
        return InputError(f"The value of {key} does not fit: it must be {' and '.join(words)}.")
    return InputError(f"The value of {key} does not fit: {reason}." if key else f"The config does not fit: {reason}.")


def unknown_key(key: str) -> InputError:
    """The error for a key that the schema does not have."""
    known = list(keys())
    parent = key.rpartition(".")[0]
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    listed = f" {parent or 'The top level'} has {', '.join(sorted(siblings))}." if siblings else ""
    return InputError(f"Unknown key {key!r}.{listed}{nearest(key, known)}")


def _check_values(config: Config) -> None:
    """Compare each value with the range and the choices that its key declares."""
    for key, item in declared():
        value, choices = attrgetter(key)(config), item.metadata["choices"]
        for bound in item.metadata["range"]:
            if value is not None and not bound.holds(value):
                raise InputError(f"{key}={value!r} is out of range; it must be {bound.words}.")
        for word in value if isinstance(value, list) else [value]:
            if choices and word not in choices:
                raise unknown(f"value of {key}:", word, choices)


def _check_combinations(config: Config) -> None:
    """Check the values that depend on each other."""
    network = config.network
    # A path from a shell's variable that is not set would mean the current folder.
    if not config.output_dir:
        raise InputError("output_dir='' names no folder; write output_dir=. for the current one.")
    if config.stack != "auto" and not (config.stack.isdecimal() and int(config.stack) >= 1):
        raise InputError(f"stack={config.stack!r} does not fit; it is auto or a number of runs, at least 1.")
    for role in ("hidden", "output", "embedding"):
        if "name" not in getattr(config.optimizer, role):
            raise InputError(f"optimizer.{role} has no name; say for example optimizer.{role}.name=adam.")
    if network.readout == "ridge" and config.loss in ("cross_entropy", "cross_entropy_float64", "stablemax"):
        raise InputError(f"network.readout=ridge has no solution for loss={config.loss}; use mse or projected_mse.")
    if network.readout == "gradient" and network.ridge is not None:
        raise InputError(f"network.ridge={network.ridge} is read only with network.readout=ridge; add that or drop it.")
    if network.initial_weights is not None:
        for key in ("init_scale", "hidden_init_scale", "readout_init_scale"):
            if getattr(network, key) != 1:
                raise InputError(
                    f"network.{key}={getattr(network, key)} scales drawn weights, and network.initial_weights replaces "
                    "them; set one of the two."
                )
    if network.inner_product and network.hidden_layers == 0 and network.activation not in ("square", "identity"):
        raise InputError(
            f"network.inner_product=true applies no activation, so network.activation={network.activation!r} would "
            "have no effect; leave it at its default."
        )
    if network.name == "transformer":
        _check_transformer(network)
    if not network.residual and network.hidden_layers == 0:
        raise InputError("network.residual=false is about extra layers; set network.hidden_layers, too, or drop it.")
    run_name(config)


def _check_transformer(network: NetworkConfig) -> None:
    default = NetworkConfig()
    for key in ("hidden_layers", "residual", "complex_weights", "trainable_embedding", "shared_embedding", "batch_norm",
                "inner_product", "normalize_weights", "initial_weights", "hidden_init_scale"):  # fmt: skip
        if getattr(network, key) != getattr(default, key):
            raise InputError(f"network.{key} belongs to network=two_layer; the transformer does not take it.")
    if network.activation not in ("relu", "gelu"):
        raise InputError(
            f"network.activation={network.activation!r} is not one the transformer takes; use relu or gelu."
        )
    heads = network.transformer.heads
    if network.width % heads:
        raise InputError(
            f"network.width={network.width} is no multiple of network.transformer.heads={heads}; each head takes an "
            "equal part."
        )
