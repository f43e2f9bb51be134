"""A sweep whose runs are trained together: what it says, and what each run leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, CommandLine


def test_a_sweep_trains_its_runs_together_and_each_has_its_files(command_line: CommandLine, workplace: Path) -> None:
    arguments = ("-m", *TINY, "callbacks=minimal", "name=sweep", "seed=0,1", "optimizer.lr=0.1,0.01,1e30")
    outcome = command_line(*arguments)
    assert outcome.code == 1, outcome
    told = outcome.out.splitlines()
    assert told[:2] == ["Sweep: 6 runs, 0 finished already, 6 to go.", "6 runs in 1 stack."]
    assert told[2].startswith("Runs 1–6 of 6: seed=0 optimizer.lr=0.1 … seed=1 optimizer.lr=1e+30 (0 of 6 done")
    # The two that diverge have left by then.
    assert [line.partition("  test")[0] for line in told if line.startswith("step ")] == [
        "step 0/3  6 runs", "step 1/3  6 runs", "step 2/3  4 runs", "step 3/3  4 runs",
    ]  # fmt: skip
    assert outcome.out.count("forward and backward") == 1
    assert told[-1] == "Sweep: 4 of 6 done, 2 failed, 0 running."
    assert outcome.out.count("Files: ") == 4
    assert len(re.findall(r"^failed: seed=[01] optimizer\.lr=1e\+30: Training diverged", outcome.err, re.M)) == 2
    states = [json.loads(path.read_text())["status"] for path in workplace.glob("outputs/sweep/*/summary.json")]
    assert sorted(states) == ["diverged"] * 2 + ["finished"] * 4
    again = command_line(*arguments)
    assert "4 finished already, 2 failed or refused, 0 to go" in again.out


@pytest.mark.parametrize("stack", ["0", "many", "-2", "1.5"])
def test_a_stack_that_is_no_number_of_runs_is_refused(stack: str, command_line: CommandLine) -> None:
    outcome = command_line(*TINY, f"stack={stack}")
    assert outcome.code == 2
    assert f"stack='{stack}' does not fit; it is auto or a number of runs, at least 1." in outcome.err


@pytest.mark.slow
def test_workers_take_stacks(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(
        "-m", *TINY, "callbacks=minimal", "name=sweep", "seed=0,1,2,3,4,5", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "6 runs in 2 stacks." in outcome.out
    assert len(list(workplace.glob("outputs/sweep/*/summary.json"))) == 6
