"""The arrows between the parts point one way."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import train

ROOT = Path(train.__file__).parent
PARTS = ("li2_lightning", "optimizers", "callbacks")


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports, or imports names from, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its package.
            found.add(node.module or "" if node.level == 0 else path.relative_to(ROOT).parts[0])
    return found


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at its top or inside a function."""
    return {name.partition(".")[0] for name in imported_modules(path)}


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


def test_optimizers_stand_on_torch_and_two_modules_of_the_standard_library() -> None:
    shared = {"li2_lightning.plugins", "li2_lightning.errors"}
    for path in files("optimizers"):
        modules = imported_modules(path)
        assert {name for name in modules if name.startswith("li2_lightning")} <= shared, path
        assert {name.partition(".")[0] for name in modules - shared} <= {
            "torch",
            "optimizers",
            *sys.stdlib_module_names,
        }, path
    for name in shared:
        path = ROOT / f"{name.replace('.', '/')}.py"
        assert imports(path) <= {"li2_lightning", *sys.stdlib_module_names}, path
        assert {name for name in imported_modules(path) if name.startswith("li2_lightning")} <= shared, path


def test_theory_knows_neither_lightning_nor_files() -> None:
    for path in files("li2_lightning/theory"):
        assert not imports(path) & {"lightning", "wandb", "omegaconf", "os", "pathlib", "io"}, path


def test_hydra_is_in_train_py_and_its_sweeper_alone() -> None:
    assert "hydra" in imports(ROOT / "train.py")
    assert "hydra" in imports(ROOT / "hydra_plugins" / "li2_sweeper" / "__init__.py")
    for part in PARTS:
        for path in files(part):
            assert "hydra" not in imports(path), path


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
    listed = set(setup["options"]["packages"].split())
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
    declared = {{"hydra-core": "hydra", "pillow": "PIL"}.get(name, name) for name in declared}
    used = set().union(*(imports(path) for part in PARTS for path in files(part)), imports(ROOT / "train.py"))
    assert used - {*sys.stdlib_module_names, *PARTS} <= declared


def test_the_project_stands_alone() -> None:
    """No file refers to a folder outside the repository."""
    outside = "/".join(("..", "shared")).encode()
    kept = tracked()
    assert ROOT / "train.py" in kept
    for path in kept:
        assert outside not in path.read_bytes(), path
