"""The command ``li2``: its screen of help, its table of commands, and that it is quick to start."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import li2_lightning
from li2_lightning.cli import main as li2
from li2_lightning.cli.main import COMMANDS, Command, main
from li2_lightning.groups import small_groups
from tests.cli.conftest import ROOT, TINY, CommandLine
from tests.conftest import LI2

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Hydra reads the line of `li2 train` itself.
WITH_PARSER = [name for name in COMMANDS if name != "train"]


def test_help_fits_one_screen_and_says_what_each_command_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name, command in COMMANDS.items():
        assert f"  {name:<13}{command.purpose}" in lines


def test_the_commands_are_those_that_the_project_promises() -> None:
    assert list(COMMANDS) == [
        "train", "report", "animate", "compare", "collect", "figures", "race", "wandb-view", "wandb-report", "verify",
        "groups", "check", "play", "doctor",
    ]  # fmt: skip
    assert all(f"`{name}`" in README or f"`li2 {name}`" in README for name in COMMANDS)


def test_help_imports_the_standard_library_only() -> None:
    """In a process of its own, because everything is imported in this one."""
    program = (
        "import sys; before = set(sys.modules); from li2_lightning.cli.main import main; main(['--help'])\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['li2_lightning']"


@pytest.mark.parametrize("script", [["train.py"], ["-c", LI2, "train"]], ids=["train.py", "li2 train"])
def test_a_command_does_not_search_its_imports_for_garbage_when_it_exits(script: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, gc\natexit.register(lambda: print(len(gc.get_objects()), gc.get_freeze_count()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *script, "--version"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    searched, left_out = map(int, done.stdout.split()[-2:])
    assert left_out > 10 * searched > 0


@pytest.mark.parametrize("name", WITH_PARSER)
def test_the_help_of_a_command_shows_its_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert shown.startswith(f"usage: li2 {name} ")
    assert COMMANDS[name].example in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_a_call_of_its_command(name: str) -> None:
    assert COMMANDS[name].example.split()[:2] == ["li2", name]


@pytest.mark.parametrize(
    ("word", "nearest"), [("trian", "train"), ("figure", "figures"), ("collects", "collect"), ("--verify", "verify")]
)
def test_an_unknown_command_is_one_sentence_with_the_nearest(
    word: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: Unknown command {word!r}; known are animate, check, collect, compare, ")
    assert captured.err.endswith(f" Did you mean {nearest!r}?\n")
    assert captured.err.count("\n") == 1


def test_no_command_is_an_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: li2 COMMAND ...")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"li2_lightning {li2_lightning.__version__}\n"


@pytest.mark.parametrize("target", ["there_is_no_such_module:main", "li2_lightning.cli.no_such_module:main"])
def test_a_command_that_cannot_be_imported_points_at_the_doctor(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "report", Command(target, "", ""))
    assert main(["report", "outputs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: li2 report cannot be loaded (")
    assert error.endswith("; li2 doctor shows what is installed.\n")


def test_a_mistake_of_ours_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "report", Command("operator:floordiv", "", ""))
    with pytest.raises(TypeError):
        main(["report"])


def test_a_character_that_the_encoding_of_stdout_lacks_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    monkeypatch.setattr(small_groups, "main", lambda parser, words: print("W (22×32)"))
    assert main(["groups"]) == 0
    assert output.getvalue() == b"W (22?32)\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 0), (OSError("full"), 2)])
def test_an_end_from_outside_is_an_exit_code_without_traceback(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ended(parser: object, words: object) -> None:
        raise error

    monkeypatch.setattr(os, "dup2", lambda *_: None)  # what a broken pipe does to the real stdout
    monkeypatch.setattr(small_groups, "main", ended)
    assert main(["groups"]) == code
    assert capfd.readouterr().err in ("", "error: full.\n", "error: Stopped by SIGINT.\n")


def li2_train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """``li2 train ARGUMENTS``, which replaces sys.argv."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    GlobalHydra.instance().clear()
    try:
        return main(["train", *arguments])
    except SystemExit as end:  # Hydra's, after --help
        return int(end.code or 0)
    finally:
        GlobalHydra.instance().clear()


def test_li2_train_is_train_py(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = command_line("--cfg", "job", *TINY)
    assert li2_train(monkeypatch, "--cfg", "job", *TINY) == shown.code == 0
    assert capsys.readouterr().out == shown.out
    wrong = command_line(*TINY, "network.widht=8")
    assert li2_train(monkeypatch, *TINY, "network.widht=8") == wrong.code == 2
    assert capsys.readouterr().err == wrong.err


def test_the_help_of_train_is_hydras_with_examples(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert li2_train(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert COMMANDS["train"].example in shown
    assert "optimizer: " in shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("li2 ", list(COMMANDS)),
        ("li2 c", ["compare", "collect", "check"]),
        ("li2 fig", ["figures"]),
        ("li2 report out", []),
        ("li2 train optimizer=ada", ["optimizer=adam", "optimizer=adamw"]),
        ("li2 train seed=1 task.ord", ["task.order="]),
    ],
)
def test_completion(
    line: str,
    words: list[str],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the shell function of ``li2 train --shell-completion install=bash`` asks for at Tab."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    GlobalHydra.instance().clear()
    assert main(["-sc", "query=bash"]) == 0
    GlobalHydra.instance().clear()
    assert capsys.readouterr().out.split() == words


def test_the_line_for_completion_in_the_readme_is_what_hydra_offers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r'eval "\$\(li2 train (.*)\)"', README)
    assert li2_train(monkeypatch, *command.split()) == 0
    assert capsys.readouterr().out.rstrip().endswith("-F hydra_bash_completion li2")


def test_the_current_folder_comes_after_our_own(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    """So that a train.py or a folder callbacks/ of the user's is not taken for ours."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["li2", "groups", "--order", "1"])
    before = list(sys.path)
    assert li2.main() == 0
    assert sys.path == [*before, str(ROOT), str(workplace)]
