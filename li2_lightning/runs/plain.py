"""What a checkpoint may hold: values that ``torch.load(..., weights_only=True)`` gives back as they were."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from li2_lightning.errors import InputError

# By their exact types: an IntEnum is an int, and a NumPy float64 a float, and neither is read.
VALUES = (type(None), bool, int, float, complex, str, bytes, Tensor, Parameter, torch.Size, torch.dtype, torch.device)
CONTAINERS = (dict, OrderedDict, list, tuple, set)
# Sections of Lightning's checkpoints, and whose state stands there under an index or a key.
OWNERS = {"callbacks": "callback", "optimizer_states": "optimizer", "lr_schedulers": "scheduler"}

Path = tuple[str, ...]


def find_foreign(value: Any, path: Path = ()) -> tuple[Path, Any] | None:
    """The keys that lead to the first value of another type, and the value; None where all are plain."""
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
    """Refuse what could be written and not be read again. Nothing is converted.

    Raises:
        InputError: names the callback, optimizer or scheduler, and where in its state the value stands.
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
