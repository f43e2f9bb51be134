"""The example package, installed as a stranger would: found by name, trained with, and tested by its own test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import optimizers

ROOT = Path(optimizers.__path__[0]).parent
EXAMPLE = ROOT / "examples" / "optimizer_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built package and its metadata, which holds the entry point."""
    folder = tmp_path_factory.mktemp("example")
    # pip builds inside the source folder.
    source = shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", folder / "site", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def python(*arguments: str | Path, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WANDB_")},
        "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_train_with_it_by_name(installed: Path, tmp_path: Path) -> None:
    config = ["task.order=7", "network.width=16", "max_steps=3", "logger.mode=disabled", "trainer.accelerator=cpu"]
    role = ["optimizer.hidden.name=sign_momentum", "optimizer.hidden.momentum=0.5"]
    done = python(ROOT / "train.py", *config, *role, path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hidden     sign_momentum  lr 0.001" in done.stdout
    # Known by the installed package alone; in another folder, for here the run is finished and stored.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = python(ROOT / "train.py", *config, *role, path=elsewhere, cwd=elsewhere)
    assert done.returncode == 2
    assert "Unknown optimizer 'sign_momentum'" in done.stderr


@pytest.mark.slow
def test_its_own_test_runs_the_contract(installed: Path, tmp_path: Path) -> None:
    test = EXAMPLE / "tests" / "test_sign_momentum.py"
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", test, path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout
