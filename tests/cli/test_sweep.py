"""Sweeps: one command, many directories; what fails stops none of the others, what is finished is not repeated."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import train
from li2_lightning.config.schema import Config
from li2_lightning.files import write_json
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.metrics_csv import read_metrics
from li2_lightning.sweeps.plan import key
from li2_lightning.sweeps.worker import LEADER, run_in_sweep
from tests.cli.conftest import TINY, CommandLine, Process, StartProcess
from tests.cli.test_terminal import on_a_terminal, visible, width

# One run after the other; tests/sweeps has the runs that are trained together.
FAST = (*TINY, "callbacks=minimal", "name=sweep", "stack=1")
# Runs of a second or so, that something can happen in the middle of; the last checkpoint lies close behind.
LONG = (*TINY, "callbacks=minimal", "name=sweep", "stack=1", "max_steps=400", "callbacks.checkpoint.every_n_steps=20")
TWO_AT_A_TIME = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def finished(workplace: Path) -> list[str]:
    return sorted(path.parent.name for path in workplace.glob("outputs/sweep/*/summary.json"))


def only_outputs(workplace: Path) -> bool:
    """Nothing of Hydra's own: no multirun/, no outputs/DATE, no .hydra; and nothing of the sweep's."""
    entries = [path.name for path in workplace.rglob("*")]
    tidy = not {".hydra", ".sweep", "multirun", "multirun.yaml", "train.log"} & set(entries)
    return tidy and [path.name for path in workplace.iterdir()] == ["outputs"] and sorted(
        path.name for path in (workplace / "outputs").iterdir()
    ) == ["latest", "sweep"]  # fmt: skip


@pytest.mark.parametrize("flag", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_a_directory_for_each_seed(flag: str, command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(flag, *FAST, "seed=0,1")
    assert outcome.code == 0, outcome
    names = finished(workplace)
    assert [name.rpartition("-")[2] for name in names] == ["s0", "s1"]
    assert len({name.partition("-")[0] for name in names}) == 1
    assert only_outputs(workplace)
    assert outcome.out.count("Files: ") == 2
    told = [line for line in outcome.out.splitlines() if re.match("Sweep|Run", line)]
    assert told[0] == "Sweep: 2 runs, 0 finished already, 2 to go."
    assert told[1] == "Run 1 of 2: seed=0 (0 of 2 done, 0 failed, 1 running)"
    assert re.fullmatch(r"Run 2 of 2: seed=1 \(1 of 2 done, 0 failed, 1 running, 0:00:\d\d left\)", told[2])
    assert told[3:] == ["Sweep: 2 of 2 done, 0 failed, 0 running."]


@pytest.mark.parametrize("position", [1, len(FAST), len(FAST) + 1])
def test_the_flag_may_stand_anywhere(position: int, command_line: CommandLine, workplace: Path) -> None:
    arguments = [*FAST, "seed=0,1"]
    outcome = command_line(*arguments[:position], "-m", *arguments[position:])
    assert outcome.code == 0, outcome
    assert len(finished(workplace)) == 2
    assert only_outputs(workplace)


def test_one_that_fails_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "task.order=7,0,8")
    assert outcome.code == 1
    assert len(finished(workplace)) == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert "task.order=0" in lines[0], "which run"
    assert "task.order is 0; allowed" in lines[0], "why"
    assert "Sweep: 2 of 3 done, 1 failed, 0 running." in outcome.out
    assert only_outputs(workplace)


def test_one_that_is_refused_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    """Refused before anything is built, so it is known before the first run starts."""
    outcome = command_line("-m", *FAST, "max_steps=3,0")
    assert outcome.code == 1
    assert "Sweep: 2 runs, 0 finished already, 1 failed or refused, 1 to go." in outcome.out
    assert outcome.err == "failed: max_steps=0: max_steps=0 is out of range; it must be at least 1.\n"
    assert len(finished(workplace)) == 1


def test_what_is_refused_for_every_run_is_refused_at_once(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "max_steps=0", "seed=0,1,2")
    assert outcome.code == 2
    assert outcome.err == "error: max_steps=0 is out of range; it must be at least 1.\n"
    assert list(workplace.iterdir()) == []


def test_from_python_each_of_several_reasons_to_refuse_a_run_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(train.sweep({"a": {"seed": -1}, "b": {"max_steps": 0}})) == {"a", "b"}
    error = capsys.readouterr().err
    assert "failed: a: seed=-1 is out of range" in error
    assert "failed: b: max_steps=0 is out of range" in error
    assert train.sweep({}) == {}


def test_one_that_diverges_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "optimizer.lr=1e30,1e-3")
    assert outcome.code == 1
    assert len(finished(workplace)) == 2, "a diverged run keeps its summary, too"
    assert re.search(r"optimizer\.lr=1e\+?30", outcome.err)
    assert "diverged" in outcome.err
    again = command_line("-m", *FAST, "optimizer.lr=1e30,1e-3")
    assert again.code == 1
    assert "1 finished already, 1 failed or refused, 0 to go" in again.out
    assert "force=true repeats it" in again.err


def test_a_plug_in_that_breaks_stops_none_of_the_others(command_line: CommandLine, workplace: Path) -> None:
    """An internal error of one run is shown as one, with its type, and with its traceback where that is asked for."""
    arguments = ("-m", *FAST, "optimizer.hidden.name=adam,tests.cli.test_sweep:Broken")
    outcome = command_line(*arguments)
    assert outcome.code == 1
    assert len(finished(workplace)) == 1
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Traceback" in command_line(*arguments, "debug=true").err


def test_finished_runs_are_not_repeated(command_line: CommandLine, workplace: Path) -> None:
    assert command_line("-m", *FAST, "seed=0,1").code == 0
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("summary.json")}
    outcome = command_line("-m", *FAST, "seed=0,1,2")
    assert outcome.code == 0
    assert len(finished(workplace)) == 3
    assert "Sweep: 3 runs, 2 finished already, 1 to go." in outcome.out
    assert outcome.out.count("Files: ") == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    forced = command_line("-m", *FAST, "seed=0,1,2", "force=true")
    assert "Sweep: 3 runs, 0 finished already, 3 to go." in forced.out
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in before.items())


def test_runs_that_share_a_directory_are_one(command_line: CommandLine, workplace: Path) -> None:
    """debug changes nothing of what comes out, so it does not make another run."""
    outcome = command_line("-m", *FAST, "debug=true,false")
    assert outcome.code == 0
    assert "Sweep: 1 run, 0 finished already, 1 to go." in outcome.out


def test_an_unfinished_run_continues_in_a_sweep(command_line: CommandLine, workplace: Path) -> None:
    """Alone it is refused without resume=auto: there, nobody has said that it is to go on."""
    assert command_line(*FAST, "max_steps=8", "callbacks.checkpoint.every_n_steps=2").code == 0
    (folder,) = workplace.glob("outputs/sweep/*")
    whole = (folder / "metrics.csv").read_bytes()
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "row-000008.ckpt").unlink()
    (folder / "metrics.csv").write_bytes(b"\n".join(whole.split(b"\n")[:9]) + b"\n")
    alone = command_line(*FAST, "max_steps=8", "callbacks.checkpoint.every_n_steps=2")
    assert alone.code == 2
    outcome = command_line("-m", *FAST, "max_steps=8", "callbacks.checkpoint.every_n_steps=2", "seed=0,1")
    assert outcome.code == 0, outcome
    assert (folder / "metrics.csv").read_bytes() == whole
    first = outcome.out.partition("Run 2")[0]
    assert "step 0/8" not in first, "it started over"


def test_an_experiment_brings_its_seeds(command_line: CommandLine, workplace: Path) -> None:
    """With -m the grid of the experiment file runs; the command line has the last word."""
    outcome = command_line("-m", "experiment=fig03_no_weight_decay", *FAST, "data.train_size=20", "seed=3,4")
    assert outcome.code == 0, outcome
    assert [name.rpartition("-")[2] for name in finished(workplace)] == ["s3", "s4"]


def test_a_grid_may_set_what_belongs_to_a_plug_in(command_line: CommandLine, workplace: Path) -> None:
    """Keys of roles and callbacks need no + in hydra.sweeper.params either."""
    (workplace / "mine" / "experiment").mkdir(parents=True)
    (workplace / "mine" / "experiment" / "eps.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer.hidden.eps: '1e-8,1e-6'}}}\n"
    )
    outcome = command_line("-m", "--config-dir=mine", *FAST, "experiment=eps")
    assert outcome.code == 0, outcome
    assert len(finished(workplace)) == 2


def test_an_experiment_may_have_several_grids(command_line: CommandLine, workplace: Path) -> None:
    """A run that two grids share is trained once, and the command line goes before each grid."""
    (workplace / "mine" / "experiment").mkdir(parents=True)
    (workplace / "mine" / "experiment" / "cross.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer.lr: '1e-3'}, "
        "grids: [{optimizer.lr: '1e-3,2e-3', seed: '5'}, {network.width: '4,8', seed: '5,6'}]}}\n"
    )
    outcome = command_line("-m", "--config-dir=mine", *FAST, "experiment=cross", "seed=3", "network.width=8")
    assert outcome.code == 0, outcome
    rates = [
        yaml.safe_load(path.read_text())["optimizer"]["lr"] for path in workplace.glob("outputs/*/*-s3/config.yaml")
    ]
    assert sorted(rates) == [0.001, 0.002]


def test_a_key_that_does_not_exist_runs_nothing(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line("-m", *FAST, "seed=0,1", "task.oder=3")
    assert outcome.code == 2
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("wanted", ["trainer.devices=2", "trainer.num_nodes=1,2"])
@pytest.mark.parametrize("launcher", [(), TWO_AT_A_TIME, ("hydra/launcher=submitit_local",)], ids=str)
def test_several_devices_are_no_matter_for_a_sweep(
    wanted: str, launcher: tuple[str, ...], command_line: CommandLine, workplace: Path
) -> None:
    outcome = command_line("-m", *FAST, *launcher, wanted, "seed=0,1")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "one device" in line
    assert f"{wanted.partition('=')[0]}=2" in line
    assert "without -m" in line
    assert list(workplace.iterdir()) == []


def test_a_sweep_is_not_started_on_every_rank(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = command_line("-m", *FAST, "seed=0,1")
    assert outcome.code == 2
    assert "torchrun" in outcome.err


def test_a_launcher_that_is_not_installed(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    outcome = command_line("-m", *FAST, "seed=0,1", "hydra/launcher=joblib")
    assert outcome.code == 2
    assert outcome.err == (
        "error: hydra/launcher=joblib is not installed; install it with pip install 'li2-lightning[sweep]'.\n"
    )
    assert list(workplace.iterdir()) == []


def test_an_output_directory_that_cannot_be_written(command_line: CommandLine, workplace: Path) -> None:
    (workplace / "file").touch()
    outcome = command_line("-m", *FAST, "seed=0,1", "output_dir=file")
    assert outcome.code == 2
    assert "output_dir" in outcome.err


def assert_sweep_is_whole(command_line: CommandLine, workplace: Path, *arguments: str) -> None:
    """The table of a sweep is that of one that nothing happened to."""
    whole = command_line("-m", *arguments, "output_dir=uninterrupted")
    assert whole.code == 0, whole
    pd.testing.assert_frame_equal(table(workplace / "outputs"), table(workplace / "uninterrupted"))
    for path in (workplace / "uninterrupted" / "sweep").glob("*/metrics.csv"):
        assert (workplace / "outputs" / "sweep" / path.parent.name / "metrics.csv").read_bytes() == path.read_bytes()


def table(outputs: Path) -> pd.DataFrame:
    """Config and outcome of every run; when it ran and how fast is no part of either."""
    rows: list[dict[str, Any]] = []
    for folder in sorted((outputs / "sweep").iterdir()):
        summary = json.loads((folder / "summary.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        del config["output_dir"]
        del config["logger"]["group"]  # named after the directories
        outcome = {key: summary[key] for key in ("status", "final", "first_step", "stages", "config_hash")}
        rows.append(pd.json_normalize({"run": folder.name, "config": config, "outcome": outcome}).iloc[0].to_dict())
    return pd.DataFrame(rows)


def stamps(workplace: Path) -> dict[Path, int]:
    """When each finished run wrote each of its files."""
    return {
        path: path.stat().st_mtime_ns
        for summary in workplace.glob("outputs/sweep/*/summary.json")
        for path in summary.parent.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def rows_of(workplace: Path) -> list[int]:
    """How many rows each run of the sweep has written."""
    return [path.read_text().count("\n") for path in workplace.glob("outputs/sweep/*/metrics.csv")]


def processes_in(folder: Path) -> list[int]:
    """The processes whose current folder this is: those of the sweep and everything that they have started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or (entry / "cwd").resolve() != folder:
                continue
            # A zombie only waits for its parent to look at it.
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def assert_no_process_left(workplace: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_in(workplace.resolve()):
        told = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left if Path(f"/proc/{pid}").exists()]
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def wait_for_the_middle(process: Process, workplace: Path) -> None:
    """One run is finished, two more are under way and have a checkpoint."""

    def in_the_middle() -> bool:
        kept = list(workplace.glob("outputs/sweep/*/checkpoints/last.ckpt"))
        return bool(finished(workplace)) and len(kept) >= 3

    process.wait_for(in_the_middle, seconds=300)


