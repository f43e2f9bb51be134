"""Plug-ins by name: the three ways of finding one, and what the user is told when there is none."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks import CALLBACKS
from li2_lightning import plugins as registry_module
from li2_lightning.errors import InputError
from li2_lightning.losses import LOSSES
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.networks.base import NETWORKS
from li2_lightning.plugins import Registry, fit
from li2_lightning.tasks.tasks import TASKS
from optimizers import OPTIMIZERS, SCHEDULES


@pytest.fixture
def registry() -> Registry[Callable[..., Any]]:
    registry: Registry[Callable[..., Any]] = Registry("probe", "li2_lightning.probes")

    @registry.register("plain")
    def plain(first: int, *, size: int = 3, mode: str) -> tuple[int, int, str]:
        return first, size, mode

    return registry


def announce(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that installed packages announce these entry points in the group of `registry`."""

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "li2_lightning.probes"
        return [EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)


def test_a_registered_name_is_found_and_built_with_ours_first_and_the_users_by_keyword(registry: Any) -> None:
    assert registry.names() == ["plain"]
    assert registry.build("plain", "probes.plain", {"mode": "x", "size": 5}, 7) == (7, 5, "x")


def test_a_name_taken_twice_names_both(registry: Any) -> None:
    with pytest.raises(InputError, match=r"Two probes are registered as 'plain': .*plain and types.SimpleNamespace"):
        registry.register("plain")(SimpleNamespace)


@pytest.mark.parametrize("owner", [ACTIVATIONS, CALLBACKS, LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES, TASKS])
def test_a_pickled_registry_is_the_registry_of_the_process_that_reads_it(owner: Registry[Any]) -> None:
    """A launcher of sweeps pickles what train.py refers to."""
    assert pickle.loads(pickle.dumps(owner)) is owner


def test_several_losses_are_no_losss() -> None:
    with pytest.raises(InputError, match=r"Two losses are registered as 'mse': \S+ClassCentredMSE and types\.S"):
        LOSSES.register("mse")(SimpleNamespace)


def test_an_entry_point_is_found_and_a_registered_name_comes_before_it(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, installed="collections:OrderedDict", plain="collections:OrderedDict")
    assert registry.names() == ["installed", "plain"]
    assert registry.find("installed").__name__ == "OrderedDict"
    assert registry.find("plain").__name__ == "plain"


