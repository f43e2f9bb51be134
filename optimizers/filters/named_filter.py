"""A gradient filter around an optimizer that is chosen by name, or around another filter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from li2_lightning.errors import InputError
from li2_lightning.plugins import options_of
from optimizers.filters.gradient_filter import GradientFilter
from optimizers.registry import Factory, construct, resolve, specialized

Inner = str | Sequence[str]


class NamedFilter(GradientFilter):
    """The base of filters that a config can name: hyperparameters that are not its own are the inner optimizer's.

    A subclass is registered under a name, has ``inner`` and ``**hyperparameters`` in its constructor, and overrides
    `filtered`.

    Args:
        params: the tensors to train.
        inner: name of the optimizer that steps. A list chains filters, the outermost first and an optimizer last:
            ``[slow_gradients, adam]``; the outer one filters first.
        hyperparameters: of the inner optimizer, and of the filters between.

    Raises:
        InputError: an inner optimizer that cannot be built with its hyperparameters, or takes one of the names
            of the filter.
    """

    def __init__(self, params: Sequence[Tensor], inner: Inner, hyperparameters: Mapping[str, Any]) -> None:
        name, rest = _split(inner)
        factory, arguments = resolve(name, {**rest, **hyperparameters}, {}, "inner")
        super().__init__(construct(name, factory, list(params), arguments, "optimizer.inner"))
        self.inner_name = "/".join([name, *rest.get("inner", ())])

    @classmethod
    def specialize(cls, given: Mapping[str, Any]) -> Factory:
        """This filter with the signature of the inner optimizer that ``given`` names in the place of ``**``."""
        signature = inspect.signature(cls)
        own = signature.parameters
        name, rest = _split(given.get("inner", own["inner"].default))
        its, is_open = options_of(specialized(name, rest), 1)
        if rest:
            if "inner" not in its and not is_open:
                raise InputError(f"{name} wraps no other optimizer; in inner only the last name is one.")
            its.pop("inner", None)  # the list names what it wraps
        for key in its:
            if key in own:
                chain = f"; to chain filters, say inner=[{name},adam]" if key == "inner" else ""
                raise InputError(f"inner={name} does not fit: it has a hyperparameter {key!r}, too{chain}.")

        def build(params: Sequence[Tensor], **hyperparameters: Any) -> Optimizer:
            return cls(params, **hyperparameters)

        *named, last = own.values()
        added = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in its.values()]
        parameters = [*named, *added, *([last] if is_open else [])]
        build.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return build


def _split(inner: Inner) -> tuple[str, dict[str, Any]]:
    """The first name, and what it is given as ``inner``."""
    if isinstance(inner, str):
        return inner, {}
    if not inner:
        raise InputError("inner names no optimizer; say for example inner=adam.")
    first, *others = inner
    return str(first), {"inner": others} if others else {}
