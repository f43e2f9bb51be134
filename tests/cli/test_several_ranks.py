"""A run on several ranks starts, stops, fails and goes on as one: one message, one exit code, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import ROOT, CommandLine, Outcome, StartProcess, rows_written

pytestmark = pytest.mark.slow  # each starts several processes that import torch: 5 to 15 s

RANKS = (
    "task.order=11",
    "network.width=32",
    "max_steps=120",
    "logger.mode=disabled",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "callbacks.report.enabled=false",
    "callbacks.pictures.enabled=false",
    "callbacks.checkpoint.every_n_steps=20",
    "trainer.oversubscribe=true",
)
FAILING = """
import os
import torch

class Failing(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        Failing.steps += 1
        if Failing.steps == 5 and os.environ.get("LOCAL_RANK", "0") == "{rank}":
            {failure}
        return super().step(closure)
"""


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(happened: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happened()


def assert_one_message(outcome: Outcome, *words: str) -> None:
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_takes_every_rank_with_it_and_continues(
    signum: int, code: int, start_process: StartProcess, command_line: CommandLine, workplace: Path
) -> None:
    temporary = workplace.parent / "temporary"
    temporary.mkdir()
    process = start_process(*RANKS, TMPDIR=str(temporary))
    process.wait_for(lambda: rows_written(workplace) > 30, seconds=300)
    started = children(process.popen.pid)
    assert started
    process.send(signum)
    outcome = process.wait()
    assert outcome.code == code, outcome
    assert wait_until(lambda: not any(alive(pid) for pid in started)), "a rank outlived the first"
    assert not list(temporary.glob("li2-*")), "files of the ranks were left behind"
    if signum != signal.SIGKILL:
        assert_one_message(outcome, signal.Signals(signum).name, "resume=auto")
    stopped = (workplace / "outputs" / "latest").resolve()
    resumed = command_line(*RANKS, "resume=auto")
    assert resumed.code == 0, resumed
    assert "step 0/" not in resumed.out
    whole = command_line(*RANKS, "output_dir=whole")
    assert whole.code == 0
    expected = workplace / "whole" / "latest"
    assert read_metrics(stopped / "metrics.csv")["step"].tolist() == list(range(121))
    assert (stopped / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    weights = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (stopped, expected)]
    for name, value in weights[0]["state_dict"].items():
        assert torch.equal(value, weights[1]["state_dict"][name])


@pytest.mark.parametrize(
    ("rank", "failure", "words"),
    [
        (1, "raise ValueError('the cat sat on it')", ("Rank 1", "the cat sat on it")),
        (1, "os.kill(os.getpid(), 9)", ("Rank 1", "SIGKILL")),
        (1, "os._exit(7)", ("Rank 1", "code 7")),
    ],
    ids=["an error", "killed", "gone without a word"],
)
def test_a_rank_that_fails_ends_all_with_one_message(
    rank: int, failure: str, words: tuple[str, ...], start_process: StartProcess, workplace: Path
) -> None:
    (workplace / "failing.py").write_text(FAILING.format(rank=rank, failure=failure))
    process = start_process(*RANKS, "optimizer.hidden.name=failing:Failing")
    outcome = process.wait()
    assert outcome.code == 1, outcome
    assert_one_message(outcome, *words)


@pytest.mark.parametrize("rank", [1, 2])
def test_of_three_ranks_the_one_that_was_killed_is_named(
    rank: int, start_process: StartProcess, workplace: Path
) -> None:
    """The third rank ends because it has lost the connection, and is not to blame."""
    (workplace / "failing.py").write_text(FAILING.format(rank=rank, failure="os.kill(os.getpid(), 9)"))
    outcome = start_process(*RANKS, "trainer.devices=3", "optimizer.hidden.name=failing:Failing").wait()
    assert outcome.code == 1, outcome
    assert_one_message(outcome, f"Rank {rank} ", "SIGKILL")


def test_a_failure_of_the_first_ends_the_others(start_process: StartProcess, workplace: Path) -> None:
    (workplace / "failing.py").write_text(FAILING.format(rank=0, failure="raise ValueError('the dog, too')"))
    process = start_process(*RANKS, "optimizer.hidden.name=failing:Failing")
    process.wait_for(lambda: rows_written(workplace) > 0, seconds=300)
    started = children(process.popen.pid)
    outcome = process.wait()
    assert outcome.code == 1
    assert outcome.err.count("the dog, too") >= 1
    assert wait_until(lambda: not any(alive(pid) for pid in started))


def test_divergence_is_told_once(start_process: StartProcess) -> None:
    outcome = start_process(*RANKS, "optimizer.lr=1e30").wait()
    assert outcome.code == 3, outcome
    assert_one_message(outcome, "diverged")


def torchrun(workplace: Path, *arguments: str) -> Outcome:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(ROOT / "train.py"), *arguments],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_torchrun_runs_stores_and_refuses(workplace: Path) -> None:
    short = (*RANKS, "max_steps=5")
    first = torchrun(workplace, *short)
    assert first.code == 0, first
    assert first.out.count("11 classes, 2 ranks") == 1
    assert rows_written(workplace) == 7
    again = torchrun(workplace, *short)
    assert again.code == 0, again
    assert again.out.count("finished before") == 1
    (workplace / "outputs" / "latest" / "summary.json").unlink()
    refused = torchrun(workplace, *short)
    assert refused.code != 0
    assert refused.err.count("holds an unfinished run") == 1
    lonely = torchrun(workplace, *short, "trainer.devices=1")
    assert lonely.code != 0
    assert "set trainer.devices=2" in lonely.err


def test_slurm_runs_as_one(workplace: Path) -> None:
    """What srun leaves in the environment of two tasks on one node."""
    processes = []
    for task in range(2):
        slurm = {
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NAME": "grok",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1",
            "SLURM_NODELIST": "localhost",
            "SLURM_NODEID": "0",
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *RANKS, "max_steps=5"],
                cwd=workplace,
                env={**os.environ, **slurm},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    streams = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], streams
    assert "2 ranks" in streams[0][0]
    assert streams[1] == ("", "")
    assert rows_written(workplace) == 7