def test_an_import_path_is_found(registry: Any) -> None:
    assert registry.find("collections:OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plian", r"Unknown probe 'plian'; known are plain\. Did you mean 'plain'\?"),
        ("zzz", r"Unknown probe 'zzz'; known are plain\.$"),
        ("no_such_module:thing", r"probe 'no_such_module:thing' could not be imported: ModuleNotFoundError: No module"),
        ("math:no_such_name", r"probe 'math:no_such_name' could not be imported: module math has no attribute"),
        ("math:pi", r"probe 'math:pi' is a float, not a class or function"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(registry: Any, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.find(name)


def test_an_entry_point_that_fails_on_import_is_one_sentence(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, broken="no_such_module:Thing")
    with pytest.raises(InputError, match="The probe 'broken' could not be imported: ModuleNotFoundError"):
        registry.find("broken")


class Package:
    """What importlib.metadata knows of an installed package."""

    def __init__(self, name: str) -> None:
        self.name = name


def installed(name: str, value: str, package: str) -> EntryPoint:
    point = EntryPoint(name, value, "li2_lightning.probes")
    vars(point)["dist"] = Package(package)
    return point


@pytest.mark.parametrize("values", [("math:floor", "math:ceil"), ("math:floor", "math:floor")], ids=["other", "same"])
def test_a_name_that_two_packages_announce_names_both(
    registry: Any, monkeypatch: pytest.MonkeyPatch, values: tuple[str, str]
) -> None:
    points = [installed("both", value, package) for value, package in zip(values, ("one", "two"), strict=True)]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    with pytest.raises(InputError, match=r"announce the probe 'both': math:\w+ of the package \w+ and ") as error:
        registry.find("both")
    assert all(f"the package {name}" in str(error.value) for name in ("one", "two"))
    # What one package lists twice is one.
    again = [installed("both", "math:floor", "one")] * 2
    monkeypatch.setattr(registry_module, "entry_points", lambda group: again)
    assert registry.find("both")(1.5) == 1


@pytest.mark.parametrize(
    "source",
    ["1 / 0", "import no_such_thing", "def broken(:", "raise SystemExit(3)"],
    ids=["raises", "imports what is not there", "no Python", "exits"],
)
def test_a_broken_file_of_a_folder_is_named_whatever_is_looked_up(
    registry: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plug_in.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    registry.import_plugin("broken_plug_in")
    for name in ("plain", "zzz", "math:floor"):
        with pytest.raises(InputError, match=r"plug-in broken_plug_in could not be imported: .*; repair it or remove"):
            registry.find(name)


def test_the_module_of_a_plug_in_is_where_it_was_registered(registry: Any) -> None:
    """Not where it was written: functools.partial and a class of somebody else are registered from here, too."""
    registry.register("partial")(functools.partial(int, base=2))
    registry.register("foreign")(SimpleNamespace)
    assert registry.module_of("plain") == registry.module_of("partial") == registry.module_of("foreign") == __name__
    assert registry.module_of("some.module:Thing") == "some.module"
    assert registry.module_of("zzz") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "x", "sise": 1}, r"no option 'sise' \(from probes\.plain\.sise\); it takes size=3, mode\. Did you"),
        ({"size": 1}, r"The probe 'plain' needs probes\.plain\.mode; it takes size=3, mode"),
        ({"mode": "x", "first": 1}, r"no option 'first'"),
    ],
    ids=["unknown", "missing", "ours"],
)  # fmt: skip
def test_options_that_do_not_fit_show_the_signature(registry: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build("plain", "probes.plain", options, 7)


def test_a_plug_in_without_options_says_so_and_one_that_takes_any_is_left_alone() -> None:
    with pytest.raises(InputError, match="it takes no options"):
        fit(lambda: None, {"size": 1}, "probe 'none'", "probes.none")
    fit(lambda **options: None, {"size": 1}, "probe 'any'", "probes.any")


def test_what_has_no_signature_takes_any_option() -> None:
    assert fit(dict, {"size": 1}, "probe 'dict'", "probes.dict") == {"size": 1}


def test_what_an_entry_builds_must_be_of_the_kind() -> None:
    registry: Registry[Any] = Registry("probe", "li2_lightning.probes", makes=Path)
    with pytest.raises(InputError, match=r"The probe 'builtins:list' gave a list, not a pathlib\.Path\."):
        registry.build("builtins:list", "probes.list", {})
    # Our arguments do not fit the signature of such a class, which is not called.
    with pytest.raises(InputError, match=r"The probe 'fractions:Fraction' gave a Fraction, not a pathlib\.Path\."):
        registry.build("fractions:Fraction", "probes.fraction", {}, 1, 2, 3)
    assert registry.build("pathlib:Path.cwd", "probes.here", {}) == Path.cwd()


def test_a_string_that_reads_as_a_number_is_one_except_where_text_is_asked_for() -> None:
    def plain(size=3, rate=None, text="x", label: str | None = None, *, pair=(1, 0.5)):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    given = {"size": "4", "rate": "1e-3", "text": "5", "label": "007", "pair": ["2", "1e-1"]}
    found = fit(plain, given, "probe 'plain'", "probes.plain")
    assert found == {"size": 4, "rate": 1e-3, "text": "5", "label": "007", "pair": (2, 0.1)}
    assert isinstance(found["size"], int)
    with pytest.raises(InputError, match=r"^probes\.plain\.pair=\[1\] must be a list of 2 values, like \[1, 0\.5\]\.$"):
        fit(plain, {"pair": [1]}, "probe 'plain'", "probes.plain")


def test_a_registry_is_a_mapping_of_what_it_can_find(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, installed="collections:OrderedDict")
    assert (list(registry), len(registry)) == (["installed", "plain"], 2)
    assert "plain" in registry
    assert "plian" not in registry
    assert dict(registry)["installed"] is registry["installed"] is registry.find("installed")


def test_it_needs_the_standard_library_alone() -> None:
    """So that a plug-in's author pays for nothing but what the plug-in itself imports."""
    program = (
        "import sys, li2_lightning.plugins\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - {*sys.stdlib_module_names})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(registry_module.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ["__main__", "li2_lightning"], done.stderr


def every(every: int | str = 1, rate: float | str = 0.5, label: str | None = None, count: int = 1) -> dict[str, Any]:
    return {"every": every, "rate": rate, "label": label, "count": count}


def test_a_number_that_may_be_a_word_is_read_as_a_number_first() -> None:
    """YAML 1.1 reads 1e2 as a string."""
    options = {"every": "1e2", "rate": "2e-3", "label": "1e2", "count": "1e2"}
    assert fit(every, options, "probe 'every'", "probes.every") == {"every": 100, "rate": 2e-3, "label": "1e2",
                                                                   "count": 100}  # fmt: skip
    words = {"every": "log", "rate": "auto"}
    assert fit(every, words, "probe 'every'", "probes.every") == words
    with pytest.raises(InputError, match=r"probes\.every\.count='log' must be a number"):
        fit(every, {"count": "log"}, "probe 'every'", "probes.every")
