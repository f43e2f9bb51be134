"""The arrows between the parts point one way."""

from __future__ import annotations

import ast
import configparser
import functools
import graphlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Set
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import li2_lightning
import train

ROOT = Path(train.__file__).parent
PARTS = ("li2_lightning", "optimizers", "callbacks")
# The modules and packages directly below li2_lightning, bottom to top: each imports only from floors below its own.
FLOORS = (
    "clock", "errors", "cadence", "_compat", "files", "seeds", "log", "plugins", "config", "distributed", "networks",
    "groups", "theory", "tasks", "data", "losses", "measurement", "runs", "module", "trainer", "cli", "sweeps",
    "verification", "analysis",
)  # fmt: skip
MOST_LINES, MOST_MODULES = 450, 12


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its package.
            found.add((node.module or "").partition(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0])
    return found


def module_name(path: Path) -> str:
    """The dotted name that a file is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Set[str]) -> set[str]:
    """Which of the modules ``known`` a file imports, at its top or inside a function."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            # "from package import name": the name is a module, or something that the package itself holds.
            found |= names & known
            if names - known:
                found.add(origin)
    return found & known


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Every module of the library and of the plug-in folders, with the modules that it imports."""
    paths = {module_name(path): path for part in PARTS for path in files(part)}
    # Python runs li2_lightning/__init__.py before every module below it, so importing it adds no arrow.
    known = paths.keys() - {"li2_lightning"}
    return {name: imported_modules(path, known) for name, path in paths.items()}


def floor(module: str) -> str:
    """The entry of `FLOORS` that a module belongs to."""
    return module.split(".")[1]


def files(part: str) -> list[Path]:
    found = sorted((ROOT / part).rglob("*.py"))
    assert found
    return found


def tracked() -> list[Path]:
    """What git keeps or would take up."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("li2_lightning", {"optimizers", "callbacks", "train", "tests", "benchmarks"}),
        ("optimizers", {"callbacks", "train", "tests", "benchmarks"}),
        ("callbacks", {"optimizers", "train", "tests", "benchmarks"}),
    ],
)
def test_no_arrow_points_back(part: str, forbidden: set[str]) -> None:
    for path in files(part):
        assert not imports(path) & forbidden, path


def test_each_floor_imports_only_from_floors_below() -> None:
    inside = {name: imported for name, imported in arrows().items() if name.startswith("li2_lightning.")}
    assert {*map(floor, inside)} == {*FLOORS}, "a new module or package takes its place in FLOORS, an old one leaves it"
    assert not [
        f"{name} → {other}"
        for name, imported in inside.items()
        for other in imported
        if FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = arrows()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from li2_lightning.errors import InputError", {"li2_lightning.errors"}),
        ("from li2_lightning import errors, __version__", {"li2_lightning.errors", "li2_lightning"}),
        ("def f():\n    import li2_lightning.files", {"li2_lightning.files"}),
        ("from . import files", {"li2_lightning.files"}),
        ("from .errors import InputError", {"li2_lightning.errors"}),
        ("import os", set()),
    ],
)
def test_every_spelling_of_an_import_is_an_arrow(text: str, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"li2_lightning", "li2_lightning.errors", "li2_lightning.files"}
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert imported_modules(ROOT / "li2_lightning" / "any.py", known) == found


def test_a_package_is_small_enough_to_know() -> None:
    """callbacks/ and optimizers/ have one plug-in in each file, and so as many files as there are plug-ins."""
    modules = Counter(path.parent for path in files("li2_lightning") if path.name != "__init__.py")
    assert not {str(folder.relative_to(ROOT)): count for folder, count in modules.items() if count > MOST_MODULES}


def test_a_module_is_short_enough_to_read() -> None:
    paths = [ROOT / "train.py", *(path for part in (*PARTS, "hydra_plugins") for path in files(part))]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_optimizers_stand_on_torch_and_two_modules_of_the_standard_library() -> None:
    shared = {"li2_lightning.plugins", "li2_lightning.errors"}
    for path in files("optimizers"):
        assert imports(path) <= {"torch", "optimizers", "li2_lightning", *sys.stdlib_module_names}, path
        assert {name for name in arrows()[module_name(path)] if name.startswith("li2_lightning")} <= shared, path
    for name in shared:
        assert imports(ROOT / f"{name.replace('.', '/')}.py") <= {"li2_lightning", *sys.stdlib_module_names}, name
        assert arrows()[name] <= shared, name


def test_theory_knows_neither_lightning_nor_files() -> None:
    for path in files("li2_lightning/theory"):
        assert not imports(path) & {"lightning", "wandb", "omegaconf", "os", "pathlib", "io"}, path


