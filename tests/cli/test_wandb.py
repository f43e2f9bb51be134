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

from li2_lightning.config.checks import load_config
from li2_lightning.runs.metrics_csv import read_metrics
from li2_lightning.runs.wandb_run import TRANSITION, WandbRun
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


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Every record of this kind of a run."""
    told = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in told.stdout.splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


def history(run: Path) -> list[dict[str, Any]]:
    """Every record of a run's history: the columns, and W&B's own count as ``_step``."""
    return [record["item"] for record in records(run, "history")]


def assert_rows(records: list[dict[str, Any]], metrics: pd.DataFrame) -> None:
    """W&B has every row of metrics.csv once, in order, each at its step."""
    assert [record["_step"] for record in records] == metrics["step"].tolist()
    assert [record["step"] for record in records] == metrics["step"].tolist()
    assert [record["train/loss"] for record in records] == metrics["train/loss"].tolist()


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
    assert config["config_hash"] == folder.name.removesuffix("-s0")

    stages = json.loads((folder / "stages.json").read_text())
    assert stages["events"]
    for event in stages["events"]:
        logged = told["summary"][f"stage/{event['from']}_to_{event['to']}"]
        assert flattened(logged) == pytest.approx(flattened(event))
    assert told["summary"]["stage/transition"] == stages["events"][-1]["to"]
    assert told["summary"]["stage/stalled"] == stages["stalled"]
    table = json.loads((run / "files" / told["summary"]["stage/transitions"]["path"]).read_text())
    rows_of_table = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [{key: event[key] for key in TRANSITION} | event["evidence"] for event in stages["events"]] == [
        pytest.approx({key: value for key, value in row.items() if key in TRANSITION or value is not None})
        for row in rows_of_table
    ]
    # Nothing is sent that nobody asked for, and nothing lies outside of the run.
    assert [artifact["type"] for artifact in records(run, "artifact")] == ["run_table"]
    assert not records(run, "alert")
    assert not list((tmp_path / "empty home").rglob("staging"))
    assert told["summary"]["report"]["_type"] == "image-file"
    assert (run / "files" / told["summary"]["report"]["path"]).exists()

    # Pictures, transitions and the report are part of the row that they belong to: W&B counts as we do.
    rows = history(run)
    assert_rows(rows, metrics)
    points = {row["step"]: row["stage/transition"] for row in rows if "stage/transition" in row}
    assert points == {event["step"]: event["to"] for event in stages["events"]}
    drawn = [int(picture.stem[4:]) for picture in sorted((folder / "features").glob("row-*.png"))]
    assert len(drawn) > 2
    assert [row["step"] for row in rows if "features.path" in row] == drawn
    assert [row["step"] for row in rows if "report.path" in row] == [85]
    assert [row["step"] for row in rows if "stage/transitions.path" in row] == [85]


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


def test_a_run_that_diverged_is_marked_as_failed_with_an_alert_and_its_checkpoint_if_wanted(
    command_line: CommandLine, workplace: Path
) -> None:
    wanted = ("logger.alerts=true", "logger.artifacts=[best,features]")
    outcome = command_line(*TINY, "callbacks=minimal", "logger.mode=offline", "optimizer.lr=1e30", *wanted)
    assert outcome.code == 3
    assert "logger.artifacts=features: this run has no features." in outcome.err
    folder = (workplace / "outputs" / "latest").resolve()
    (run,) = runs(folder)
    assert inspect(run)["exit_code"] == 1
    (alert,) = records(run, "alert")
    assert alert["title"] == "Diverged"
    assert "train/loss is" in alert["text"]
    (artifact,) = records(run, "artifact")
    assert (artifact["type"], artifact["name"]) == ("checkpoint", f"best-{inspect(run)['run_id']}")
    (file,) = artifact["manifest"]["contents"]
    assert file["path"] == "best.ckpt"
    assert Path(file["local_path"]).is_relative_to(folder)
    assert Path(file["local_path"]).read_bytes() == (folder / "checkpoints" / "best.ckpt").read_bytes()


class Received:
    """A W&B run that notes what it gets."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.alerts: list[tuple[str, ...]] = []
        self.summary: dict[str, Any] = {}

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append(step)

    def alert(self, *words: str) -> None:
        self.alerts.append(words)


@pytest.mark.parametrize(
    ("wanted", "first", "texts"),
    [
        (True, 0, ["Test accuracy is 0.990 in row 2."]),
        (True, 3, []),  # The part of the run before this one sent it.
        (False, 0, []),
    ],
)
def test_the_first_row_that_generalizes_sends_one_alert(
    wanted: bool, first: int, texts: list[str], tmp_path: Path
) -> None:
    run = Received()
    rows = [{"step": float(step), "test/accuracy": value} for step, value in enumerate((0.2, 0.98, 0.99, 0.9, 1.0))]
    config = load_config({"logger": {"alerts": wanted}})
    logger = WandbRun(run, first, rows[:4], config, tmp_path)
    logger.log_metrics(rows[4], 4)
    assert run.rows == list(range(first, 5))
    assert run.alerts == [("Generalized", text, "INFO") for text in texts]


