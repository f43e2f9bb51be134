"""Weights & Biases as a newcomer meets it: no account, no network, no questions."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import pytest
import wandb

from li2_lightning.metrics_file import read_metrics
from tests.cli.conftest import TINY, CommandLine, Outcome, StartProcess
from tests.cli.test_signals import Stop
from tests.cli.wandb_server import Fault, WandbServer

# Two transitions lie within these steps, and the slower columns are due at another step than the last.
TOLD = ("task.order=7", "network.width=128", "max_steps=85", "trainer.threads=1")
WANDB = Path(sys.executable).with_name("wandb")


def runs(directory: Path) -> list[Path]:
    return sorted((directory / "wandb").glob("*run-*"))


def inspect(run: Path) -> dict[str, Any]:
    """What `wandb leet inspect` reads back."""
    told = subprocess.run(
        [WANDB, "leet", "inspect", "--summary", "--json", run], capture_output=True, text=True, check=True
    )
    summary = json.loads(told.stdout)
    assert isinstance(summary, dict)
    return summary


def history(run: Path) -> list[dict[str, Any]]:
    """Every record of a run's history: the columns, and W&B's own count as ``_step``."""
    told = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in told.stdout.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def flattened(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def test_a_newcomer_gets_an_offline_run(start_process: StartProcess, workplace: Path, tmp_path: Path) -> None:
    """Nothing but the command: an empty home, no credentials, nobody at the keyboard."""
    (tmp_path / "empty home").mkdir()
    outcome = start_process(*TOLD, HOME=str(tmp_path / "empty home"), NETRC="").wait()
    assert outcome.code == 0, outcome
    assert "wandb" not in outcome.err
    folder = (workplace / "outputs" / "latest").resolve()
    (run,) = runs(folder)
    assert run.name.startswith("offline-run-")
    # The closing table gives the two commands, with paths that exist.
    for command, path in (("wandb leet ", folder / "wandb"), ("wandb sync ", run)):
        (line,) = [line for line in outcome.out.splitlines() if command in line]
        assert (workplace / line.split(command)[1]).resolve() == path.resolve()

    told = inspect(run)
    assert (told["exit_code"], told["state"], told["project"]) == (0, "finished", "li2_lightning")
    metrics = read_metrics(folder / "metrics.csv")
    for column in metrics.columns:
        last = metrics[column].dropna().iloc[-1]
        assert told["summary"][column] == pytest.approx(last, rel=1e-12), column
    assert told["summary"]["step"] == 85

    config = flattened(told["config"])
    expected = {"task.order": 7, "network.width": 128, "max_steps": 85, "optimizer.hidden.name": "adam", "seed": 0}
    assert {key: config[key] for key in expected} == expected
    assert {"data.train_fraction", "callbacks.stages.independence", "trainer.precision", "loss"} <= set(config)

    stages = json.loads((folder / "stages.json").read_text())
    assert stages["events"]
    for event in stages["events"]:
        logged = told["summary"][f"stage/{event['from']}_to_{event['to']}"]
        assert flattened(logged) == pytest.approx(flattened(event))
    assert told["summary"]["stage/transition"] == stages["events"][-1]["to"]
    assert told["summary"]["stage/stalled"] == stages["stalled"]
    assert told["summary"]["report"]["_type"] == "image-file"
    assert (run / "files" / told["summary"]["report"]["path"]).exists()


def test_disabled_writes_no_wandb_folder(command_line: CommandLine, workplace: Path) -> None:
    assert command_line(*TINY, "callbacks=minimal", "logger.mode=disabled").code == 0
    assert not list(workplace.rglob("wandb"))


def test_every_run_of_a_sweep_is_a_run_of_its_own(command_line: CommandLine, workplace: Path) -> None:
    """Two runs in one process."""
    outcome = command_line("-m", *TINY, "callbacks=minimal", "logger.mode=offline", "seed=0,1", "name=sweep")
    assert outcome.code == 0, outcome
    directories = sorted(path.parent for path in workplace.rglob("summary.json"))
    assert len(directories) == 2
    told = [inspect(*runs(folder)) for folder in directories]
    assert told[0]["run_id"] != told[1]["run_id"]
    # The group and the job type stand next to each other in the run's record, which the inspection leaves out: two
    # protobuf strings, each behind its tag and its length.
    records = [next(run.glob("*.wandb")).read_bytes() for folder in directories for run in [*runs(folder)]]
    found = [re.search(rb"\x0c(sweep-[0-9a-f]{6}).\x05sweep", record, re.DOTALL) for record in records]
    assert all(found)
    assert len({match.group(1) for match in found if match}) == 1, "one group a sweep"
    assert [t["tags"] for t in told] == [["cyclic", "adam"]] * 2
    assert [t["name"] for t in told] == ["sweep-s0", "sweep-s1"]
    for folder, one in zip(directories, told, strict=True):
        last = read_metrics(folder / "metrics.csv").iloc[-1]
        assert one["summary"]["train/loss"] == last["train/loss"]
        assert one["summary"]["step"] == 3
    assert not (workplace / "wandb").exists()


def test_a_notebook_may_change_its_folder_between_runs(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B keeps a service process that stays in the folder where it was started."""
    for name in ("first", "second"):
        (workplace / name).mkdir()
        monkeypatch.chdir(workplace / name)
        assert command_line(*TINY, "callbacks=minimal", "logger.mode=offline").code == 0
        (run,) = runs((workplace / name / "outputs" / "latest").resolve())
        assert len(list(run.glob("run-*.wandb"))) == 1, name