def test_hydra_is_in_train_py_its_sweeper_and_compat_alone() -> None:
    assert "hydra" in imports(ROOT / "train.py")
    assert "hydra" in imports(ROOT / "hydra_plugins" / "li2_sweeper" / "__init__.py")
    for part in PARTS:
        for path in files(part):
            # Its private names are those of every library.
            assert "hydra" not in imports(path) or path.name == "_compat.py", path


def test_nothing_is_instantiated_from_a_config() -> None:
    for part in (*PARTS, "configs"):
        for path in (ROOT / part).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"\b_target_\b", text), path
                assert "hydra.utils" not in text, path


def test_every_package_is_listed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    # The package of configs is a folder of YAML at the top of the repository.
    assert setup["options"]["package_dir"].split("\n")[1:] == ["li2_lightning.configs = configs"]
    listed = set(setup["options"]["packages"].split()) - {"li2_lightning.configs"}
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for part in (*PARTS, "hydra_plugins")
        for path in (ROOT / part).rglob("__init__.py")
    }
    assert listed == there
    assert setup["options"]["py_modules"].split() == ["train"]
    with_code = {
        ".".join(path.parent.relative_to(ROOT).parts) for part in (*PARTS, "hydra_plugins") for path in files(part)
    }
    assert with_code == there, "a folder of code without __init__.py would not be installed"


def test_everything_imported_is_a_declared_dependency() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    declared = {line.split(">")[0].split("<")[0].strip() for line in setup["options"]["install_requires"].split("\n")}
    declared = {{"hydra-core": "hydra", "pillow": "PIL", "PyYAML": "yaml"}.get(name, name) for name in declared}
    used = set().union(*(imports(path) for part in PARTS for path in files(part)), imports(ROOT / "train.py"))
    assert used - {*sys.stdlib_module_names, *PARTS} <= declared


def test_a_requirement_allows_the_version_that_was_tested() -> None:
    """constraints.txt alone pins; the ranges of setup.cfg contain its versions."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    requirements = [Requirement(line) for text in texts for line in text.split("\n") if line]
    for requirement in requirements:
        if requirement.name != "li2-lightning":
            assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement
        assert not any(part.operator in ("==", "===") for part in requirement.specifier), requirement


def test_the_version_stands_in_one_place_and_the_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == li2_lightning.__version__
    assert f"## {li2_lightning.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_runs_the_lowest_and_the_highest_python() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    prefix = "Programming Language :: Python :: 3."
    minors = sorted(int(line.removeprefix(prefix)) for line in setup["metadata"]["classifiers"].split("\n")
                    if line.startswith(prefix))  # fmt: skip
    assert setup["options"]["python_requires"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{minors[0]}", f"3.{minors[-1]}"]


def test_li2_is_the_one_way_to_call_a_command() -> None:
    """No module of ours runs by itself but the table that developers print, and no document says otherwise."""
    for part in PARTS:
        for path in files(part):
            alone = 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
            assert alone == (path == ROOT / "optimizers" / "muon" / "polar_table.py"), path
    old = re.compile(r"python -m (li2_lightning|optimizers\.check)")
    for path in tracked():
        if path.suffix in (".md", ".py", ".yaml", ".yml", ".cfg") and path.name not in (
            "CHANGELOG.md",
            Path(__file__).name,
        ):
            assert not old.search(path.read_text(encoding="utf-8")), path


def test_every_file_that_design_md_names_is_there() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = {
        name for name in re.findall(r"`([\w./]+)`", text) if name.endswith(("/", ".py", ".yaml")) and "NAME" not in name
    }
    written = {"output_dir/.sweep/"}  # by a sweep
    assert len(named) > 30
    missing = [n for n in named - written if not any((ROOT / base / n).exists() for base in ("", "li2_lightning"))]
    assert not missing


def test_the_project_stands_alone() -> None:
    """No file refers to a folder outside the repository."""
    outside = "/".join(("..", "shared")).encode()
    kept = tracked()
    assert ROOT / "train.py" in kept
    for path in kept:
        assert outside not in path.read_bytes(), path


def test_nothing_that_a_run_leaves_is_in_the_repository() -> None:
    """A run in the top folder with `output_dir=.` looks like new files to `git add --all`."""
    left = {"config.yaml", "metrics.csv", "summary.json", "stages.json", "report.png", ".lock"}
    kept = [path for path in tracked() if path.parent != ROOT / "configs"]
    assert [path for path in kept if path.name in left or path.suffix in (".ckpt", ".window", ".npz")] == []
