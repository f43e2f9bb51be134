"""The wheel, built and installed: from an empty folder everything runs with nothing but what the wheel brought."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import train

ROOT = Path(train.__file__).parent
RUN = ("task.order=11", "network.width=32", "max_steps=20", "logger.mode=disabled")
PLUG_IN = """
import torch
class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
"""
pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    """What a command says, in an environment without the checkout and without anybody's settings; it must succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTHON", "LI2_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HOME": str(cwd)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # pip builds inside the source folder, so it gets one of its own.
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    call(*pip, "--wheel-dir", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def li2(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the installed wheel. Of the tests' environment only the dependencies can be imported there."""
    environment = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", environment, cwd=environment)
    python = environment / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=environment)
    purelib = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip()
    # The .pth files of a folder that is added so are not read: an editable installation of the checkout stays outside.
    (Path(purelib) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment / "bin" / "li2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an optimizer, and a train.py of its owner's, which must not be taken for ours."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "my_module.py").write_text(PLUG_IN)
    (folder / "train.py").write_text("raise SystemExit('not this train.py')\n")
    return folder


def test_the_wheel_holds_every_file_that_the_code_needs(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for part in ("li2_lightning", "optimizers", "callbacks", "hydra_plugins", "configs"):
        for path in (ROOT / part).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                assert (f"li2_lightning/{name}" if part == "configs" else name) in inside, name
    assert "train.py" in inside
    assert not [name for name in inside if name.startswith(("tests/", "configs/", "docs/"))]


@pytest.mark.parametrize(
    "arguments",
    [
        RUN,
        ("experiment=fig03_no_weight_decay", *RUN, "data.train_size=60"),
        (*RUN, "name=plug_in", "optimizer.hidden.name=my_module:SignDescent", "optimizer.hidden.lr=0.001"),
        (*RUN, "name=two_ranks", "trainer.devices=2"),
        ("-m", *RUN, "name=sweep", "seed=0,1"),
        ("-m", *RUN, "name=joblib", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
         "optimizer.hidden.name=my_module:SignDescent", "optimizer.hidden.lr=0.001"),
        ("-m", *RUN, "name=submitit", "hydra/launcher=submitit_local"),
    ],
    ids=["run", "experiment", "plug-in", "ranks", "sweep", "joblib", "submitit"],
)  # fmt: skip
def test_training(arguments: tuple[str, ...], li2: Path, folder: Path) -> None:
    before = set(folder.glob("outputs/*/*/summary.json"))
    call(li2, "train", *arguments, cwd=folder)
    new = set(folder.glob("outputs/*/*/summary.json")) - before
    assert len(new) == (2 if "seed=0,1" in arguments else 1)


def test_every_other_command(li2: Path, folder: Path) -> None:
    for seed in (0, 1):
        call(li2, "train", *RUN, f"seed={seed}", "name=read", cwd=folder)
    for command in (
        "report outputs/read --each -o report.html",
        "animate outputs/latest -o film.mp4 -o film.gif",
        "compare outputs/read -o compare.html",
        "collect outputs/read -o all.csv -o all.parquet",
        "figures fig03_weight_decay outputs/read -o fig03.pdf",
        "figures train/loss,test/loss outputs/read -o losses.png",
        "race outputs/read -o race.md",
        "verify --quick --theorem 8",
        "groups --order 8",
        "check my_module:SignDescent --hyperparameter lr=0.01",
        "--version",
        "train --help",
    ):
        words = command.split()
        assert call(li2, *words, cwd=folder)
        for position, word in enumerate(words[:-1]):
            if word == "-o":
                assert (folder / words[position + 1]).stat().st_size > 0
    doctor = call(li2, "doctor", cwd=folder)
    assert f"{li2.parents[1]}" in next(line for line in doctor.splitlines() if line.startswith("configs"))
    assert str(ROOT) + os.sep + "configs" not in doctor
    assert "cannot be" not in doctor