def test_a_run_that_diverged_is_marked_as_failed(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(*TINY, "callbacks=minimal", "logger.mode=offline", "optimizer.lr=1e30")
    assert outcome.code == 3
    (run,) = runs((workplace / "outputs" / "latest").resolve())
    assert inspect(run)["exit_code"] == 1


def test_name_project_group_and_tags(command_line: CommandLine, workplace: Path) -> None:
    command_line(*TINY, "callbacks=minimal", "logger.mode=offline", "logger.project=mine", "logger.tags=[a,b]")
    (run,) = runs((workplace / "outputs" / "latest").resolve())
    told = inspect(run)
    assert (told["project"], told["tags"], told["name"]) == ("mine", ["a", "b"], "cyclic-adam-s0")


def test_wandb_mode_of_the_environment_counts_for_auto(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert command_line(*TINY, "callbacks=minimal", "logger.mode=auto").code == 0
    assert not list(workplace.rglob("wandb"))


def test_a_variable_that_wandb_refuses_is_one_sentence(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "soon")
    wandb.teardown()
    outcome = command_line(*TINY, "logger.mode=offline")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "finish_timeout Input should be a valid number" in outcome.err
    assert not list(workplace.iterdir())


STOPPED = (
    *TINY, "max_steps=12", "callbacks=minimal", "callbacks.stop.name=tests.cli.test_signals:Stop",
    "callbacks.stop.hook=on_step_state", f"callbacks.stop.signum={int(signal.SIGTERM)}", "callbacks.stop.step=5",
)  # fmt: skip


def test_a_resumed_run_is_a_further_segment_of_the_same_run(command_line: CommandLine, workplace: Path) -> None:
    arguments = (*STOPPED, "logger.mode=offline")
    Stop.armed = True
    assert command_line(*arguments).code == 143
    folder = (workplace / "outputs" / "latest").resolve()
    (before,) = runs(folder)
    resumed = command_line(*arguments, "resume=auto")
    assert resumed.code == 0, resumed
    segments = [before, *(run for run in runs(folder) if run != before)]
    assert len(segments) == 2
    told = [inspect(segment) for segment in segments]
    assert told[0]["run_id"] == told[1]["run_id"]
    assert [one["exit_code"] for one in told] == [1, 0]

    # Between them the segments hold every row once, in order; the later one does not count from 0 again.
    rows = [record for segment in segments for record in history(segment) if "train/loss" in record]
    metrics = read_metrics(folder / "metrics.csv")
    assert [row["step"] for row in rows] == metrics["step"].tolist() == list(range(13))
    assert [row["train/loss"] for row in rows] == metrics["train/loss"].tolist()
    counts = [row["_step"] for row in rows]
    assert counts == sorted(set(counts))


@pytest.mark.slow
def test_a_longer_run_in_a_directory_of_its_own_is_another_run(command_line: CommandLine, workplace: Path) -> None:
    """Slow because W&B starts twice: 5 s."""
    arguments = (*TINY, "callbacks=minimal", "logger.mode=offline")
    command_line(*arguments)
    short = (workplace / "outputs" / "latest").resolve()
    assert command_line(*arguments, "max_steps=6", f"resume={short / 'checkpoints' / 'last.ckpt'}").code == 0
    longer = (workplace / "outputs" / "latest").resolve()
    assert inspect(*runs(short))["run_id"] != inspect(*runs(longer))["run_id"]


@pytest.mark.slow
def test_an_unreachable_server_is_no_reason_to_stop(start_process: StartProcess, workplace: Path) -> None:
    """Slow because W&B tries for half a minute."""
    key = "0123456789" * 4
    outcome = start_process(*TINY, "logger.mode=auto", WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9").wait()
    assert outcome.code == 0, outcome
    assert "offline" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    folder = (workplace / "outputs" / "latest").resolve()
    (run,) = [run for run in runs(folder) if run.name.startswith("offline-")]
    assert inspect(run)["summary"]["step"] == 3


class Lose(lightning.Callback):
    """A plug-in that takes the server away in the middle of the run, once it has received a part of the rows."""

    server: WandbServer
    fault: Fault

    def on_step_state(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 20:
            self.server.wait_for(lambda: len(self.server.rows) > 5)
            self.server.lose(self.fault)


ONLINE = (*TINY, "max_steps=40", "callbacks=minimal", "logger.mode=auto")
LOST = (*ONLINE, "callbacks.lose.name=tests.cli.test_wandb:Lose")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server of our own, credentials for it, and a client that sends what it has every second."""
    with WandbServer() as server:
        for name, value in {**server.environment, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        yield server
    wandb.teardown()


def assert_received(server: WandbServer, metrics: pd.DataFrame, again: int = 0) -> None:
    """Every row is there; ``again`` of them a second time, under the same count of W&B's."""
    lines = [row for _, row in sorted(server.rows.items()) if "train/loss" in row]
    rows = list({row["_step"]: row for row in lines}.values())
    assert len(lines) == len(rows) + again
    assert [row["step"] for row in rows] == metrics["step"].tolist()
    assert [row["train/loss"] for row in rows] == metrics["train/loss"].tolist()


def test_an_online_run_arrives_whole(command_line: CommandLine, workplace: Path, online: WandbServer) -> None:
    outcome = command_line(*ONLINE, "logger.group=together", "logger.tags=[a,b]")
    assert (outcome.code, outcome.err) == (0, "")
    assert "wandb sync" not in outcome.out
    assert_received(online, read_metrics(workplace / "outputs" / "latest" / "metrics.csv"))
    assert online.finished == 0
    told = {key: online.created[key] for key in ("project", "displayName", "groupName", "jobType", "tags")}
    assert told == {"project": "li2_lightning", "displayName": "cyclic-adam-s0", "groupName": "together",
                    "jobType": "train", "tags": ["a", "b"]}  # fmt: skip
    assert "wandb-summary.json" in online.files


def test_an_online_run_goes_on_as_the_same_run(command_line: CommandLine, workplace: Path, online: WandbServer) -> None:
    Stop.armed = True
    arguments = (*STOPPED, "logger.mode=online")
    assert command_line(*arguments).code == 143
    name = online.created["name"]
    resumed = command_line(*arguments, "resume=auto")
    assert (resumed.code, resumed.err) == (0, "")
    assert online.created["name"] == name
    assert_received(online, read_metrics(workplace / "outputs" / "latest" / "metrics.csv"))
    assert online.finished == 0


def assert_lost_and_synced(outcome: Outcome, workplace: Path, online: WandbServer) -> None:
    """The run is done, one line says how to send the rest, and that command does."""
    assert outcome.code == 0, outcome
    folder = (workplace / "outputs" / "latest").resolve()
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["step"].tolist() == list(range(41))
    assert 5 < len(online.rows) < 41
    (line,) = outcome.err.splitlines()
    (run,) = runs(folder)
    assert inspect(run)["summary"]["step"] == 40
    command = shlex.split(line.split("`")[1])
    assert (command[:2], (workplace / command[-1]).resolve()) == (["wandb", "sync"], run)
    name, received = online.created["name"], len(online.rows)
    with online:
        environment = {**os.environ, **online.environment}
        subprocess.run([WANDB, *command[1:]], cwd=workplace, env=environment, check=True, capture_output=True)
    assert_received(online, metrics, again=received)
    assert (online.created["name"], online.finished) == (name, 0)


def test_a_server_that_refuses_in_the_middle_of_a_run(
    command_line: CommandLine, workplace: Path, online: WandbServer
) -> None:
    """An account that was closed, a project that was deleted: W&B gives up at once, and is silent."""
    Lose.server, Lose.fault = online, "refuses"
    assert_lost_and_synced(command_line(*LOST), workplace, online)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "fails", "hangs"])
def test_a_server_that_is_lost_in_the_middle_of_a_run(
    command_line: CommandLine, workplace: Path, online: WandbServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Slow because W&B goes on trying, here for ten seconds after the end."""
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "10")
    Lose.server, Lose.fault = online, fault
    began = time.monotonic()
    assert_lost_and_synced(command_line(*LOST), workplace, online)
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.parametrize("patient", [True, False])
def test_a_process_ends_without_its_server(patient: bool, start_process: StartProcess, workplace: Path) -> None:
    """Slow because it waits as long as users do, a minute, unless they press Ctrl-C; its exit does not wait again."""
    with WandbServer() as server:
        environment = {**server.environment, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}
        if not patient:
            environment["WANDB_FINISH_TIMEOUT"] = "3600"
        process = start_process(*ONLINE, "max_steps=2000", **environment)
        process.wait_for(lambda: len(server.rows) > 5)
        server.lose("gone")
        directory = workplace / "outputs" / "latest"
        process.wait_for(lambda: "finishing run" in (directory / "wandb" / "debug.log").read_text())
        if not patient:
            time.sleep(1)
            process.send(signal.SIGINT)
        outcome = process.wait()
    assert outcome.code == 0, outcome
    assert len(outcome.err.splitlines()) == 1
    assert "wandb sync" in outcome.err
    assert "2000 steps" in outcome.out
    assert read_metrics(directory / "metrics.csv")["step"].iloc[-1] == 2000
