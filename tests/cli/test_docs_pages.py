"""The commands of every page of docs/ run one after the other, as a reader types them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from li2_lightning.cli.main import main
from tests.cli.conftest import ROOT, CommandLine
from tests.cli.test_readme import commands, fenced

DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if commands(page.read_text(encoding="utf-8"))]
# Steps for one window of 20 updates, and no picture at their end.
SHRUNK = ("max_steps=22", "logger.mode=disabled", "trainer.threads=1", "callbacks.report.enabled=false",
          "callbacks.pictures.enabled=false")  # fmt: skip


def is_elsewhere(words: list[str]) -> bool:
    """Whether a command needs minutes, or runs that have reached their end; another test has these.

    They are tests/verification/, tests/analysis/test_race_confirm.py, and tests/experiments/test_fig08.py, whose
    pictures need seeds for tuning beside those that they show.
    """
    return words == ["li2", "verify"] or "--confirm" in words or words[2:3] in (["fig08_muon"], ["fig08_muon_quick"])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_commands_of_a_page_run(
    page: Path, command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are shrunk; a sweep keeps its grid, with one seed unless the command names others.

    Runs that a command reads are made first if no command has left them.
    """
    (block,) = fenced((DOCS / "start" / "4-write-an-optimizer.md").read_text(encoding="utf-8"), "python")
    (workplace / "my_module.py").write_text(block)
    (workplace / "table.csv").write_text("0,1\n1,0\n")
    (workplace / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setattr("webbrowser.open", lambda address: True)

    def train(*arguments: str) -> None:
        # The width of an experiment may be what it sweeps.
        width = [] if any(word.startswith("experiment=") for word in arguments) else ["network.width=8"]
        seed = [] if any(word.startswith("seed=") for word in arguments) else ["seed=0"]
        outcome = command_line(*arguments, *SHRUNK, *width, *seed)
        # The grid of a race reaches settings that diverge; a sweep lists them and goes on.
        assert outcome.code == 0 or ("-m" in arguments and "Training diverged" in outcome.err), outcome

    train()
    for words in commands(page.read_text(encoding="utf-8")):
        if words[:2] == ["li2", "train"]:
            train(*words[2:])
        elif words[0] == "li2" and not is_elsewhere(words):
            for folder in [workplace / word for word in words if word.startswith("outputs/")]:
                if not folder.exists():
                    train("-m", f"experiment={folder.name}")
            assert main(words[1:]) == 0, words
            for place, word in enumerate(words):
                assert word != "-o" or (workplace / words[place + 1]).stat().st_size > 0
    shutil.rmtree(workplace)
