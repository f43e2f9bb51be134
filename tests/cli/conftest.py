"""How the end-to-end tests call the project: the command line in this process, or `python train.py` in one of its own.

Starting Python and torch costs seconds, so a test starts a process only where the process is its point: signals, exit
codes, terminals, a fresh environment. Everything else goes through the very same ``train.main()`` here.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hydra.core.global_hydra import GlobalHydra

import train
from tests.conftest import forget_wandb

ROOT = Path(train.__file__).parent
# Small enough for milliseconds a step, large enough for every callback to have something to measure.
TINY = ("task.order=7", "network.width=8", "max_steps=3", "logger.mode=disabled", "trainer.threads=1")


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line left on the two streams, and its exit code."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Outcome]


def directory(workplace: Path) -> Path:
    """That of the newest run."""
    return (workplace / "outputs" / "latest").resolve()


def rows_written(workplace: Path) -> int:
    """Lines of the newest metrics.csv."""
    path = workplace / "outputs" / "latest" / "metrics.csv"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(autouse=True)
def fresh_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials and nobody's home directory, whoever runs the tests."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    forget_wandb(monkeypatch)
    # matplotlib would build its font cache anew in an empty home, which takes seconds.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Set by the code under test; named here so that they are taken back.
    for name in ("HYDRA_FULL_ERROR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """``python train.py ARGUMENTS`` in this process and the workplace: the same `train.main`, streams caught."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        out, err = io.StringIO(), io.StringIO()
        GlobalHydra.instance().clear()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code: Any = train.main()
        except SystemExit as end:
            code = end.code
        finally:
            GlobalHydra.instance().clear()
        return Outcome(0 if code is None else int(code), out.getvalue(), err.getvalue())

    return call


class Process:
    """A real ``python train.py ARGUMENTS``, its streams in files so that nothing can block."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, streams: Path, **environment: str) -> None:
        streams.mkdir(exist_ok=True)
        self._out, self._err = streams / "out", streams / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def send(self, signum: int) -> None:
        self.popen.send_signal(signum)

    def out(self) -> str:
        """What it has said so far."""
        return self._out.read_text()

    def wait(self, seconds: float = 240) -> Outcome:
        code = self.popen.wait(timeout=seconds)
        return Outcome(code, self._out.read_text(), self._err.read_text())

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Poll until ``happened``; a process that ends before, or takes for ever, fails the test."""
        deadline = time.monotonic() + seconds
        while not happened():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                outcome = self._out.read_text(), self._err.read_text()
                pytest.fail(f"the process ended or hung before it got there: {outcome}")
            time.sleep(0.01)


StartProcess = Callable[..., Process]


@pytest.fixture
def start_process(workplace: Path, tmp_path: Path) -> Iterator[StartProcess]:
    """Start ``python train.py ARGUMENTS`` in the workplace; whatever still runs when the test ends is killed."""
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        started.append(Process(arguments, workplace, tmp_path / f"streams-{len(started)}", **environment))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.send(signal.SIGKILL)
            process.popen.wait()
