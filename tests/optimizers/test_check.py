"""The contract finds what is wrong, says it in a sentence, and leaves the rest alone."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizers import check
from optimizers.check import CHECKS, Broken, Candidate
from tests.conftest import LI2, li2_command

main = li2_command("check")


GOOD = """
import itertools, random, torch
from torch.optim import SGD

class Base(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, group)
    def move(self, p, group):
        p.sub_(p.grad + group["weight_decay"] * p, alpha=group["lr"])
"""
# One class for each check, each with the one mistake that it is there to find, and words of the message.
MISTAKES = {
    "convex_quadratic": ("def move(self, p, group): p.add_(p.grad, alpha=group['lr'])", "the loss went to"),
    "matrix_problem": ("def move(self, p, group): p.mul_(torch.nan)", "the loss went to nan"),
    "checkpoint": (
        """
    def move(self, p, group):
        self.memory = getattr(self, 'memory', 0) + p.grad
        p.sub_(self.memory, alpha=0.1 * group['lr'])
""",
        "state is missing from state_dict",
    ),
    "copies": (
        """
    memory = {}
    def move(self, p, group):
        self.memory[p.shape] = self.memory.get(p.shape, 0) + 1
        p.sub_(p.grad, alpha=group['lr'] / self.memory[p.shape])
""",
        "a deep copy trains on to other weights",
    ),
    "gradients": ("def move(self, p, group): p.sub_(p.grad.mul_(group['lr']))", "step() changed p.grad"),
    "one_role": (
        """
    def step(self, closure=None):
        with torch.no_grad():
            for p in self.param_groups[0]['params']:
                p.sub_(0.1 if p.grad is None else self.param_groups[0]['lr'] * p.grad)
""",
        "a parameter without a gradient was changed",
    ),
    "several_roles": (
        "def move(self, p, group): p.sub_(p.grad * (p.shape != (9, 4)), alpha=group['lr'])",
        "V has not moved in 5 steps",
    ),
    "extra_layers": (
        "def move(self, p, group): p.sub_(p.grad if p.shape != (9, 9) else 0, alpha=group['lr'])",
        "H1 has not moved in 5 steps",
    ),
    "complex_weights": (
        "def move(self, p, group): p.sub_(p.grad.real, alpha=group['lr'])",
        "complex weights are accepted and not trained",
    ),
    "vectors": (
        "def move(self, p, group): p.sub_(p.grad * (p.ndim > 1), alpha=group['lr'])",
        "a weight of shape (7,) is not trained",
    ),
    "schedulers": (
        "def move(self, p, group): p.sub_(p.grad, alpha=self.param_groups[0]['lr'] if p.shape == (6, 9) else 0.01)",
        "H1 moved when the scheduler had set lr to 0",
    ),
    "learning_rate_zero": (
        "def move(self, p, group): p.sub_(p.grad / group['lr'] * group['lr'] ** 2)",
        "not finite after three steps at lr 0",
    ),
    "gradient_zero": (
        "def move(self, p, group): p.sub_(p.grad / p.grad.norm(), alpha=group['lr'])",
        "not finite after a gradient of zero",
    ),
    "determinism": (
        """
    seen = itertools.count()
    def move(self, p, group): p.sub_(p.grad, alpha=group['lr'] * (1 + 1e-9 * next(self.seen)))
""",
        "twice the same seed gave two different results",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path with ``mine:Base`` and one class for each mistake."""
    classes = [f"class Wrong_{name}(Base):\n    {source.lstrip()}\n" for name, (source, _) in MISTAKES.items()]
    (tmp_path / "mine.py").write_text(GOOD + "\n" + "\n".join(classes))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CHECKS, "processes")


def test_every_check_is_tried_on_a_mistake() -> None:
    assert {*MISTAKES, "processes"} == set(CHECKS)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_check_finds_its_mistake_and_passes_what_has_none(name: str) -> None:
    CHECKS[name](Candidate("mine:Base"))
    with pytest.raises(Broken, match=re.escape(MISTAKES[name][1])):
        CHECKS[name](Candidate(f"mine:Wrong_{name}"))


def test_a_refusal_is_a_remark_and_not_a_breach(folder: Path) -> None:
    (folder / "mine.py").write_text(
        GOOD
        + """
class Picky(Base):
    def move(self, p, group):
        if p.is_complex(): raise TypeError('real numbers only')
        super().move(p, group)
"""
    )
    assert CHECKS["complex_weights"](Candidate("mine:Picky")) == "refuses complex weights: TypeError: real numbers only"


@pytest.mark.usefixtures("_no_processes")
def test_one_line_a_check_and_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine:Base", "--hyperparameter", "lr=0.05", "weight_decay=0"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line[6:24].strip().replace(" ", "_") for line in lines] == list(CHECKS)
    assert {line[:4].strip() for line in lines} == {"ok"}


@pytest.mark.usefixtures("_no_processes")
def test_a_breach_is_exit_code_1_and_the_other_checks_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine:Wrong_gradients"]) == 1
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == len(CHECKS)
    assert any(line.startswith("FAIL  gradients") and line.endswith("step() changed p.grad") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine:Bse"], "module mine has no attribute 'Bse'. Did you mean 'Base'?"),
        (["no_such_module:Mine"], "No module named 'no_such_module'"),
        (["admw"], "Unknown optimizer 'admw'"),
        (["adam", "--hyperparameter", "lrr=1"], "'adam' has no option 'lrr'"),
        (["adam", "--hyperparameter", "lr"], "A hyperparameter is name=value"),
        (["adam", "--hyperparameter", "lr=-1"], "adam cannot be built with lr=-1"),
        (["lbfgs"], "choose an optimizer whose step needs no closure"),
        (["builtins:list"], "gave a list, not a torch.optim.optimizer.Optimizer"),
    ],
)
def test_what_cannot_be_built_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_hyperparameters_are_read_like_yaml() -> None:
    read = dict(map(check._read, ["lr=1e-3", "nesterov=true", "betas=[0.9, 0.99]", "scale=rms"]))
    assert read == {"lr": 1e-3, "nesterov": True, "betas": [0.9, 0.99], "scale": "rms"}


def test_the_ten_lines_of_the_docs_keep_the_contract(folder: Path) -> None:
    text = (Path(check.__file__).parents[1] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    (folder / "mine.py").write_text(code)
    for name in set(CHECKS) - {"processes"}:
        assert not CHECKS[name](Candidate("mine:SignDescent")).startswith("refuses") or name == "complex_weights"
    assert "li2 check my_module:SignDescent" in text
    documented = text[text.index("| check | what holds |") :].split("\n\n")[0].replace(" ", "_")
    assert all(name in documented for name in CHECKS)


@pytest.mark.slow
def test_from_outside_with_a_file_in_the_current_folder(folder: Path) -> None:
    """With a mistake that shows in two processes only: each starts from a seed of its own."""
    (folder / "mine.py").write_text(
        GOOD
        + """
import os
class Alone(Base):
    def move(self, p, group):
        p.sub_(p.grad, alpha=group['lr'] * (1 + 1e-9 * torch.distributed.is_initialized() * os.getpid()))
"""
    )
    done = {}
    for name in ("Base", "Alone"):
        command = [sys.executable, "-W", "error", "-c", LI2, "check", f"mine:{name}"]
        done[name] = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done["Base"].returncode == 0, done["Base"].stdout + done["Base"].stderr
    assert done["Alone"].returncode == 1
    failed = [line for line in done["Alone"].stdout.split("\n") if line.startswith("FAIL")]
    assert [" ".join(line.split()) for line in failed] == ["FAIL processes the processes ended with different weights"]
