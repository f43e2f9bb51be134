"""The split of a task's rows into training and test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from li2_lightning.config.schema import TRAIN_FRACTION
from li2_lightning.errors import InputError, message
from li2_lightning.files import read_npz
from li2_lightning.groups.finite_group import check_integer
from li2_lightning.tasks.tasks import IntArray, Task


@dataclass(frozen=True, eq=False)
class Split:
    """Row indices into a task, each sorted and without duplicates; the two are disjoint."""

    train: IntArray
    test: IntArray


def data_seed(data: Mapping[str, Any], seed: int) -> int:
    """The seed of the split and of the mini-batches: ``data.seed``, else the seed of the run."""
    own = data.get("seed")
    return seed if own is None else int(own)


def build_split(task: Task, data: Mapping[str, Any], seed: int) -> Split:
    """The split of a ``data`` section in a run with that seed; arguments and errors as for `split_rows`."""
    sizes = ("train_fraction", "train_size", "critical_ratio", "split_file")
    return split_rows(
        task,
        seed=data_seed(data, seed),
        keep_pairs_together=bool(data.get("keep_pairs_together")),
        **{key: data.get(key) for key in sizes},
    )


def split_rows(
    task: Task,
    *,
    seed: int,
    train_fraction: float | None = None,
    train_size: int | None = None,
    critical_ratio: float | None = None,
    split_file: str | Path | None = None,
    keep_pairs_together: bool = False,
) -> Split:
    """Divide a task's rows into training and test rows.

    At most one of the first four options may be given; without any the fraction is .4. A random split depends on
    ``seed``, N and, with ``keep_pairs_together``, the operands, so it is the same on every machine and rank. With the
    same seed a larger training set contains a smaller one; with ``keep_pairs_together``, all but one row of it.

    Args:
        train_fraction: floor(fraction·N + 1e-9) training rows.
        train_size: number of training rows.
        critical_ratio: the fraction as a multiple of ``task.predicted_fraction``.
        split_file: an ``.npz`` with integer arrays ``train`` and ``test`` of row numbers; some rows may be in neither.
        keep_pairs_together: the rows (a, b) and (b, a) are on the same side. A row (a, a), and a row whose mirror image
            is not in the task, makes every size possible. In a task without such rows a fraction gives the largest even
            number of rows, and an odd ``train_size`` is an error.

    Raises:
        InputError: more than one of the four sizes, a value out of range, a side without rows, a broken split file, or
            pairs that cannot be kept together.
    """
    given = {
        "data.train_fraction": train_fraction,
        "data.train_size": train_size,
        "data.critical_ratio": critical_ratio,
        "data.split_file": split_file,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} are set; set at most one of them.")
    if keep_pairs_together and split_file is not None:
        raise InputError(
            "data.keep_pairs_together=true draws a split, and data.split_file brings its own; set one of the two."
        )
    if keep_pairs_together and task.num_operands != 2:
        raise InputError(
            f"data.keep_pairs_together=true keeps (a, b) and (b, a) together, which needs task.num_operands=2, and the "
            f"task {task.name} has {task.num_operands}."
        )
    if split_file is not None:
        return _read_split(task, Path(split_file))
    rows = len(task.labels)
    if rows < 2:
        raise InputError(f"The task {task.name} has a single row; a split needs at least two.")
    if train_size is not None:
        size = check_integer(train_size, "data.train_size", 1, rows - 1)
    else:
        if critical_ratio is not None:
            fraction, origin = _critical(task, critical_ratio)
        else:
            fraction = _check_real(TRAIN_FRACTION if train_fraction is None else train_fraction, "data.train_fraction")
            origin = f"data.train_fraction = {fraction}"
        if not 0 < fraction < 1:
            raise InputError(f"{origin} is no fraction of the rows to train on; it must lie between 0 and 1.")
        size = math.floor(fraction * rows + 1e-9)
        if not 0 < size < rows:
            side = "training" if size == 0 else "test"
            raise InputError(f"{origin} leaves no {side} row of the {rows} of the task {task.name}.")
    # NumPy guarantees the raw stream of PCG64 for all versions, but not the result of permutation().
    bits = np.random.PCG64(check_integer(seed, "seed", 0, 2**64 - 1)).random_raw(rows)
    if keep_pairs_together:
        order, size = _order_pairs(task, bits, size, exactly=train_size is not None)
    else:
        order = np.argsort(bits, kind="stable")
    return Split(np.sort(order[:size]), np.sort(order[size:]))


def _order_pairs(task: Task, bits: npt.NDArray[np.uint64], size: int, exactly: bool) -> tuple[IntArray, int]:
    """An order of the rows whose first ``size`` rows divide no pair of (a, b) and (b, a), and that size.

    The pairs, and the rows without a partner, are ordered by the bits of their first row. If the end of the training
    rows falls inside a pair, the next row without a partner comes in; if there is none, the last one of the training
    rows makes room for the whole pair.

    Args:
        exactly: an impossible size is an error; otherwise the size is one less.
    """
    codes = task.operands @ np.array([task.num_tokens, 1])
    mirrored = task.operands @ np.array([1, task.num_tokens])
    _, first, pair, counts = np.unique(
        np.minimum(codes, mirrored), return_index=True, return_inverse=True, return_counts=True
    )
    if len(np.unique(codes)) < len(codes):
        raise InputError(f"data.keep_pairs_together=true needs each row once, and the task {task.name} repeats one.")
    order: IntArray = np.lexsort((pair, bits[first[pair]]))
    alone = np.flatnonzero(counts[pair[order]] == 1)
    if pair[order[size - 1]] != pair[order[size]]:
        return order, size
    if len(alone):
        later = alone[alone > size]
        place = later[0] if len(later) else alone[-1]
        row = order[place]
        return np.insert(np.delete(order, place), size - 1 if len(later) else len(order) - 1, row), size
    if exactly or size == 1:
        raise InputError(
            f"In the task {task.name} every row has a mirror image, so data.keep_pairs_together=true needs an even "
            f"number of training rows, at least 2 and not {size}; change data.train_size or data.train_fraction."
        )
    return order, size - 1


def _critical(task: Task, ratio: float) -> tuple[float, str]:
    """The training fraction of a critical ratio, and its description for an error message."""
    ratio = _check_real(ratio, "data.critical_ratio")
    if task.predicted_fraction is None:
        if task.group is None:
            why = "it is no group"
        elif task.num_operands != 2:
            why = f"it has {task.num_operands} operands, not 2"
        else:
            why = f"its group has fewer than 3 elements, {task.num_tokens}"
        raise InputError(
            f"data.critical_ratio needs a predicted fraction and the task {task.name} has none: {why}; "
            "set data.train_fraction instead."
        )
    fraction = ratio * task.predicted_fraction
    return fraction, f"data.critical_ratio = {ratio}, the fraction {fraction:.4g},"


def _check_real(value: Any, name: str) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InputError(f"{name} is {value!r}; it must be a number.")


def _read_split(task: Task, path: Path) -> Split:
    try:
        arrays = read_npz(path, ("train", "test"))
    # The reader raises many kinds of exceptions over a broken file; for the user they all mean that it cannot be read.
    except Exception as error:
        raise InputError(f"The split file {path} cannot be read: {message(error)}.") from error
    rows = len(task.labels)
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
            raise InputError(
                f"In the split file {path} the array {name!r} must be a list of at least one integer; it is "
                f"{array.dtype} of shape {array.shape}."
            )
        outside = array[(array < 0) | (array >= rows)]
        if len(outside):
            lowest = min(other.min() for other in arrays.values() if other.size and other.dtype.kind in "iu")
            from_one = "; does it count from 1?" if lowest == 1 and set(outside) == {rows} else "."
            raise InputError(
                f"In the split file {path} the array {name!r} holds the row {outside[0]}; the task "
                f"{task.name} has the rows 0 to {rows - 1}{from_one}"
            )
    both = np.concatenate([arrays["train"], arrays["test"]]).astype(np.int64)
    found, counts = np.unique(both, return_counts=True)
    if len(found) < len(both):
        raise InputError(f"The split file {path} lists the row {found[counts > 1][0]} twice; rows may occur once.")
    return Split(*(np.sort(arrays[name].astype(np.int64)) for name in ("train", "test")))
