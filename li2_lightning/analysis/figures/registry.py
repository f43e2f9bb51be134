"""Pictures by the name of their experiment: ``FIGURES.register(NAME)`` on a function of runs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

from matplotlib.figure import Figure

import li2_lightning.analysis.figures
from li2_lightning.plugins import Registry
from li2_lightning.runs.load import Run

FigureFamily = Callable[[list[Run]], Figure]
FIGURES: Registry[FigureFamily] = Registry("figure", "li2_lightning.figures")


def figure_names() -> list[str]:
    """Every name that `find_figure` knows, those of installed packages included."""
    _import_families()
    return FIGURES.names()


def find_figure(name: str) -> FigureFamily:
    """What draws ``name``; a name that ends in _quick and has no entry of its own is drawn like the one without.

    Raises:
        InputError: an unknown name, or a plug-in that fails on import.
    """
    names = figure_names()
    for candidate in (name, name.removesuffix("_quick")):
        if candidate in names or ":" in candidate:
            return FIGURES.find(candidate)
    return FIGURES.find(name)


def _import_families() -> None:
    for module in pkgutil.iter_modules(li2_lightning.analysis.figures.__path__):
        FIGURES.import_plugin(f"li2_lightning.analysis.figures.{module.name}")
