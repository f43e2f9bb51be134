"""The closure of ``Optimizer.step``: Lightning passes one to every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Closure = Callable[[], Any]


def evaluate(closure: Closure | None) -> Any:
    """What ``closure`` returns, with gradients enabled; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