def test_a_table_that_wandb_refuses_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Online the client asks its server for each table, and raises when the server is lost."""
    run = Received()
    logger = WandbRun(run, 0, [], load_config({}), tmp_path)
    logger.log_metrics({"step": 0.0}, 0)

    def refuse(values: dict[str, Any], step: int) -> None:
        raise wandb.errors.AuthenticationError("the server is lost")

    monkeypatch.setattr(run, "log", refuse)
    event = {"from": 1, "to": 2, "step": 0, "first_step": 0, "lag": 0, "caveat": None, "evidence": {"x": 1.0}}
    logger.mark_end({"stalled": False, "events": [event]}, 0)
    assert (
        "W&B did not take the table of transitions (AuthenticationError: the server is lost)" in capsys.readouterr().err
    )
    assert run.summary == {"stage/stalled": False}


@pytest.mark.slow
def test_the_artifacts_that_were_chosen_are_logged_when_the_run_ends(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because it draws and starts W&B."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(workplace / "data"))
    chosen = ("logger.artifacts=[best,last,features]", "logger.mode=offline", "callbacks.report.enabled=false")
    assert command_line(*TINY, *chosen).code == 0
    folder = (workplace / "outputs" / "latest").resolve()
    (run,) = runs(folder)
    found = {artifact["name"].split("-")[0]: artifact for artifact in records(run, "artifact")}
    assert {name: artifact["type"] for name, artifact in found.items()} == {
        "best": "checkpoint", "last": "checkpoint", "features": "features"
    }  # fmt: skip
    assert json.loads(found["last"]["metadata"]) == {"config_hash": folder.name.removesuffix("-s0"), "seed": 0}
    files = {file["path"] for file in found["features"]["manifest"]["contents"]}
    assert files == {path.name for path in (folder / "features").iterdir()}
    assert list((workplace / "data").rglob("staging"))


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


ENVIRONMENT = {
    "WANDB_PROJECT": "its-project", "WANDB_NAME": "its-name", "WANDB_RUN_GROUP": "its-group",
    "WANDB_JOB_TYPE": "its-job", "WANDB_TAGS": "its,tags", "WANDB_RUN_ID": "its-id", "WANDB_MODE": "dryrun",
    "WANDB_ENTITY": "its-entity",
}  # fmt: skip


def test_the_environment_goes_before_our_defaults_and_the_config_before_the_environment(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, value in {**ENVIRONMENT, "WANDB_DIR": str(tmp_path / "elsewhere")}.items():
        monkeypatch.setenv(name, value)
    minimal = (*TINY, "callbacks=minimal", "logger.mode=auto")
    outcome = command_line(*minimal)
    assert (outcome.code, outcome.err) == (0, "")
    directory = workplace / "outputs" / "latest"
    (run,) = runs(directory)
    assert run.resolve().parent == (tmp_path / "elsewhere" / "wandb").resolve()
    told = inspect(run)
    assert (told["run_id"], told["project"], told["name"]) == ("its-id", "its-project", "its-name")
    assert (told["tags"], told["entity"]) == (["its", "tags"], "its-entity")
    assert_in_record(run, "its-group", "its-job")

    typed = [f"logger.{key}=my-{key}" for key in ("project", "entity", "group", "job_type")]
    command_line(*minimal, *typed, "logger.tags=[mine]", "name=mine", "seed=1")
    told = inspect(*runs(directory))
    assert (told["project"], told["entity"], told["name"]) == ("my-project", "my-entity", "mine-s1")
    assert told["tags"] == ["mine"]
    assert_in_record(*runs(directory), "my-group", "my-job_type")


def assert_in_record(run: Path, group: str, job_type: str) -> None:
    """They stand next to each other in the run's record, which the inspection leaves out: two strings of protobuf."""
    record = next(run.glob("*.wandb")).read_bytes()
    assert re.search(group.encode() + b"." + bytes([len(job_type)]) + job_type.encode(), record, re.DOTALL)


