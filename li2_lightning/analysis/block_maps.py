"""Tables of steps × isotypic blocks of a run, for maps: what is explained and missing, and the shares of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from li2_lightning.errors import InputError, message
from li2_lightning.files import read_npz
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import block_legend
from li2_lightning.runs.load import Run

TITLES = {
    "explained": "Share of the target that the outputs explain",
    "residual": "Share of the residual R",
    "gradient": "Share of the gradient G_F",
    "coupled": "Share of the coupled form RRᵀF̃",
    "covered": "Some node has more than half of itself in the block",
}
"""The arrays of features/blocks.npz, which the callback ``missing`` writes, with a title each."""

LOGITS = "circuits/logit_share/"
"""The prefix of the columns that the callback ``circuits`` adds for each block."""


@dataclass(frozen=True)
class BlockMap:
    """Values over steps and blocks.

    Attributes:
        title: the quantity.
        steps: (T,).
        labels: of the blocks (B,).
        values: T × B.
    """

    title: str
    steps: npt.NDArray[np.int64]
    labels: list[str]
    values: npt.NDArray[np.float64]


def missing_maps(run: Run) -> dict[str, BlockMap]:
    """The maps of ``features/blocks.npz`` by the keys of `TITLES`; empty where the run has no such file.

    Raises:
        InputError: the file cannot be read.
    """
    path = run.directory / "features" / "blocks.npz"
    if not path.exists():
        return {}
    try:
        arrays = read_npz(path, ("steps", "labels", *TITLES))
        labels = [str(label) for label in arrays["labels"]]
        shape = len(arrays["steps"]), len(labels)
        if wrong := [name for name in TITLES if arrays[name].shape != shape]:
            raise ValueError(f"its array {wrong[0]!r} is not steps × labels")
        return {
            name: BlockMap(title, arrays["steps"], labels, arrays[name].astype(float)) for name, title in TITLES.items()
        }
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {message(error)}; remove it to do without its maps.") from error


def logit_maps(run: Run) -> list[BlockMap]:
    """The shares of the logits by block, from metrics.csv; empty where the run has no such columns."""
    names = [name for name in run.metrics if str(name).startswith(LOGITS)]
    rows = run.metrics[names].dropna()
    if rows.empty:
        return []
    # The name of a column has no spaces.
    labels = [str(name).removeprefix(LOGITS).replace("=", " = ") for name in names]
    return [BlockMap("Share of the logits", rows.index.to_numpy(), labels, rows.to_numpy())]


def known_group(run: Run) -> FiniteGroup | None:
    """The group of the task; None where there is none, or the file of its Cayley table is gone."""
    try:
        return run.task.group
    except InputError:
        return None


def legend(run: Run) -> str:
    """The meaning of the labels of blocks, as a sentence; empty without a group."""
    group = known_group(run)
    return "" if group is None else f"Labels: {block_legend(group)}."
