"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from li2_lightning.cli.main import main
from li2_lightning.runs.load import find_runs
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import ROOT, CommandLine

README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""
# What makes any command small; a task named in the command keeps its own size.
SHRUNK = ("network.width=8", "max_steps=3", "logger.mode=disabled", "trainer.threads=1", "output_dir=out",
          "callbacks.report.enabled=false", "callbacks.pictures.enabled=false")  # fmt: skip


def fenced(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in one of these languages, indented ones included."""
    blocks = re.findall(r"^( *)```([\w-]+)[^\n]*\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for _, language, block in blocks if language in languages]


def commands(text: str) -> list[list[str]]:
    """Every command of the shell blocks as words: prompts, comments and output are no part of one."""
    found = []
    for block in fenced(text, "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words:
                found.append(words)
    return found


def starting_with(*start: str) -> list[list[str]]:
    return [words[len(start) :] for words in commands(README) if tuple(words[: len(start)]) == start]


RUNS = starting_with("li2", "train")
OTHERS = [words for words in starting_with("li2") if words[0] != "train"]
TARGETS = starting_with("make")


def test_the_extractor_finds_what_it_should() -> None:
    text = (
        "```bash\n# a comment\nli2 train a=1 \\\n  b=\"'x^2'\"  # why\nmake test\n```\n"
        "```python\npython no\n```\n"
        "1. item\n   ```console\n   $ li2 train c=2\n   ```\n"
    )
    assert commands(text) == [
        ["li2", "train", "a=1", "b='x^2'"], ["make", "test"], ["li2", "train", "c=2"]
    ]  # fmt: skip


def test_there_are_commands() -> None:
    assert len(RUNS) >= 3
    assert ["train"] in TARGETS
    assert ["test"] in TARGETS


def test_every_command_is_one_of_those_that_are_tested() -> None:
    for words in commands(README):
        assert words[0] in ("li2", "make", "wandb", "source", "pip", "eval"), words


@pytest.mark.slow
@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_every_other_command_of_the_readme_runs(arguments: list[str], small_sweep: Path, workplace: Path) -> None:
    """Slow because the checks of the theorems take 5 to 20 s. What looks at runs finds tiny ones."""
    for name, rate in (("fig03_weight_decay", 1e-3), ("fig03_no_weight_decay", 2e-2)):
        for run in find_runs([small_sweep]):
            if run["optimizer.lr"] == rate:
                shutil.copytree(run.directory, workplace / "outputs" / name / run.directory.name)
    (workplace / "outputs" / "latest").symlink_to(run.directory, target_is_directory=True)
    assert main(arguments) == 0
    for position, word in enumerate(arguments[:-1]):
        if word == "-o":
            assert (workplace / arguments[position + 1]).stat().st_size > 0


# A launcher starts processes of its own, which takes long.
RUNS_OR_SLOW = [
    pytest.param(words, marks=pytest.mark.slow) if any("launcher" in word for word in words) else words
    for words in RUNS
]


@pytest.mark.parametrize("arguments", RUNS_OR_SLOW, ids=" ".join)
def test_every_run_of_the_readme_runs(arguments: list[str], command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(*arguments, *SHRUNK)
    assert outcome.code == 0, outcome
    if any(word.startswith("-") and word not in ("-m", "--multirun") for word in arguments):
        return  # --help and --cfg run nothing
    assert not re.search("error|warning|failed", outcome.err, re.IGNORECASE)
    written = list((workplace / "out").rglob("metrics.csv"))
    assert written
    for path in written:
        assert read_metrics(path)["step"].iloc[-1] == 3


@pytest.mark.parametrize("arguments", TARGETS, ids=" ".join)
def test_every_make_target_exists(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, flags=re.MULTILINE))
    assert {word for word in arguments if "=" not in word} <= targets


@pytest.mark.parametrize("block", fenced(README, "python"))
def test_every_python_block_is_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_the_optimizer_of_the_readme_trains(command_line: CommandLine, workplace: Path, tmp_path: Path) -> None:
    """The plug-in of the README, as a module in the current folder."""
    (block,) = [block for block in fenced(README, "python") if "torch.optim.Optimizer" in block]
    registered = re.search(r"@register\(\"(\w+)\"\)\nclass (\w+)", block)
    assert registered is not None
    assert sum(1 for line in block.splitlines() if line.strip()) <= 15, "about ten lines"
    # Not entered under its name, which would stay for all the tests that follow.
    (workplace / "readme_plug_in.py").write_text(block.replace(f'@register("{registered.group(1)}")\n', ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(workplace))
        outcome = command_line(
            *SHRUNK, f"optimizer.hidden.name=readme_plug_in:{registered.group(2)}", "optimizer.hidden.lr=0.001"
        )
        assert outcome.code == 0, outcome
        misspelt = command_line(*SHRUNK, f"optimizer.hidden.name=readme_plug_in:{registered.group(2)}",
                                "optimizer.hidden.learning_rate=0.001")  # fmt: skip
        assert misspelt.code == 2
        assert "lr=0.001" in misspelt.err, "the signature is shown"


def test_every_file_the_readme_shows_exists() -> None:
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)", README)
    assert linked
    for path in linked:
        assert (ROOT / path).exists(), path
