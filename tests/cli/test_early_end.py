"""Ends that come before a run begins: nobody reads, Ctrl-C while Python still imports, a plug-in that is broken."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from hydra.core.global_hydra import GlobalHydra

import callbacks
import train
from callbacks import CALLBACKS
from li2_lightning.analysis import figures, html_report
from li2_lightning.cli import main as li2
from li2_lightning.errors import InputError
from tests.cli.conftest import ROOT, TINY
from tests.conftest import LI2


@contextlib.contextmanager
def unread() -> Iterator[IO[str]]:
    """stdout is a pipe whose reader has gone away, as that of ``python train.py … | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream, contextlib.redirect_stdout(stream):
        yield stream
        stream.write("what is left when Python exits\n")


def exit_code(work: Callable[[], object]) -> object:
    try:
        return work()
    except SystemExit as end:
        return end.code


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str]:
    """Exit code and stderr of ``python train.py ARGUMENTS``, in this process."""
    monkeypatch.setattr(train.train.__wrapped__, "__module__", "__main__")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
    GlobalHydra.instance().clear()
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = exit_code(train.main)
    GlobalHydra.instance().clear()
    return code, err.getvalue()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job"], ["--info", "plugins"], ["--version"]], ids=" ".join
)
def test_who_has_seen_enough_of_what_is_shown_hears_nothing(
    arguments: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread():
        assert call(monkeypatch, *arguments) == (1, "")


def test_a_run_that_nobody_reads_says_how_it_continues(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with unread():
        code, err = call(monkeypatch, *TINY)
    assert code == 1
    assert err == "error: The run stopped because nobody reads its output any more; continue with resume=auto.\n"


def test_the_help_of_the_other_commands_ends_as_quietly() -> None:
    with unread():
        assert li2.main(["report", "--help"]) == 0


def test_ctrl_c_in_one_of_the_other_commands_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(html_report, "main", interrupted)
    assert li2.main(["report", "outputs"]) == 130
    assert capsys.readouterr().err == "error: Stopped by SIGINT.\n"


@pytest.mark.parametrize(
    ("source", "ignored", "code", "err"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", False, 130, "error: Stopped before training began.\n"),
        # A library that tries whether it can import something, and takes any failure for a no.
        (
            "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass",
            False,
            130,
            "error: Stopped before training began.\n",
        ),
        # nohup
        ("os.kill(os.getpid(), signal.SIGINT)\nos._exit(7)", True, 7, ""),
    ],
    ids=["in an import", "in one that catches everything", "ignored"],
)
@pytest.mark.parametrize("module", ["hydra", "lightning"])
def test_ctrl_c_during_the_imports_is_one_line(
    module: str, source: str, ignored: bool, code: int, err: str, tmp_path: Path
) -> None:
    """A module in the place of one that is imported, so that the signal comes then; for both names of the program."""
    (tmp_path / "hydra.py").touch()
    (tmp_path / "lightning.py").touch()
    (tmp_path / f"{module}.py").write_text(f"import os, signal\n{source}\n")
    li2 = [sys.executable, "-c", LI2, "train"]
    for program in ([sys.executable, str(ROOT / "train.py")], li2):
        run_interrupted([*program, *TINY], ignored, code, err, tmp_path)


def run_interrupted(command: list[str], ignored: bool, code: int, err: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)
    assert not (tmp_path / "outputs").exists()


def broken_modules(path: object, prefix: str = "") -> list[pkgutil.ModuleInfo]:
    """A folder that holds a file that cannot be imported."""
    return [pkgutil.ModuleInfo(None, "that_is_broken", False)]  # type: ignore[arg-type]


def test_a_broken_file_in_callbacks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALLBACKS, "_broken", {})
    with monkeypatch.context() as patch:
        patch.setattr(pkgutil, "iter_modules", broken_modules)
        importlib.reload(callbacks)
    with pytest.raises(InputError, match=r"^The plug-in callbacks\.that_is_broken could not be imported: .*\.$"):
        train.run({"output_dir": str(tmp_path / "outputs")})
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["fig03_weight_decay", "no_such_figure"])
def test_a_broken_file_among_the_figures_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures.FIGURES, "_broken", {})
    monkeypatch.setattr(pkgutil, "iter_modules", broken_modules)
    with pytest.raises(InputError, match=r"^The plug-in li2_lightning\.analysis\.figures\.that_is_broken could not"):
        figures.find_figure(name)
