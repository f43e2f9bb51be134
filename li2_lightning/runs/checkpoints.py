"""Checkpoints: the values that one may hold, reading one, and the runs that may continue from it.

A checkpoint holds only values that ``torch.load(..., weights_only=True)`` restores unchanged: data, never code. Its
entry ``li2_lightning`` has the row, the config, and the further entries of `Li2Module` and the checkpoint callback.

State that is much larger than the weights is not in a checkpoint: the file ``row-NNNNNN.window`` beside it holds the
``window_dict()`` of every callback that has one. Only the newest row has this file.
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import Parameter

from li2_lightning.config.identity import input_digests, is_within
from li2_lightning.config.schema import Config, leaves, to_plain
from li2_lightning.errors import DamagedError, InputError, message
from li2_lightning.files import read_npz, row_files
from li2_lightning.runs.metrics_csv import count_rows

# Exact types: an IntEnum is an int and a NumPy float64 is a float, but torch loads neither of them.
VALUES = (type(None), bool, int, float, complex, str, bytes, Tensor, Parameter, torch.Size, torch.dtype, torch.device)
CONTAINERS = (dict, OrderedDict, list, tuple, set)
WINDOW = ".window"
# The sections of Lightning's checkpoints that hold one state for each index or key -> the owner of such a state.
OWNERS = {"callbacks": "callback", "optimizer_states": "optimizer", "lr_schedulers": "scheduler"}
# The types of arrays that an .npz of initial weights may have.
NUMBERS = ("float16", "float32", "float64", "complex64", "complex128", "int32", "int64")
# Sections and keys that a run must share with the checkpoint from which it continues.
SHAPING = ("seed", "loss", "task", "data", "network", "optimizer", "scheduler", "trainer.precision")


# -- allowed values ---------------------------------------------------------------------------------------------------


def find_foreign(value: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any] | None:
    """The keys that lead to the first value that is not allowed, and this value; None where all values are allowed."""
    if type(value) in VALUES:
        return None
    if type(value) not in CONTAINERS:
        return path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        found = find_foreign(entry, (*path, str(key)))
        if found is None and isinstance(value, dict):
            found = find_foreign(key, (*path, str(key)))
        if found is not None:
            return found
    return None


def check_plain(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint can be read again once it is written. Nothing is converted.

    Raises:
        InputError: a value is not allowed; names the callback, optimizer or scheduler, and the place in its state.
    """
    found = find_foreign(dict(checkpoint))
    if found is None:
        return
    (section, *path), value = found
    if section in OWNERS and path:
        owner, *path = path
        whose = f"The state of {OWNERS[section]} {owner}"
    else:
        whose = f"The checkpoint's {section}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    where = f" at {'.'.join(path)}" if path else ""
    raise InputError(
        f"{whose} holds a {kind}{where}, and a checkpoint "
        "holds only tensors, numbers, strings, and lists, tuples, sets and dicts of these; let its state_dict return "
        "one of them, for example number.item() or torch.from_numpy(array) for NumPy's."
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """The contents of a checkpoint of this project. No code of the file is run.

    Args:
        path: the file.
        where: names the file at the beginning of an error message.

    Raises:
        DamagedError: the file is no complete archive, or a checksum differs.
        InputError: the file cannot be read, holds more than plain data, or is no checkpoint of this project.
    """
    checkpoint = _read_archive(path, where)
    if not _is_ours(checkpoint):
        raise InputError(f"{where} is not a checkpoint of this project.")
    assert isinstance(checkpoint, dict)
    return checkpoint


def _read_archive(path: Path, where: str) -> Any:
    """What ``torch.save`` wrote into a file; arguments and errors as for `read_checkpoint`."""
    try:
        # torch writes checksums, but does not compare them.
        with zipfile.ZipFile(path) as archive:
            is_whole = archive.testzip() is None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}.") from error
    except Exception:  # zipfile raises many kinds over an altered file
        is_whole = False
    if not is_whole:
        raise DamagedError(f"{where} is damaged or no checkpoint.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{where} is whole, but holds {_unsafe(path)}, which cannot be loaded safely.") from error
    except Exception as error:  # torch raises many kinds over an archive of another kind
        raise InputError(f"{where} is no checkpoint ({type(error).__name__}).") from error


