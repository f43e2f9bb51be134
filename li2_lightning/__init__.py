"""Watch features emerge while a two-layer network learns group arithmetic (the Li2 theory of grokking)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from li2_lightning.data import TableDataModule
    from li2_lightning.module import Li2Module
    from li2_lightning.runs.load import Run, find_runs, load_run

__version__ = "0.1.0"
__all__ = ["Li2Module", "Run", "TableDataModule", "__version__", "find_runs", "load_run"]

_HOMES = {"Li2Module": "module", "TableDataModule": "data"}


def __getattr__(name: str) -> Any:
    """What notebooks look for, imported when it is asked for: it needs torch, and most modules do without it."""
    if name in __all__:
        return getattr(importlib.import_module(f"li2_lightning.{_HOMES.get(name, 'runs.load')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