PARALLEL = (*LONG, "seed=0,1,2,3,4,5")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(
    start_process: StartProcess, command_line: CommandLine, workplace: Path
) -> None:
    """Slow because it starts three sweeps of six runs, two of them in processes of their own: a minute.

    kill -9 in the middle: the workers see that nobody leads them and end with their state saved; the same command
    repeats nothing that was finished, and ends with the same table, bit for bit.
    """
    process = start_process("-m", *PARALLEL, *TWO_AT_A_TIME)
    wait_for_the_middle(process, workplace)
    process.send(signal.SIGKILL)
    process.wait()
    # Not waited for: the next sweep meets a directory that is still being saved.
    again = start_process("-m", *PARALLEL, *TWO_AT_A_TIME)
    kept: dict[Path, int] = {}
    again.wait_for(lambda: "Sweep: 6 runs, " in again.out())
    already = int(re.search(r"(\d+) finished already", again.out()).group(1))  # type: ignore[union-attr]
    assert 1 <= already < 6
    outcome = again.wait()
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    assert_no_process_left(workplace)
    kept = stamps(workplace)
    assert_sweep_is_whole(command_line, workplace, *PARALLEL)
    assert len(finished(workplace)) == 6
    third = command_line("-m", *PARALLEL)
    assert "6 finished already, 0 to go" in third.out
    assert stamps(workplace) == kept


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_parallel_sweep(
    signum: int, start_process: StartProcess, command_line: CommandLine, workplace: Path
) -> None:
    """Slow because it starts three sweeps of six runs: a minute. Every run that was under way has its checkpoint."""
    process = start_process("-m", *PARALLEL, *TWO_AT_A_TIME)
    wait_for_the_middle(process, workplace)
    done = stamps(workplace)
    process.send(signum)
    outcome = process.wait()
    assert outcome.code == 128 + signum, outcome
    told = (
        f"error: {signal.Signals(signum).name} stopped the sweep; what ran is saved, and the same command continues it."
    )
    assert outcome.err.splitlines() == [told]
    assert_no_process_left(workplace, seconds=10)
    assert not (workplace / "outputs" / ".sweep").exists()
    unfinished = [
        p.parent for p in workplace.glob("outputs/sweep/*/metrics.csv") if p.parent.name not in finished(workplace)
    ]
    assert unfinished
    for folder in unfinished:
        rows = read_metrics(folder / "metrics.csv")["step"]
        assert (folder / "checkpoints" / f"row-{rows.iloc[-1]:06}.ckpt").exists(), "saved up to the last row"
    outcome = command_line("-m", *PARALLEL)
    assert outcome.code == 0, outcome
    assert {path: stamp for path, stamp in stamps(workplace).items() if path in done} == done
    assert_sweep_is_whole(command_line, workplace, *PARALLEL)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_reaches_every_process_and_saves_all_the_same(
    start_process: StartProcess, workplace: Path
) -> None:
    """Slow because it starts a sweep: 20 s. The terminal sends SIGINT to the workers, too."""
    process = start_process("-m", *PARALLEL, *TWO_AT_A_TIME)
    wait_for_the_middle(process, workplace)
    for pid in processes_in(workplace.resolve()):
        os.kill(pid, signal.SIGINT)
    outcome = process.wait()
    assert outcome.code == 130, outcome
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert_no_process_left(workplace, seconds=10)
    assert max(rows_of(workplace)) >= 20