def read_own_part(path: Path, where: str) -> dict[str, Any]:
    """The entry ``li2_lightning`` of a checkpoint, with two entries added.

    ``step`` is the number of updates before the checkpoint, and ``resumable`` tells whether it holds the whole state.

    Raises:
        InputError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path, where)
    added = {"step": checkpoint["global_step"], "resumable": "optimizer_states" in checkpoint}
    return {**checkpoint["li2_lightning"], **added}


def read_window(checkpoint: Path, step: int, key: str) -> dict[str, Any] | None:
    """The ``window_dict()`` that a callback had at a checkpoint; None where it was not kept.

    Args:
        checkpoint: the file of the checkpoint, under any name in its ``checkpoints/``.
        step: the updates before the checkpoint.
        key: the ``state_key`` of the callback.

    Raises:
        InputError: the file is damaged, or cannot be read.
    """
    path = checkpoint.with_name(f"row-{step:06d}{WINDOW}")
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = _read_archive(path, str(path))
    except DamagedError as error:
        raise InputError(f"{path} is damaged; remove it, and the run goes on as from an older checkpoint.") from error
    return found.get(key)


def remove_windows(folder: Path, keep: int) -> None:
    """Remove all ``row-NNNNNN.window`` but the ``keep`` newest from a ``checkpoints/``."""
    for path in list(row_files(folder, WINDOW).values())[:-keep]:
        path.unlink()


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's parameters in a checkpoint, by their names in the network."""
    prefix = "network."
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_weights(path: str | None, key: str) -> dict[str, Tensor] | None:
    """The arrays of an ``.npz``, or the network's parameters in a checkpoint; None for None.

    Args:
        path: the file.
        key: the key of the config that names the file.

    Raises:
        InputError: the file is missing, cannot be read, or holds values that are no numbers.
    """
    if path is None:
        return None
    where = f"{key}={path!r}"
    if not Path(path).is_file():
        raise InputError(f"{where} is no file; give an .npz with W and V, or a checkpoint of an earlier run.")
    if not path.endswith(".npz"):
        return network_weights(read_checkpoint(Path(path), where))
    try:
        arrays = read_npz(Path(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{where} is not a readable .npz of plain arrays: {message(error)}.") from error
    for name, array in arrays.items():
        if array.dtype.name not in NUMBERS:
            raise InputError(f"{where}: {name} holds {array.dtype}; save it as float32, float64 or complex128.")
    # torch takes arrays in this machine's byte order only.
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}


def _unsafe(path: Path) -> str:
    """The names of the classes and functions that an unrestricted load would call; none is called here."""
    with contextlib.suppress(Exception):  # the entry may be no pickle at all
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "more than data"
    return "more than data"


def _is_ours(checkpoint: object) -> bool:
    """Whether a loaded file holds the weights of a network, and the row and the config that `Li2Module` adds."""
    if not isinstance(checkpoint, dict):
        return False
    weights, ours = checkpoint.get("state_dict"), checkpoint.get("li2_lightning")
    if not isinstance(weights, dict) or not isinstance(ours, dict):
        return False
    all_tensors = all(isinstance(value, Tensor) for value in weights.values())
    return all_tensors and isinstance(ours.get("row"), int) and isinstance(ours.get("config"), dict)


# -- continuing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The checkpoint from which a run continues.

    Attributes:
        checkpoint: the file.
        row: the last row before the checkpoint.
        step: the updates before the checkpoint; more than ``row`` where the earlier run was interrupted between rows.
        max_steps: the length of the run that wrote the checkpoint.
        wandb: holds the ``id`` of the W&B run that the further rows belong to; None begins a new W&B run.
    """

    checkpoint: Path
    row: int
    step: int
    max_steps: int
    wandb: Mapping[str, Any] | None


def continue_from(checkpoint: Path, ours: Mapping[str, Any], config: Config, directory: Path) -> Start:
    """Check that a run may continue from a checkpoint.

    Args:
        checkpoint: the file.
        ours: `read_own_part` of the file.
        config: the config of the run that continues.
        directory: the directory of the run that continues.

    Raises:
        InputError: the checkpoint holds the weights alone; or it lies at or after the end of the run; or it belongs to
            another experiment (every key
            that shapes the trajectory must agree; ``max_steps`` and the measurements may differ); or metrics.csv lacks
            rows that it had when the checkpoint was written.
    """
    where = f"resume={str(checkpoint)!r}"
    if not ours["resumable"]:
        raise InputError(
            f"{where} holds the weights of row {ours['row']} without the state of the optimizer; continue from a "
            f"row-….ckpt, start a new run with network.initial_weights={str(checkpoint)!r}, or train with "
            "callbacks.checkpoint.resumable=true."
        )
    plain = to_plain(config)
    within = lies_in(checkpoint, directory)
    before, now = OmegaConf.create(ours["config"]), OmegaConf.create(plain)
    digests_before, digests = ours.get("inputs", {}), input_digests(config)
    # A directory is named by the hash of its config, so within it a key differs only where one config writes a default.
    for key in [] if within else [key for key in leaves() if is_within(key, SHAPING)]:
        if key in digests_before and key in digests:
            # The contents are compared, because a file may have been moved, or edited under the same name.
            if digests_before[key] != digests[key]:
                raise InputError(f"{where} was trained with another file as {key}; set it to that file.")
        elif (theirs := OmegaConf.select(before, key)) != (own := OmegaConf.select(now, key)):
            raise InputError(f"{where} was trained with {key}={theirs}, not {own}; set it alike.")
    if ours["row"] >= config.max_steps:
        raise InputError(f"{where} holds row {ours['row']} already, and max_steps={config.max_steps} ends there.")
    if updates_left(ours, plain) == 0:
        key = "max_steps" if config.stop_at_test_accuracy is None else "stop_at_test_accuracy"
        raise InputError(f"{where} holds row {ours['row']}, with which its run ended; another {key} lets it go on.")
    rows = directory / "metrics.csv"
    if not rows.exists():
        rows = checkpoint.parent.parent / "metrics.csv"
    # A checkpoint that was moved out of its run directory has no rows beside it; its run starts a new file.
    found = count_rows(rows, ours["row"]) if within or rows.exists() else ours.get("rows", 0)
    if found < ours.get("rows", 0):
        raise InputError(
            f"{rows} has {found} of the {ours['rows']} rows that {where} continues; put the file back, or start over "
            "with force=true."
        )
    # A longer run has another directory, and is another run on W&B, too.
    wandb = ours.get("wandb") if within else None
    return Start(checkpoint, int(ours["row"]), int(ours["step"]), int(ours["config"]["max_steps"]), wandb)


def lies_in(checkpoint: Path, directory: Path) -> bool:
    """Whether a checkpoint lies in the ``checkpoints/`` of a run directory."""
    return checkpoint.resolve().parent.parent == directory.resolve()


def updates_left(ours: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """The updates that are left, 1 or 0, of a run that had been asked to stop before a checkpoint; else None.

    The request also holds for the run that continues, unless that run has another ``stop_at_test_accuracy`` or, where
    neither run sets this key, another ``max_steps``.

    Args:
        ours: the entry ``li2_lightning`` of the checkpoint.
        config: the plain config of the run that continues from it.
    """
    left: int | None = ours.get("updates_left")
    before, key = ours["config"], "stop_at_test_accuracy"
    if before.get(key) is None:
        key = "max_steps" if config.get(key) is None else key
    return left if before.get(key) == config.get(key) else None
