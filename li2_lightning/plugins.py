"""Plug-ins by name: what a YAML calls ``name`` becomes a class or function.

A `Registry` finds a name in this order:

1. ``@registry.register("name")`` in a module that has been imported (the package that owns the registry imports
   all of its modules);
2. an entry point of an installed package, in the registry's group (``li2_lightning.tasks``, ...);
3. an import path ``package.module:attribute``.

(The optimizers have a registry of their own, because that package depends on torch alone.)
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from li2_lightning.errors import InputError, nearest, unknown

Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Generic[Factory]):
    """Names of one kind of plug-in.

    Args:
        kind: what one entry is called in messages, for example ``"task"``.
        group: entry-point group in which installed packages announce theirs.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._factories: dict[str, Factory] = {}
        self._modules: dict[str, str] = {}
        self._broken: dict[str, BaseException] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that enters a class or function under ``name``; a name taken twice is an `InputError`."""
        # Of the factory itself it may be another: functools.partial, or somebody else's class.
        module = sys._getframe(1).f_globals["__name__"]

        def enter(factory: Factory) -> Factory:
            if name in self._factories:
                raise InputError(
                    f"Two {self.kind}s are registered as {name!r}: {_where(self._factories[name])} "
                    f"and {_where(factory)}; rename one of them."
                )
            self._factories[name], self._modules[name] = factory, module
            return factory

        return enter

    def import_plugin(self, module: str) -> None:
        """Import a module for its registrations; if that fails, every later `find` says so.

        One broken file must not make the import of its package a traceback, nor pass in silence.
        """
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            self._broken[module] = error

    def module_of(self, name: str) -> str | None:
        """The module that another process must import to know ``name``; None where it finds it by itself."""
        return self._modules.get(name) or (name.partition(":")[0] if ":" in name else None)

    def names(self) -> list[str]:
        """Every name that `find` knows without an import path, sorted."""
        return sorted({*self._factories, *(point.name for point in entry_points(group=self.group))})

    def find(self, name: str) -> Factory:
        """The class or function called ``name``.

        Raises:
            InputError: unknown name (lists the known ones and the nearest), a plug-in that fails on import, or two
                installed packages that announce the name.
        """
        for broken, error in self._broken.items():
            raise InputError(
                f"The plug-in {broken} could not be imported: {_reason(error)}; repair it or remove the file."
            ) from error
        if name in self._factories:
            return self._factories[name]
        points = {_announced(point): point for point in entry_points(group=self.group) if point.name == name}
        if len(points) > 1:
            raise InputError(
                f"Two installed packages announce the {self.kind} {name!r}: {' and '.join(sorted(points))}; uninstall "
                "one of them, or name one by that import path."
            )
        for point in points.values():
            return self._load(name, point.load)
        if ":" in name:
            module, _, attribute = name.partition(":")
            return self._load(name, lambda: getattr(importlib.import_module(module), attribute))
        raise unknown(self.kind, name, self.names())

    def build(self, name: str, section: str, options: Mapping[str, Any], *args: Any) -> Any:
        """Call the plug-in with ``args`` and the user's ``options``, which must fit its signature.

        Args:
            name: as for `find`.
            section: where the options stand in the config, for messages (``"callbacks.energy"``).
            options: keyword arguments as the user wrote them.
            args: positional arguments that come from us.
        """
        factory = self.find(name)
        check_options(factory, options, f"{self.kind} {name!r}", section, len(args))
        return factory(*args, **options)

    def _load(self, name: str, load: Callable[[], Factory]) -> Factory:
        try:
            factory = load()
        # A plug-in is foreign code: whatever it raises on import is the user's to read, as one sentence.
        except (Exception, SystemExit) as error:
            raise InputError(f"The {self.kind} {name!r} could not be imported: {_reason(error)}.") from error
        if not callable(factory):
            raise InputError(f"The {self.kind} {name!r} is a {type(factory).__name__}, not a class or function.")
        return factory


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], what: str, section: str, positional: int = 0
) -> None:
    """Raise an `InputError` that shows the signature when ``options`` do not fit ``factory``.

    Args:
        positional: how many leading parameters are ours and so not the user's to set.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        raise InputError(f"The {what} is no class or function of Python, so its options cannot be checked.") from None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    open_to_user = [p for p in parameters[positional:] if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    allowed = {p.name for p in open_to_user}
    described = ", ".join(str(p.name) if p.default is p.empty else f"{p.name}={p.default!r}" for p in open_to_user)
    takes = f"it takes {described}" if described else "it takes no options"
    for key in options:
        if key not in allowed:
            raise InputError(
                f"The {what} has no option {key!r} (from {section}.{key}); {takes}.{nearest(key, allowed)}"
            )
    missing = [p.name for p in open_to_user if p.default is p.empty and p.name not in options]
    if missing:
        raise InputError(f"The {what} needs {section}.{missing[0]}; {takes}.")


def beyond_defaults(factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that ``factory`` does not have as its defaults."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # `check_options` refuses it
        return dict(options)
    return {key: value for key, value in options.items() if key not in parameters or value != parameters[key].default}


def _announced(point: EntryPoint) -> str:
    """The import path and the package that announces it."""
    return f"{point.value} of the package {point.dist.name if point.dist else 'without a name'}"


def _reason(error: BaseException) -> str:
    """A foreign exception as part of a sentence."""
    message = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {message}"


def _where(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"
