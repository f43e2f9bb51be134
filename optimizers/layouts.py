"""The matrices of which a parameter is made: networks declare them, and optimizers that act on matrices read them.

A layout is a mapping of plain values, so that it survives copies and checkpoints. A parameter group has a list of them
under ``layouts``, one for each of its parameters in their order, None where nothing is declared.

===============  ====================================================================================================
``orientation``  ``"input_output"`` (forward is x @ W) or ``"output_input"`` (x @ W.T, as in ``torch.nn.Linear``)
``axis``         the axis along which the parameter is divided, −2 (default) or −1
``matrices``     how many matrices of one size stand along that axis (default 1): fused Q, K, V are three
``heads``        of how many attention heads each of these consists along that axis (default 1)
===============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from li2_lightning.errors import InputError, check_choice

Layout = Mapping[str, Any]
ORIENTATIONS = ("input_output", "output_input")
DEFAULTS = {"orientation": "input_output", "axis": -2, "matrices": 1, "heads": 1}


def layouts_of(group: Mapping[str, Any]) -> Sequence[Layout | None]:
    """The layout of each parameter of a group; None where nothing is declared."""
    declared: Sequence[Layout | None] = group.get("layouts") or [None] * len(group["params"])
    return declared


def matrices(tensor: Tensor, layout: Layout | None, split_heads: bool = False) -> tuple[Tensor, ...]:
    """The matrices of a parameter, or of a tensor of its shape, as views of it.

    Args:
        tensor: the parameter or its gradient; the two last dimensions are the matrix.
        layout: as declared; None makes the tensor one matrix.
        split_heads: every attention head is a matrix of its own.
    """
    return (tensor,) if layout is None else tensor.chunk(_count(layout, split_heads), _value(layout, "axis"))


def orientation(layout: Layout | None, otherwise: str | None = None) -> str:
    """The declared orientation; without a declaration ``otherwise``, and inputs × outputs where that is None."""
    return str(otherwise or DEFAULTS["orientation"]) if layout is None else str(_value(layout, "orientation"))


def input_axis(layout: Layout | None) -> int:
    """The axis of a matrix's inputs: −2 or −1."""
    return -2 if orientation(layout) == "input_output" else -1


def check_layouts(group: Mapping[str, Any]) -> None:
    """The layouts of a group fit its parameters and its hyperparameters ``orientation`` and ``split_heads``, if any.

    Raises:
        InputError: an unknown entry, parts that do not divide the axis, an ``orientation`` that contradicts a
            declared one, ``split_heads`` where no parameter has heads.
    """
    declared = layouts_of(group)
    names = group.get("param_names") or [f"parameter {index}" for index in range(len(declared))]
    for parameter, name, layout in zip(group["params"], names, declared, strict=True):
        if layout is None:
            continue
        for key in layout:
            check_choice(f"entry in the layout of {name}:", key, DEFAULTS)
        check_choice(f"orientation in the layout of {name}:", orientation(layout), ORIENTATIONS)
        axis, parts = _value(layout, "axis"), _count(layout, split_heads=True)
        if axis not in (-2, -1) or parameter.ndim < 2 or parts < 1 or parameter.shape[axis] % parts:
            raise InputError(
                f"The layout of {name} divides axis {axis} of {tuple(parameter.shape)} into {parts} equal parts, which "
                "it cannot be; axis must be -2 or -1, and matrices·heads must divide its length."
            )
        asked = group.get("orientation")
        if asked is not None and asked != orientation(layout):
            raise InputError(
                f"orientation={asked} contradicts the network, which declares {name} as {orientation(layout)}; "
                "leave orientation out."
            )
    if group.get("split_heads") and all(layout is None or _value(layout, "heads") == 1 for layout in declared):
        raise InputError(
            "split_heads=true finds no attention heads: the network declares none for any parameter of this role; "
            "leave split_heads out, or use network=transformer."
        )


def check_matrices(name: str, group: dict[str, Any]) -> None:
    """Check that the optimizer ``name`` gets no vector in a parameter group; else an `InputError`."""
    for weight in group["params"]:
        if weight.ndim < 2:
            raise InputError(
                f"{name} orthogonalizes matrices and got a parameter of shape {tuple(weight.shape)}; "
                "give its role another optimizer, for example adam."
            )


def _count(layout: Layout, split_heads: bool) -> int:
    return int(_value(layout, "matrices") * (_value(layout, "heads") if split_heads else 1))


def _value(layout: Layout, key: str) -> Any:
    return layout.get(key, DEFAULTS[key])
