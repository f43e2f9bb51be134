"""The notebooks of docs/notebooks/: without outputs, without a pin on what a hosted service has, and they run."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import train

ROOT = Path(train.__file__).parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# What a hosted notebook service has. Another version of one of these would not take effect before a restart.
THERE = {"torch", "numpy", "pandas", "matplotlib", "pillow", "PyYAML"}
# A sentence or a number that the last cells show, and how many pictures there are.
SHOWN = {
    "first-run": (r"test accuracy \.9 at step \d+", 3),
    "features-in-motion": (r"(?s)a transition to stage 3.*\nok    processes", 3),
}


def code(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_two() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*SHOWN}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_first_cell_installs_what_a_hosted_service_lacks_and_nothing_that_it_has(path: Path) -> None:
    own, others = re.findall(r"%pip install (.*)", code(path)[0])
    assert own.startswith("--quiet --no-deps ")
    named = {Requirement(word.strip('"')) for word in others.removeprefix("--quiet ").split()}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = {Requirement(line).name for line in setup["options"]["install_requires"].split("\n") if line}
    assert {requirement.name for requirement in named} == needed - THERE
    assert {str(requirement) for requirement in named if requirement.specifier} == {"lightning>=2.6", "hydra-core<1.4"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first cell to its last, in a process of its own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    pattern, pictures = SHOWN[path.stem]
    assert re.search(pattern, said)
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(kinds) == pictures
