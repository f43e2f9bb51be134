"""Which versions the tests run on is stated, bounded, and printed by the commands of the README."""

from __future__ import annotations

import configparser
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import train

ROOT = Path(train.__file__).parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REQUIRED = [Requirement(line) for line in SETUP["options"]["install_requires"].strip().splitlines()]
TESTED = dict(
    line.strip().lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("required", REQUIRED, ids=str)
def test_a_library_is_bounded_by_what_was_tested(required: Requirement) -> None:
    operators = {bound.operator for bound in required.specifier}
    assert operators == {">=", "<"}
    assert TESTED[required.name.lower()] in required.specifier


@pytest.mark.parametrize("name", ["torch", "lightning", "hydra-core", "wandb", "numpy"])
def test_the_readme_names_the_tested_version(name: str) -> None:
    assert re.search(rf"\b{name} {re.escape(TESTED[name])}\b", README)


def test_the_python_that_is_tested_is_stated_and_3_14_is_out() -> None:
    allowed = SpecifierSet(SETUP["options"]["python_requires"])
    assert platform.python_version() in allowed
    assert "3.10.9" not in allowed
    assert "3.14.0" not in allowed
    assert "Tested is Python 3.11 " in README
    assert "Programming Language :: Python :: 3.11" in SETUP["metadata"]["classifiers"]


@pytest.mark.parametrize(
    ("numbers", "code"), [("3, 10, 14", 1), ("3, 11, 0", 0), ("3, 13, 9", 0), ("3, 14, 0", 1)], ids=str
)
def test_make_refuses_the_same_pythons(numbers: str, code: int) -> None:
    (check,) = re.findall(r"\$\(PYTHON\) -c '(.*)'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    pretended = f"import sys; sys.version_info = ({numbers}); {check}"
    done = subprocess.run([sys.executable, "-S", "-c", pretended], capture_output=True, text=True)
    assert done.returncode == code
    assert ("3.11 to 3.13" in done.stderr) == bool(code)


@pytest.mark.parametrize("target", ["test", "lint"])
def test_what_ci_calls_prints_the_versions_first(target: str) -> None:
    assert f"make {target}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    made = ["make", "--silent", "--old-file=.venv/installed", f"RUN={sys.executable}"]
    printed = subprocess.run([*made, "versions"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ("torch", "lightning"):
        assert f"{name} {version(name)}" in printed
    assert printed.startswith(f"Python {platform.python_version()}, ")
    planned = subprocess.run([*made, "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python_version" in planned.splitlines()[0]
