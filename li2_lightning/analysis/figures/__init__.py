"""Functions that draw runs, registered by the name of their experiment: ``FIGURES.register(NAME)``."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

from matplotlib.figure import Figure

from li2_lightning.plugins import Registry
from li2_lightning.runs.load import Run

FigureFamily = Callable[[list[Run]], Figure]
FIGURES: Registry[FigureFamily] = Registry("figure", "li2_lightning.figures")


def figure_names() -> list[str]:
    """Every name that `find_figure` knows, including those of installed packages."""
    # Not at the top of this file: the modules import the registry from it.
    for module in pkgutil.iter_modules(__path__):
        FIGURES.import_plugin(f"{__name__}.{module.name}")
    return FIGURES.names()


def find_figure(name: str) -> FigureFamily:
    """The function that draws ``name``; NAME_quick is drawn as NAME unless it has an entry of its own.

    Raises:
        InputError: an unknown name, or a plug-in that fails on import.
    """
    names = figure_names()
    for candidate in (name, name.removesuffix("_quick")):
        if candidate in names or ":" in candidate:
            return FIGURES.find(candidate)
    return FIGURES.find(name)