@pytest.mark.slow
def test_an_id_in_the_environment_is_not_the_id_of_every_run_of_a_sweep(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because W&B starts twice: 5 s. Group and job type of the environment hold for all runs."""
    for name in ("WANDB_RUN_ID", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    outcome = command_line("-m", *TINY, "callbacks=minimal", "logger.mode=offline", "seed=0,1")
    (line,) = outcome.err.splitlines()
    assert "WANDB_RUN_ID" in line
    found = [run for path in sorted(workplace.rglob("summary.json")) for run in runs(path.parent)]
    ids = {inspect(run)["run_id"] for run in found}
    assert len(found) == len(ids | {"its-id"}) - 1 == 2
    for run in found:
        assert_in_record(run, "its-group", "its-job")
    assert os.environ["WANDB_RUN_ID"] == "its-id"


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
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["step"].tolist() == list(range(13))
    assert_rows([record for segment in segments for record in history(segment)], metrics)
    # The closing table sends both.
    (line,) = [line for line in resumed.out.splitlines() if "wandb sync" in line]
    assert [(workplace / word).resolve() for word in line.split()[3:]] == segments


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [(*TINY, "callbacks=minimal"), (*TINY, "callbacks=minimal", "data.batch_size=5"), (*TOLD, "max_steps=60")],
    ids=["full batch", "mini-batches", "a transition"],
)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_longer_run_in_a_directory_of_its_own_is_another_run_with_every_row(
    arguments: tuple[str, ...], mode: str, command_line: CommandLine, workplace: Path, online: WandbServer
) -> None:
    """Slow because W&B starts twice: 5 s."""
    arguments = (*arguments, f"logger.mode={mode}")
    assert command_line(*arguments).code == 0
    short = (workplace / "outputs" / "latest").resolve()
    online.rows.clear()
    last = f"resume={short / 'checkpoints' / 'last.ckpt'}"
    assert command_line(*arguments, f"max_steps={90 if 'max_steps=60' in arguments else 8}", last).code == 0
    longer = (workplace / "outputs" / "latest").resolve()
    assert longer != short
    (run,) = runs(longer)
    told = inspect(run)
    assert inspect(*runs(short))["run_id"] != told["run_id"]
    metrics = read_metrics(longer / "metrics.csv")
    assert_rows(history(run), metrics)
    if mode == "online":
        assert_received(online, metrics)
    if "stage/index" in metrics:
        events = json.loads((longer / "stages.json").read_text())["events"]
        assert events[0]["step"] < 60
        assert {event["to"] for event in events} == {row["stage/transition"] for row in history(run)
                                                     if "stage/transition" in row}  # fmt: skip
        assert {f"stage/{event['from']}_to_{event['to']}" for event in events} <= set(told["summary"])


class StopHere(lightning.Callback):
    """A plug-in that sends this process the signal of one environment variable in the row of another."""

    def on_step_state(self, trainer: lightning.Trainer, *_: Any) -> None:
        if os.environ.get("STOP_AT") == str(trainer.global_step):
            os.kill(os.getpid(), int(os.environ["STOP_BY"]))


PARTS = (
    *TINY, "max_steps=1200", "callbacks=minimal", "callbacks.stop.name=tests.cli.test_wandb:StopHere", "resume=auto",
)  # fmt: skip


def send(outcome: Outcome, workplace: Path, server: WandbServer) -> None:
    """Type the command of the closing table, if it has one."""
    for line in [line for line in outcome.out.splitlines() if line.startswith("Sync:")]:
        command = shlex.split(line.removeprefix("Sync:"))
        environment = {**os.environ, **server.environment}
        sent = subprocess.run([WANDB, *command[1:]], cwd=workplace, env=environment, check=True, capture_output=True)
        assert b"ERROR" not in sent.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "modes",
    ["offline offline", "offline offline offline offline", "online offline", "online offline online offline",
     "offline disabled offline", "offline online", "disabled online", "online disabled offline"],
)  # fmt: skip
def test_one_command_sends_every_part_of_a_run(
    modes: str, command_line: CommandLine, workplace: Path, online: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because W&B starts for each part. Whatever the modes were, W&B gets 1201 of 1201 rows, each once."""
    *stopped, last = modes.split()
    monkeypatch.setenv("STOP_BY", str(int(signal.SIGINT)))
    for number, mode in enumerate(stopped):
        monkeypatch.setenv("STOP_AT", str(1000 // len(stopped) * number + 154))
        assert command_line(*PARTS, f"logger.mode={mode}").code == 130
    monkeypatch.delenv("STOP_AT")
    outcome = command_line(*PARTS, f"logger.mode={last}")
    assert (outcome.code, outcome.err) == (0, "")
    assert ("Sync:" in outcome.out) == (last == "offline")
    send(outcome, workplace, online)
    metrics = read_metrics(workplace / "outputs" / "latest" / "metrics.csv")
    assert len(metrics) == 1201
    assert_received(online, metrics)
    assert online.finished == 0
    # The same table again: there is nothing left to send.
    assert "Sync:" not in command_line(*PARTS, f"logger.mode={last}").out


@pytest.mark.slow
@pytest.mark.parametrize("modes", ["offline offline", "offline offline offline", "online offline", "online online"])
def test_a_killed_run_reaches_wandb_whole(
    modes: str, start_process: StartProcess, workplace: Path, online: WandbServer
) -> None:
    """Slow because it starts processes. A kill takes rows that W&B's client has not written yet; they come again."""
    *killed, last = modes.split()
    for number, mode in enumerate(killed):
        at = {"STOP_AT": str(300 * number + 250), "STOP_BY": str(int(signal.SIGKILL))}
        assert start_process(*PARTS, f"logger.mode={mode}", **at).wait().code == -signal.SIGKILL
    outcome = start_process(*PARTS, f"logger.mode={last}").wait()
    assert outcome.code == 0, outcome
    send(outcome, workplace, online)
    metrics = read_metrics(workplace / "outputs" / "latest" / "metrics.csv")
    assert metrics["step"].tolist() == list(range(1201))
    if modes == "online offline":
        # Nobody knows offline which rows W&B has, so that all are sent; `wandb sync` counts on from those it has.
        assert {row["step"] for row in online.rows.values()} == set(range(1201))
    else:
        assert_received(online, metrics)
        assert all(row["_step"] == row["step"] for row in online.rows.values())


AGENT = {"WANDB_SWEEP_ID": "search", "WANDB_RUN_ID": "trial"}


@pytest.mark.parametrize("callbacks", ["minimal", pytest.param("default", marks=pytest.mark.slow)])
def test_an_agent_gets_the_rows_of_a_run_that_was_finished_before(
    callbacks: str, command_line: CommandLine, workplace: Path, online: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search waits for its metric, whoever trained the configuration. Slow where a report is drawn."""
    arguments = (*TINY, f"callbacks={callbacks}")
    assert command_line(*arguments).code == 0
    for name, value in AGENT.items():
        monkeypatch.setenv(name, value)
    outcome = command_line(*arguments, "logger.mode=online")
    assert (outcome.code, outcome.err) == (0, "")
    assert "was finished before" in outcome.out
    directory = workplace / "outputs" / "latest"
    metrics = read_metrics(directory / "metrics.csv")
    assert_received(online, metrics)
    assert (online.created["name"], online.created["sweep"], online.finished) == ("trial", "search", 0)
    (run,) = runs(directory)
    summary = inspect(run)["summary"]
    assert summary["test/loss"] == metrics["test/loss"].iloc[-1]
    assert ({"stage/stalled", "report"} <= set(summary)) == (callbacks == "default")


@pytest.mark.slow
def test_an_agent_is_told_that_a_finished_run_had_diverged(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because W&B starts twice. The trial has failed, with the rows that there are; so has one trained anew."""
    arguments = (*TINY, "callbacks=minimal", "optimizer.lr=1e30", "logger.mode=offline")
    for name, value in AGENT.items():
        monkeypatch.setenv(name, value)
    assert command_line(*arguments).code == 3
    directory = (workplace / "outputs" / "latest").resolve()
    (first,) = runs(directory)
    monkeypatch.delenv("WANDB_RUN_ID")
    assert command_line(*arguments).code == 3
    (again,) = [run for run in runs(directory) if run != first]
    told = [inspect(run) for run in (first, again)]
    assert told[0]["run_id"] == "trial" != told[1]["run_id"]
    assert [one["exit_code"] for one in told] == [1, 1]
    for run in (first, again):
        rows = history(run)
        assert [row["_step"] for row in rows] == read_metrics(directory / "metrics.csv")["step"].tolist()


@pytest.mark.slow
def test_an_agent_gets_one_result_of_several_ranks(start_process: StartProcess, workplace: Path) -> None:
    """Slow because it starts processes."""
    arguments = (*TINY, "callbacks=minimal", "trainer.devices=2", "trainer.accelerator=cpu")
    assert start_process(*arguments).wait().code == 0
    outcome = start_process(*arguments, "logger.mode=offline", **AGENT).wait()
    assert outcome.code == 0, outcome
    directory = workplace / "outputs" / "latest"
    (run,) = runs(directory)
    assert inspect(run)["run_id"] == "trial"
    assert_rows(history(run), read_metrics(directory / "metrics.csv"))


@pytest.mark.slow
def test_an_agent_that_continues_a_run_gets_the_rows_before(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow because W&B starts twice. The agent's run is another W&B run than that of the first part."""
    Stop.armed = True
    assert command_line(*STOPPED, "logger.mode=offline").code == 143
    for name, value in AGENT.items():
        monkeypatch.setenv(name, value)
    assert command_line(*STOPPED, "logger.mode=offline", "resume=auto").code == 0
    directory = (workplace / "outputs" / "latest").resolve()
    (run,) = [run for run in runs(directory) if run.name.endswith("-trial")]
    assert_rows(history(run), read_metrics(directory / "metrics.csv"))


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
