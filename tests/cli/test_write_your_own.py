"""The walk of docs/optimizers.md, from a file of ten lines to a race against Adam, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from li2_lightning.cli.main import main
from optimizers import check
from tests.cli.conftest import ROOT, CommandLine
from tests.cli.test_readme import commands, fenced

TEXT = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
WALK = re.search(r"^## Write your own\n(.*?)^## ", TEXT, flags=re.MULTILINE | re.DOTALL)
# What makes any run small, and what makes a sweep few runs, one of which learns.
SMALL = ("task.order=11", "network.width=64", "max_steps=120", "logger.mode=disabled", "trainer.threads=1")
FEW = ("data.train_fraction=0.8", "seed=0,1", "multiple.lr=10,30", "multiple.weight_decay=10")


def test_there_is_a_walk_of_a_short_file_and_four_commands() -> None:
    assert WALK is not None
    (file,) = fenced(WALK.group(1), "python")
    name, *lines = file.splitlines()
    assert name == "# my_module.py"
    assert sum(bool(line.strip()) for line in lines) <= 12
    assert [words[:2] for words in commands(WALK.group(1))] == [
        ["li2", "check"], ["li2", "train"], ["li2", "train"], ["li2", "race"]
    ]  # fmt: skip


@pytest.mark.slow
def test_the_walk_arrives(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow because the contract starts processes."""
    assert WALK is not None
    (file,) = fenced(WALK.group(1), "python")
    (workplace / "my_module.py").write_text(file)
    monkeypatch.syspath_prepend(workplace)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    told = []
    for words in commands(WALK.group(1)):
        if words[1] == "train":
            sweep = ("-m" in words) * FEW
            outcome = command_line(*words[2:], *SMALL, *sweep)
            assert outcome.code == 0, outcome
            told.append(outcome.out)
        else:
            assert main(words[1:]) == 0, capsys.readouterr()
            told.append(capsys.readouterr().out)
    checked, trained, swept, table = told
    assert len(checked.splitlines()) >= len(check.CHECKS)
    assert "my_module:SignDescent  lr 0.001" in trained
    assert swept.count("Files: ") == 2 * 2 * 2
    lines = {
        cells[1].strip(): [cell.strip() for cell in cells] for cells in (line.split("|") for line in table.splitlines())
    }
    assert {"adam", "my_module:SignDescent / adam"} < set(lines)
    assert lines["adam"][3] == "2 of 2", "Adam generalizes in this race"
    assert lines["my_module:SignDescent / adam"][3].endswith(" of 2")
