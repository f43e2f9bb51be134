"""The hash, the name and the input files of a run, and the values that several keys determine together.

A run directory is named after `run_name` and `config_hash`, so both depend on the config alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from li2_lightning.config.schema import TRAIN_FRACTION, Config, leaves
from li2_lightning.errors import InputError
from li2_lightning.files import read_input
from li2_lightning.plugins import IDENTITIES

NOT_HASHED = (
    "seed", "output_dir", "name", "logger", "resume", "force", "debug", "stack", "trainer.threads",
    "trainer.oversubscribe", "callbacks.progress", "callbacks.pictures", "callbacks.snapshots", "callbacks.checkpoint",
    "callbacks.report",
    "trainer.extra.profiler", "trainer.extra.detect_anomaly", "trainer.extra.deterministic", "trainer.extra.benchmark",
    "trainer.extra.enable_model_summary",
)  # fmt: skip
"""Keys and sections that change where a run is stored or how it is shown, and none of its numbers."""

NUMERICS = 2
"""Counts the releases whose numbers differ.

Raise it when a release trains or measures differently under an unchanged config by more than rounding: another default
(of the schema or of a plug-in of ours), another initialization, split or order of mini-batches, another definition of a
column. Every run then has a new directory. A new key whose default is the old behaviour needs no raise.
"""

PLUG_IN_SECTIONS = ("task", "optimizer", "scheduler", "callbacks")
"""Sections with options of plug-ins, whose defaults the schema does not know (`li2_lightning.plugins.identifies`)."""

INPUT_FILES = ("task.path", "data.split_file", "network.initial_weights")
"""Keys that hold the path of a file."""

LATEST = "latest"
"""The link in output_dir that points to the newest run."""


def config_hash(config: Config) -> str:
    """Ten hexadecimal digits that change with every setting that changes the numbers of a run, except the seed.

    A value that equals its default does not count, so a new key with a default leaves every hash as it is. An input
    file counts by its content: an edited table is another run, and a moved table is the same run.

    Raises:
        InputError: an input file cannot be read, or the name of a plug-in is unknown.
    """
    schema: Any = type(config)
    default, values = _default_identity(schema), _identity(config)
    counted = {key: value for key, value in values.items() if value != default.get(key)}
    counted |= {key: digest for key, digest in input_digests(config).items() if key in counted}
    text = json.dumps({"numerics": NUMERICS, **counted}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def _default_identity(schema: Any) -> Mapping[str, Any]:
    return _identity(schema())


def _identity(config: Config) -> dict[str, Any]:
    """Every value that may change the numbers, by its dotted key; None for a value that is not set."""
    plain = asdict(config)
    if missing := set(PLUG_IN_SECTIONS) - set(IDENTITIES):
        raise RuntimeError(f"No identity is registered for {', '.join(sorted(missing))}; import train first.")
    for section in PLUG_IN_SECTIONS:
        plain[section] = IDENTITIES[section](plain[section])
    if plain["data"]["train_fraction"] == TRAIN_FRACTION:
        plain["data"]["train_fraction"] = None
    if plain["data"]["seed"] == config.seed:
        plain["data"]["seed"] = None
    # A shared weight decay counts as the value that each role gets, but η of a ridge readout belongs to no role.
    if config.network.readout == "ridge" and config.network.ridge is None:
        plain["optimizer"] = {**plain["optimizer"], "weight_decay": config.optimizer.weight_decay}
    values = {key: _look_up(plain, key) for key in leaves(type(config))}
    for section in ("callbacks", "trainer.extra"):
        values |= {f"{section}.{label}": options for label, options in values.pop(section).items()}
    return {key: value for key, value in values.items() if not is_within(key, NOT_HASHED)}


def _look_up(section: Any, key: str) -> Any:
    """The value at a dotted key; None where the key is missing."""
    for part in key.split("."):
        section = section.get(part) if isinstance(section, Mapping) else None
    return section


def is_within(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``sections`` (keys and sections), or lies in one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def input_digests(config: Config) -> dict[str, str]:
    """SHA-256 of each input file that is given, by its key.

    Raises:
        InputError: a file cannot be read.
    """
    paths = {key: attrgetter(key)(config) for key in INPUT_FILES}
    return {key: hashlib.sha256(read_input(path, key)).hexdigest() for key, path in paths.items() if path is not None}


def files_read(config: Config) -> dict[str, str]:
    """The path of each file that the run reads, by its key: its input files, and the checkpoint of ``resume``."""
    paths = {key: attrgetter(key)(config) for key in (*INPUT_FILES, "resume")}
    return {key: path for key, path in paths.items() if path is not None and (key, path) != ("resume", "auto")}


def follow_latest(config: Config) -> None:
    """Replace the link `LATEST` in the paths of `files_read` by the run that it points to.

    A run points the link to itself when it starts: before it loads its checkpoint, and before the next run of a sweep.
    """
    for key, path in files_read(config).items():
        link = next((folder for folder in Path(path).parents if folder.name == LATEST and folder.is_symlink()), None)
        if link is not None:
            section, _, name = key.rpartition(".")
            target = link.parent / os.readlink(link) / Path(path).relative_to(link)
            setattr(attrgetter(section)(config) if section else config, name, str(target))


def run_name(config: Config) -> str:
    """The folder of the run in ``output_dir``: ``name``, else task and hidden optimizer.

    Raises:
        InputError: ``name`` is no plain folder name. A path could lead out of ``output_dir``.
    """
    if config.name is None:
        derived = f"{config.task.name}-{config.optimizer.hidden.get('name', '')}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", derived).strip(".-")
    if config.name == LATEST:
        raise InputError(f"name={LATEST!r} is taken by the link to the newest run; choose another.")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", config.name):
        raise InputError(
            f"name={config.name!r} is not a plain folder name; use up to 100 letters, digits, '.', '_' and '-'."
        )
    return config.name


def role_value(optimizer: Mapping[str, Any], role: str, key: str) -> Any:
    """``lr`` or ``weight_decay`` of one role of an optimizer section: the role's own value, else the shared one."""
    own = optimizer[role].get(key)
    return optimizer[key] if own is None else own


