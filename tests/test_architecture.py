"""The arrows between the parts point one way."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import li2_lightning
import train

ROOT = Path(train.__file__).parent
PARTS = ("li2_lightning", "optimizers", "callbacks")


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
        ("optimizers", {"li2_lightning", "callbacks", "train", "tests", "benchmarks"}),
        ("callbacks", {"optimizers", "train", "tests", "benchmarks"}),
    ],
)
def test_no_arrow_points_back(part: str, forbidden: set[str]) -> None:
    for path in files(part):
        assert not imports(path) & forbidden, path


def test_ranks_stand_below_the_network_and_the_trainer() -> None:
    """What they need of these is handed in; networks, losses and the trainer import them."""
    below = ("config", "distributed", "errors", "log")
    for path in files("li2_lightning/distributed"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("li2_lightning."):
                assert str(node.module).split(".")[1] in below, (path, node.module)


def test_optimizers_stand_on_torch_alone() -> None:
    for path in files("optimizers"):
        assert imports(path) <= {"torch", "optimizers", *sys.stdlib_module_names}, path


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
    declared = {{"hydra-core": "hydra", "pillow": "PIL"}.get(name, name) for name in declared}
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
