"""Plug-ins: a name in a config becomes a class, a function or an object.

A `Registry` holds the names of one kind of plug-in: tasks, networks, activations, losses, optimizers, schedules,
callbacks, figures. It looks a name up in this order:

1. ``@registry.register("name")`` in a module that has been imported (the package that owns the registry imports
   all of its modules);
2. an entry point of an installed package, in the registry's group (``li2_lightning.tasks``, ...);
3. an import path ``package.module:attribute``;
4. the names of a library, where the registry has one (`Registry.libraries`).

An option is a hyperparameter of a plug-in: a keyword argument that the user may set. This module needs only the
standard library.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from types import ModuleType
from typing import Any, TypeVar, cast

from li2_lightning.errors import InputError, nearest, reason, unknown

Entry = TypeVar("Entry")
Same = TypeVar("Same")
Options = Mapping[str, Any]

# -- names ---------------------------------------------------------------------------------------------------


def takes_stacks(kind: Any) -> bool:
    """Whether a class is written for the leading axis of a stack of runs: it sets ``takes_stacks`` itself.

    A subclass may be not, so it must declare it again.
    """
    return bool(vars(kind).get("takes_stacks", False))


@cache
def _entry_points(scan: Callable[..., Any], group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What the installed packages announce for a group. A scan reads a file of every package, some 10 ms in all.

    Args:
        scan: `importlib.metadata.entry_points`.
        path: ``sys.path``, which says where packages are installed.
    """
    return tuple(scan(group=group))