def ridge_strength(config: Config, n: int) -> float | None:
    """η of the ridge readout for n training rows: ``network.ridge``, else nλ/2 with the decay of the output role.

    None where V is trained by its gradient.

    Raises:
        InputError: η is zero.
    """
    if config.network.readout != "ridge":
        return None
    decay = role_value(vars(config.optimizer), "output", "weight_decay") or 0.0
    ridge = config.network.ridge if config.network.ridge is not None else n * float(decay) / 2
    if ridge <= 0:
        raise InputError("network.readout=ridge needs network.ridge or optimizer.weight_decay to be positive.")
    return ridge


def multiply(config: Config) -> None:
    """Replace every learning rate and weight decay by its multiple, and the multiples by 1.

    Raises:
        InputError: no learning rate, or no weight decay, is set that could be multiplied.
    """
    optimizer = config.optimizer
    for key in multiplied(config):
        multiple = getattr(config.multiple, key)
        sections = (vars(optimizer), optimizer.hidden, optimizer.output, optimizer.embedding)
        written = [section for section in sections if _is_number(section.get(key))]
        if not written:
            raise InputError(f"multiple.{key}={multiple} has nothing to multiply; set optimizer.{key}, too.")
        for section in written:
            section[key] = _product(section[key], multiple)
        setattr(config.multiple, key, 1.0)


def multiplied(config: Config) -> list[str]:
    """The keys of the ``multiple`` section that are not 1."""
    return [key for key, multiple in vars(config.multiple).items() if multiple != 1]


def _is_number(value: Any) -> bool:
    try:
        float(value)  # YAML 1.1 reads 1e-3 as a string
    except (TypeError, ValueError):
        return False
    return True


def _product(value: float | str, multiple: float) -> float:
    """The product rounded to 12 digits, so that 3 · 2e-4 has the hash of 6e-4."""
    return float(f"{float(value) * multiple:.12g}")