def test_a_worker_that_is_stopped_inside_a_library_has_not_failed(tmp_path: Path) -> None:
    """OmegaConf turns every Exception that comes up in it into one of its own, whatever that was meant to say."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    write_json(folder / "settings.json", {"group": "g", "on_this_machine": False, "threads": None})
    (folder / LEADER).touch()
    config = Config(output_dir=str(tmp_path / "outputs"))

    def run(config: Config) -> RunResult:
        OmegaConf.register_new_resolver("stop", lambda: os.kill(os.getpid(), signal.SIGTERM), replace=True)
        raise AssertionError(OmegaConf.create({"here": "${stop:}"}).here)

    run_in_sweep(run, train.run_stack, lambda: config, folder)
    note = folder / f"{key(RunDirectory.of(config).path)}.json"
    assert json.loads(note.read_text())["state"] == "stopped"
    shutil.rmtree(folder)  # its watch ends


@pytest.mark.parametrize("state", ["over", "asked to stop", "left by its leader"])
def test_a_run_that_a_queue_starts_too_late_does_nothing(state: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    if state != "over":
        folder.mkdir()
        write_json(folder / "settings.json", {"group": "g", "on_this_machine": False, "threads": None})
    if state == "asked to stop":
        (folder / LEADER).write_text("stop")

    def run(config: Config) -> RunResult:
        raise AssertionError("it was run")

    run_in_sweep(run, train.run_stack, lambda: Config(output_dir=str(tmp_path / "outputs")), folder)
    assert not list(folder.glob("*.json"))[1:]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_parallel_sweep_with_a_run_that_fails(start_process: StartProcess, workplace: Path) -> None:
    """Slow because it starts a sweep: 15 s."""
    outcome = start_process("-m", *FAST, "task.order=7,0,8,9", *TWO_AT_A_TIME).wait()
    assert outcome.code == 1
    assert outcome.err == "failed: task.order=0: task.order is 0; allowed is an integer from 1 to 1024.\n"
    assert outcome.out.splitlines()[0] == "Sweep: 4 runs, 0 finished already, 4 to go, 2 at a time, 1 thread each."
    assert outcome.out.splitlines()[-1] == "Sweep: 3 of 4 done, 1 failed, 0 running."
    assert all(line.startswith("Sweep: ") for line in outcome.out.splitlines()), "a run of its own says nothing"
    assert len(finished(workplace)) == 3
    assert only_outputs(workplace)
    assert_no_process_left(workplace, seconds=10)


@pytest.mark.slow
def test_on_a_terminal_one_line_tells_of_the_whole_sweep(workplace: Path) -> None:
    """Slow because it starts a sweep: 15 s. The bars of single runs stay out of it."""
    code, text = on_a_terminal(("-m", *FAST, "seed=0,1,2", *TWO_AT_A_TIME), workplace, columns=80)
    assert code == 0, text
    lines = [visible(line).rstrip() for line in re.split(r"[\r\n]+", text)]
    assert all(width(line) <= 80 for line in lines)
    told = [line for line in lines if re.search(r"\d of 3 done, 0 failed, \d running", line)]
    assert len(told) >= 3, "it moves"
    assert told[-1] == "Sweep: 3 of 3 done, 0 failed, 0 running."
    assert not any("loss" in line for line in lines)
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") == 1, "the cursor is shown again"


@pytest.mark.slow
def test_a_process_that_dies_is_one_failed_run(start_process: StartProcess, workplace: Path) -> None:
    """Slow because it starts a sweep: 30 s. Joblib ends all its workers when one dies; the other runs go on."""
    outcome = start_process(
        "-m", *FAST, "seed=0,1,2", "optimizer.hidden.name=adam,tests.cli.test_sweep:Deadly", *TWO_AT_A_TIME
    ).wait()
    assert outcome.code == 1, outcome
    assert len(finished(workplace)) == 3
    lines = outcome.err.splitlines()
    assert len(lines) == 3, outcome.err
    assert all("Deadly" in line and "its process died: A worker process" in line for line in lines)
    assert all(line.endswith("to kill the worker; the same command tries it again.") for line in lines)


@pytest.mark.slow
def test_a_sweep_through_submitit(start_process: StartProcess, command_line: CommandLine, workplace: Path) -> None:
    """Slow because each run is a process: 60 s. The same code paths as on a cluster, without its queue."""
    arguments = (*FAST, "task.order=7,0,8")
    process = start_process("-m", *arguments, "hydra/launcher=submitit_local")
    outcome = process.wait()
    assert outcome.code == 1, outcome
    assert outcome.err == "failed: task.order=0: task.order is 0; allowed is an integer from 1 to 1024.\n"
    assert len(finished(workplace)) == 2
    assert only_outputs(workplace)
    before = stamps(workplace)
    again = command_line("-m", *FAST, "task.order=7,8", "hydra/launcher=submitit_local")
    assert again.code == 0, again
    assert "2 finished already, 0 to go" in again.out
    assert stamps(workplace) == before


@pytest.mark.slow
def test_a_signal_stops_a_sweep_through_submitit(start_process: StartProcess, workplace: Path) -> None:
    """Slow because each run is a process: 30 s. submitit's own handler lets SIGTERM pass, ours does not."""
    process = start_process("-m", *LONG, "max_steps=100000", "seed=0,1,2", "hydra/launcher=submitit_local")
    process.wait_for(lambda: sum(1 for _ in workplace.glob("outputs/sweep/*/checkpoints/last.ckpt")) >= 2, seconds=300)
    process.send(signal.SIGTERM)
    assert process.wait().code == 143
    assert_no_process_left(workplace, seconds=20)
    folders = list(workplace.glob("outputs/sweep/*"))
    assert len(folders) == 2, "the third had not begun"
    for folder in folders:
        rows = read_metrics(folder / "metrics.csv")["step"]
        assert (folder / "checkpoints" / f"row-{rows.iloc[-1]:06}.ckpt").exists()


@pytest.mark.slow
def test_as_a_process(start_process: StartProcess, workplace: Path) -> None:
    """Slow because it starts a process: 6 s."""
    outcome = start_process("-m", *FAST, "task.order=7,0").wait()
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert only_outputs(workplace)


class Broken:
    """A plug-in with a mistake in it."""

    def __init__(self, params: object, lr: float = 1.0) -> None:
        raise ZeroDivisionError


class Deadly:
    """A plug-in that takes its process with it, as the system does when memory runs out."""

    def __init__(self, params: object, lr: float = 1.0) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