class Registry(Mapping[str, Entry]):
    """The plug-ins of one kind, a mapping from names to classes or functions.

    Args:
        kind: the word for one entry in messages, for example ``"task"``.
        group: the entry-point group in which installed packages announce their plug-ins.
        makes: the class that an entry builds; `build` refuses any other result.
    """

    def __init__(self, kind: str, group: str, makes: Any = object) -> None:
        self.kind = kind
        self.group = group
        self.makes = makes
        self._owner = sys._getframe(1).f_globals["__name__"]
        self._entries: dict[str, Entry] = {}
        self._modules: dict[str, str] = {}
        self._broken: dict[str, BaseException] = {}

    def register(self, name: str) -> Callable[[Same], Same]:
        """Decorator that enters a plug-in under ``name``; a name taken twice is an `InputError`."""
        # Not the module that defines the entry, which may be another library's: functools.partial, a foreign class.
        module = sys._getframe(1).f_globals["__name__"]

        def enter(entry: Any) -> Any:
            if name in self._entries:
                plural = f"{self.kind}es" if self.kind.endswith("s") else f"{self.kind}s"
                raise InputError(
                    f"Two {plural} are registered as {name!r}: {_where(self._entries[name])} "
                    f"and {_where(entry)}; rename one of them."
                )
            self._entries[name], self._modules[name] = entry, module
            return entry

        return enter

    def import_plugin(self, module: str) -> None:
        """Import a module for its registrations; if the import fails, every later `find` raises that error.

        Raised at once, the error of one broken file would be a traceback from the import of the whole package.
        """
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            self._broken[module] = error

    def module_of(self, name: str) -> str | None:
        """The module whose import registers ``name`` in another process; None where no import is needed."""
        return self._modules.get(name) or (name.partition(":")[0] if ":" in name else None)

    def libraries(self) -> Iterator[Mapping[str, Entry]]:
        """The names of libraries, which are looked up last; overridden by a subclass."""
        yield from ()

    def _entry_points(self) -> tuple[EntryPoint, ...]:
        return _entry_points(entry_points, self.group, tuple(sys.path))

    def names(self) -> list[str]:
        """Every name that `find` knows without an import path, sorted."""
        announced = (point.name for point in self._entry_points())
        return sorted({*self._entries, *announced, *(name for library in self.libraries() for name in library)})

    def listing(self) -> str:
        """The known names for a message."""
        return ", ".join(self.names())

    def find(self, name: str) -> Entry:
        """The plug-in called ``name``.

        Raises:
            InputError: the name is unknown (the message lists the known names), the import of a plug-in fails, or two
                installed packages announce the name.
        """
        for broken, error in self._broken.items():
            raise InputError(
                f"The plug-in {broken} could not be imported: {reason(error)}; repair it or remove the file."
            ) from error
        if not isinstance(name, str):
            raise unknown(self.kind, name, self.names(), self.listing())
        if name in self._entries:
            return self._entries[name]
        points = {_announced(point): point for point in self._entry_points() if point.name == name}
        if len(points) > 1:
            raise InputError(
                f"Two installed packages announce the {self.kind} {name!r}: {' and '.join(sorted(points))}; uninstall "
                "one of them, or name one by that import path."
            )
        for point in points.values():
            return self._load(name, point.load)
        if ":" in name:
            return self._load(name, lambda: self._import(name))
        for library in self.libraries():
            if name in library:
                return library[name]
        raise unknown(self.kind, name, self.names(), self.listing())

    def build(self, name: str, section: str, options: Options, *args: Any) -> Any:
        """Call the plug-in with ``args`` and the user's ``options``, which must fit its signature.

        Args:
            name: as for `find`.
            section: where the options stand in the config, for messages (``"callbacks.energy"``).
            options: keyword arguments as the user wrote them.
            args: positional arguments that the caller supplies.

        Raises:
            InputError: as for `find` and `fit`, or the plug-in is another class than ``makes``, or returns one.
        """
        factory: Any = self.find(name)
        # Arguments of ours may not fit a class of another kind, which would be an error of Python.
        if isinstance(factory, type) and not issubclass(factory, self.makes):
            raise self._of_another_kind(name, factory)
        return self.check(name, factory(*args, **self.fit(name, factory, options, section, len(args))))

    def fit(self, name: str, factory: Any, options: Options, section: str, supplied: int = 0) -> dict[str, Any]:
        """`fit` for the plug-in called ``name``."""
        return fit(factory, options, f"{self.kind} {name!r}", section, supplied)

    def check(self, name: str, made: Any) -> Any:
        """``made``, the result of the plug-in called ``name``; an `InputError` unless its class is `makes`."""
        if not isinstance(made, self.makes):
            raise self._of_another_kind(name, type(made))
        return made

    def _of_another_kind(self, name: str, made: type) -> InputError:
        return InputError(f"The {self.kind} {name!r} gave a {made.__name__}, not a {_where(self.makes)}.")

    def __reduce__(self) -> tuple[Any, ...]:
        # By reference: a launcher of sweeps pickles the globals of train.py for processes with registries of their own.
        return _registry_of, (self._owner, self.group)

    def __getitem__(self, name: str) -> Entry:
        return self.find(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def _load(self, name: str, load: Callable[[], Any]) -> Entry:
        try:
            entry = load()
        except InputError:
            raise
        # The import of a plug-in, which is foreign code, may raise any error.
        except (Exception, SystemExit) as error:
            raise InputError(f"The {self.kind} {name!r} could not be imported: {reason(error)}.") from error
        if not callable(entry):
            raise InputError(f"The {self.kind} {name!r} is a {type(entry).__name__}, not a class or function.")
        return cast(Entry, entry)

    def _import(self, name: str) -> Any:
        path, _, attribute = name.partition(":")
        module = importlib.import_module(path)
        try:
            return attrgetter(attribute)(module)
        except AttributeError as error:
            raise InputError(
                f"The {self.kind} {name!r} could not be imported: module {path} has no attribute {attribute!r}."
                f"{nearest(attribute, dir(module))}"
            ) from error


def _registry_of(module: str, group: str) -> Registry[Any]:
    found = vars(importlib.import_module(module)).values()
    return next(registry for registry in found if isinstance(registry, Registry) and registry.group == group)


def _announced(point: EntryPoint) -> str:
    """The import path of an entry point and the package that announces it."""
    return f"{point.value} of the package {point.dist.name if point.dist else 'without a name'}"


def _where(entry: Any) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', type(entry).__name__)}"


def package(name: str) -> ModuleType:
    """One of the packages of plug-ins, ``optimizers`` or ``callbacks``.

    They import this library, which therefore finds them by name, and only when it reads a config or builds from it.
    """
    return importlib.import_module(name)


# -- options -------------------------------------------------------------------------------------------------


_signature = lru_cache(maxsize=1024)(inspect.signature)


def options_of(factory: Any, supplied: int = 0) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that the user may set, and whether ``**kwargs`` takes any other name.

    Args:
        factory: a callable.
        supplied: the number of leading parameters that the caller supplies, which the user therefore cannot set.
    """
    try:
        # Reading a signature takes a sweep of small runs longer than anything else that it does with options.
        signature = inspect.signature if factory.__hash__ is None else _signature
        parameters = list(signature(factory).parameters.values())
    except (ValueError, TypeError):  # some callables written in C have no signature
        return {}, True
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {p.name: p for p in parameters[supplied:] if p.kind not in variadic}, is_open


def fit(factory: Any, options: Options, what: str, section: str, supplied: int = 0) -> dict[str, Any]:
    """``options`` as keyword arguments for ``factory``.

    A list becomes a tuple where the default is a tuple. A string that spells a number becomes a number (in YAML 1.1,
    ``1e-3`` is a string), unless the default of the parameter is a string, or its annotation has ``str`` and its
    default is no number. Any other string is refused where the default is a number, unless the annotation has ``str``.

    Args:
        factory: a callable, as for `options_of`.
        options: the user's values.
        what: the name of ``factory`` in messages.
        section: the section of the config that holds ``options``, for messages.
        supplied: as for `options_of`.

    Raises:
        InputError: an option is unknown or missing (the message shows the signature), or a value does not fit.
    """
    parameters, is_open = options_of(factory, supplied)
    shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values())
    takes = f"it takes {shown}" if shown else "it takes no options"
    for key in options:
        if not is_open and key not in parameters:
            hint = nearest(key, parameters)
            raise InputError(f"The {what} has no option {key!r} (from {section}.{key}); {takes}.{hint}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise InputError(f"The {what} needs {section}.{key}; {takes}.")
    words = {key for key, p in parameters.items() if "str" in _words(p.annotation)}
    texts = {key for key, p in parameters.items()
             if isinstance(p.default, str) or (key in words and not isinstance(p.default, int | float))}  # fmt: skip
    defaults = {key: None if key in words else p.default for key, p in parameters.items()}
    return {
        key: value if key in texts else _convert(value, defaults.get(key), f"{section}.{key}")
        for key, value in options.items()
    }


def accepts(factory: Any, option: str, supplied: int = 0) -> bool:
    """Whether ``factory`` takes an option of this name; ``supplied`` as for `options_of`."""
    parameters, is_open = options_of(factory, supplied)
    return is_open or option in parameters


def beyond_defaults(factory: Any, options: Options) -> dict[str, Any]:
    """The ``options`` that differ from the defaults of ``factory``."""
    parameters, _ = options_of(factory)
    return {key: value for key, value in options.items() if key not in parameters or value != parameters[key].default}


def _words(annotation: Any) -> list[str]:
    return re.findall(r"\w+", inspect.formatannotation(annotation))


def _convert(value: Any, default: Any, key: str) -> Any:
    def refuse(allowed: str) -> InputError:
        return InputError(f"{key}={value!r} must be {allowed}.")

    if isinstance(default, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(default):
            raise refuse(f"a list of {len(default)} values, like {list(default)}")
        return tuple(_convert(v, d, key) for v, d in zip(value, default, strict=True))
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise refuse("true or false")
        return value
    is_number = isinstance(default, int | float)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            if is_number:
                raise refuse(f"a number, like {default!r}") from None
            return value
        if not isinstance(default, float) and value.is_integer():
            value = int(value)
    if is_number and (isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))):
        raise refuse(f"a finite number, like {default!r}")
    return value


# -- options in the hash of a config -------------------------------------------------------------------------

Identity = Callable[[Mapping[str, Any]], Mapping[str, Any]]

IDENTITIES: dict[str, Identity] = {}
"""Section of the config -> the function that removes from it the values that do not count for the hash."""


def identifies(section: str) -> Callable[[Identity], Identity]:
    """Decorator of a function that takes a section of the config and removes the defaults of the plug-ins in it.

    The hash of a config calls these functions, because only the package that owns a plug-in knows its defaults.
    """

    def enter(identity: Identity) -> Identity:
        IDENTITIES[section] = identity
        return identity

    return enter
