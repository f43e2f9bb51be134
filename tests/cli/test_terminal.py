"""What the user sees, on a terminal and in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from operator import attrgetter
from pathlib import Path

import pytest

from li2_lightning.config.schema import Config, declared
from tests.cli.conftest import ROOT, TINY, CommandLine, StartProcess

# Long enough for both transitions, so that their lines are looked at, too.
TOLD = (
    "task.order=7",
    "network.width=128",
    "max_steps=120",
    *TINY[3:],
    "callbacks.report.enabled=false",
    "callbacks.pictures.enabled=false",
)


def test_in_a_log_there_are_lines_and_nothing_else(command_line: CommandLine) -> None:
    outcome = command_line(*TOLD)
    assert outcome.code == 0
    assert outcome.err == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", outcome.out), "control characters"
    progress = re.findall(r"^step (\d+)/120  loss \S+ \S+  acc \S+ \S+  stage (\S+)$", outcome.out, re.MULTILINE)
    steps = [int(step) for step, _ in progress]
    assert steps == list(range(0, 121, 12)), "ten lines and the start"
    stages = [stage for _, stage in progress]
    assert stages == sorted(stages)
    assert re.search(r"^step \d+: I → II independent \(independence \d", outcome.out, re.MULTILINE)
    assert_closing_table(outcome.out)


def test_the_number_of_lines_is_an_option(command_line: CommandLine) -> None:
    outcome = command_line(*TINY, "max_steps=20", "callbacks=minimal", "callbacks.progress.lines=4")
    assert re.findall(r"^step (\d+)/20 ", outcome.out, re.MULTILINE) == ["0", "5", "10", "15", "20"]


def assert_closing_table(text: str) -> None:
    assert re.search(r"accuracy reached +0\.5 +0\.9 +0\.99 +at the end +loss", text)
    for split in ("train", "test"):
        assert re.search(rf"^ {split} +(step \d+|never) +(step \d+|never) +(step \d+|never)( +\S+){{2}} *\r?$",
                         text, re.MULTILINE)  # fmt: skip
    assert re.search(r"^120 steps, [\d.]+ s, [\d.]+ steps/s", text, re.MULTILINE)
    assert re.search(r"^Seconds: ([a-z]+ [\d.]+, )+[a-z]+ [\d.]+ *\r?$", text, re.MULTILINE)
    assert re.search(r"^Files: outputs/cyclic-adam/[0-9a-f]{10}-s0", text, re.MULTILINE)


def on_a_terminal(arguments: tuple[str, ...], folder: Path, columns: int) -> tuple[int, str]:
    """Exit code and everything that a terminal of that width was sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        seen = bytearray()
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # what Linux says when the other side is closed
                break
            if not chunk:
                break
            seen += chunk
        os.close(leader)
    return process.returncode, seen.decode()


def visible(line: str) -> str:
    """A line without the sequences that colour it and move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line)


def test_on_a_terminal_there_is_a_bar(workplace: Path) -> None:
    code, text = on_a_terminal(TOLD, workplace, columns=80)
    assert code == 0, text
    assert "Traceback" not in text
    lines = [visible(line) for line in re.split(r"[\r\n]+", text)]
    bars = [line for line in lines if re.search(r"\d+/120 ", line)]
    assert len(bars) >= 2, "it moves"
    for bar in bars:
        assert re.search(r"\d+/120 loss \S+ \S+  acc \S+ \S+  stage (I{1,3}|–)? ", bar + " "), bar
    assert re.search(r"120/120 loss \d\S* \d\S*  acc \d\S* \d\S*  stage II", bars[-1])
    for line in lines:
        assert width(line.rstrip()) <= 80 or re.match(r"Files: |Look:  |Sync:  ", line), line
    assert any(re.match(r"step \d+: I → II independent", line) for line in lines)
    assert_closing_table("\n".join(lines))
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.slow
def test_a_narrow_terminal_is_no_reason_to_stop(workplace: Path) -> None:
    """Slow because it starts a process: 6 s."""
    code, text = on_a_terminal(TOLD, workplace, columns=40)
    assert code == 0, text


def test_help_explains_the_keys(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("--help")
    assert outcome.code == 0
    assert outcome.err == ""
    for text in ("Train one network", "KEY=VALUE", "max_steps: 400", "train_fraction: null", "fig03_weight_decay",
                 "optimizer: adam, adamw, egalitarian, lion, muon, muon_decoupled, muon_published, normuon,",
                 "callbacks.NAME", "resume: null", "task.expression"):  # fmt: skip
        assert text in outcome.out, text
    words = " ".join(outcome.out.split())
    for key, item in declared():
        default = attrgetter(key)(Config())
        assert f"{key}=" in words or f"== {key} " in words, key
        assert " ".join(item.metadata["help"].split()) in words, key
        if default is None or isinstance(default, float):
            assert f"{key}={'null' if default is None else default}" in words, key
        explained = words.partition(f"{key}=")[2].partition(str(item.metadata["help"]))[2]
        if allowed := [bound.words for bound in item.metadata["range"]]:
            assert explained.startswith(f" ({' and '.join(allowed)})"), key
        if item.metadata["choices"]:
            assert explained.startswith(f" ({' | '.join(item.metadata['choices'])})"), key
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert list(workplace.iterdir()) == []


def test_cfg_job_shows_the_config_and_stops(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("--cfg", "job", "task=symmetric", "optimizer.hidden.momentum=0.5")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "name: symmetric" in outcome.out
    assert "momentum: 0.5" in outcome.out
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
def test_a_process_in_a_pipe_is_quiet_and_its_streams_are_apart(start_process: StartProcess) -> None:
    """Slow because it starts a process: 6 s."""
    outcome = start_process(*TOLD, PYTHONWARNINGS="default").wait()
    assert outcome.code == 0
    assert outcome.err == ""
    assert_closing_table(outcome.out)
    assert "\x1b" not in outcome.out


@pytest.mark.slow
def test_help_of_a_process(start_process: StartProcess) -> None:
    """Slow because it starts a process: 5 s."""
    outcome = start_process("--help").wait()
    assert (outcome.code, outcome.err) == (0, "")
