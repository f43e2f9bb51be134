"""Watch features emerge while a two-layer network learns group arithmetic (the Li2 theory of grokking)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from li2_lightning.runs.load import Run, find_runs, load_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "find_runs", "load_run"]


def __getattr__(name: str) -> Any:
    """What notebooks look for, imported when it is asked for: it needs torch, and most modules do without it."""
    if name in __all__:
        from li2_lightning.runs import load as runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
