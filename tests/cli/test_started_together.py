"""Two processes, one directory: one trains; the other waits, refuses, or returns what is stored."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from li2_lightning.distributed.launcher import Followers
from li2_lightning.errors import DivergenceError, InputError, Interrupted
from li2_lightning.files import is_locked, write_json
from li2_lightning.runs import directory as run_directory
from li2_lightning.runs.directory import RunDirectory
from li2_lightning.sweeps.worker import LEADER, run_in_sweep
from tests.cli.test_run_directory import stamps

BUSY = "is being written by another process"


def config(folder: Path, **values: Any) -> dict[str, Any]:
    return {
        "task": {"order": 5},
        "network": {"width": 4},
        "max_steps": 4,
        "output_dir": str(folder),
        "logger": {"mode": "disabled"},
        "callbacks": {name: {"enabled": False} for name in ("report", "pictures", "interaction", "energy", "gram")}
        | {"checkpoint": {"every_n_steps": 2}},
        "trainer": {"accelerator": "cpu", "threads": 1},
    } | values


def directory_of(values: dict[str, Any]) -> Path:
    return RunDirectory.of(train.read_config(values)).path


def interrupted(values: dict[str, Any]) -> None:
    """Leave an unfinished run: SIGTERM comes while its first row is measured."""
    assemble = train.assemble

    def stopping(*arguments: Any) -> Any:
        parts = assemble(*arguments)
        parts[1].stop_signal = 15
        return parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "assemble", stopping)
        with pytest.raises(Interrupted):
            train.run(values)


@pytest.fixture
def before_the_lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """What another process does between the decision of this one and its lock."""

    def hook(other: Callable[[], Any]) -> None:
        lock = run_directory.lock

        def after(path: Path) -> Any:
            monkeypatch.setattr(run_directory, "lock", lock)
            other()
            return lock(path)

        monkeypatch.setattr(run_directory, "lock", after)

    return hook


@pytest.mark.parametrize(
    ("there", "ours"),
    [
        ("nothing", {}),
        ("unfinished", {"resume": "auto"}),
        ("finished", {"force": True}),
        pytest.param("nothing", {"resume": "auto"}, marks=pytest.mark.slow),
        pytest.param("nothing", {"force": True}, marks=pytest.mark.slow),
        pytest.param("unfinished", {"force": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_another_process_has_just_ended_is_returned(
    tmp_path: Path, before_the_lock: Any, there: str, ours: dict[str, Any]
) -> None:
    values = config(tmp_path)
    if there == "unfinished":
        interrupted(values)
    if there == "finished":
        train.run(values)
    seen: dict[str, int] = {}

    def other() -> None:
        train.run(values | ({"force": True} if there == "finished" else {"resume": "auto"}))
        seen.update(stamps(tmp_path))

    before_the_lock(other)
    result = train.run(values | ours)
    assert result.stored
    assert seen
    assert stamps(tmp_path) == seen


def test_several_ranks_hear_of_the_decision_under_the_lock(
    tmp_path: Path, before_the_lock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank starts the second one only when it is to train."""
    values = config(tmp_path, trainer={"accelerator": "cpu", "threads": 1, "devices": 2})
    summary = {"status": "finished", "by": "another process"}
    monkeypatch.setattr(Followers, "__init__", lambda *_: pytest.fail("a rank was started"))
    before_the_lock(lambda: write_json(directory_of(values) / "summary.json", summary))
    result = train.run(values)
    assert result.stored
    assert result.summary == summary


@pytest.mark.slow
def test_a_run_that_has_just_diverged_elsewhere_is_not_repeated(tmp_path: Path, before_the_lock: Any) -> None:
    values = config(
        tmp_path, max_steps=60, optimizer={"lr": 1e30, "hidden": {"name": "sgd"}, "output": {"name": "sgd"}}
    )
    seen: dict[str, int] = {}

    def other() -> None:
        with pytest.raises(DivergenceError):
            train.run(values)
        seen.update(stamps(tmp_path))

    before_the_lock(other)
    with pytest.raises(DivergenceError, match="force=true repeats it"):
        train.run(values)
    assert stamps(tmp_path) == seen


@pytest.mark.slow
def test_a_run_that_another_process_has_just_left_unfinished_is_refused_or_continued(
    tmp_path: Path, before_the_lock: Any
) -> None:
    values = config(tmp_path)
    before_the_lock(lambda: interrupted(values))
    with pytest.raises(InputError, match="holds an unfinished run"):
        train.run(values)
    assert (directory_of(values) / "checkpoints" / "row-000000.ckpt").exists()
    (directory_of(values) / "config.yaml").unlink()
    before_the_lock(lambda: interrupted(values | {"force": True}))
    assert not train.run(values | {"resume": "auto"}).stored


def test_while_another_process_trains_nobody_is_told_to_use_force(tmp_path: Path) -> None:
    values = config(tmp_path)
    interrupted(values)
    (directory_of(values) / "checkpoints" / "row-000000.ckpt").write_text("half")
    with run_directory.lock(directory_of(values) / ".lock"):
        for ours in ({}, {"resume": "auto"}, {"force": True}):
            with pytest.raises(InputError, match=BUSY):
                train.run(values | ours)


@pytest.mark.slow
def test_a_directory_that_was_half_emptied_is_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = config(tmp_path)
    train.run(values)
    unlink = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, **options: (unlink(self, **options), _die())[0])
        with pytest.raises(KeyboardInterrupt):
            train.run(values | {"force": True})
    with pytest.raises(InputError, match="holds an unfinished run"):
        train.run(values)
    assert not train.run(values | {"force": True}).stored


def _die() -> None:
    raise KeyboardInterrupt


# -- real processes ---------------------------------------------------------------------------------------------------


def contend(values: dict[str, Any], barrier: Any, results: Any, patient: bool, sweep: Path | None) -> None:
    """In a process of its own: run, and send what became of it and what the directory held then.

    Args:
        patient: take the lock only when the other process has ended the run.
        sweep: the folder of a sweep whose worker this is; None for a single run.
    """
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    folder = directory_of(values)
    lock = run_directory.lock

    def waiting(path: Path) -> Any:
        while patient and (is_locked(path) or not (folder / "summary.json").exists()):
            pass
        return lock(path)

    run_directory.lock = waiting  # type: ignore[attr-defined]
    barrier.wait()
    try:
        if sweep is not None:
            run_in_sweep(train.run, lambda: train.read_config(values), sweep)
            (note,) = (json.loads(path.read_text()) for path in sweep.glob("*.json") if path.name != "settings.json")
            told = note["reason"] or note["state"]
        else:
            told = "stored" if train.run(values).stored else "trained"
    except InputError as error:
        told = str(error)
    except BaseException as error:
        told = f"traceback: {error!r}"
    results.put((told, stamps(folder) if told in ("trained", "stored", "done") else None))


@pytest.mark.slow
def test_two_processes_that_start_together_fifty_times(tmp_path: Path) -> None:
    """Slow because of its hundred processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "tests.cli.test_started_together"])
    kinds: list[dict[str, Any]] = [{}, {"resume": "auto"}, {"force": True}]
    counts: dict[str, int] = {}
    for turn in range(50):
        folder = tmp_path / str(turn)
        # Every third directory holds an unfinished run before.
        kind = kinds[turn % 3]
        values = config(folder)
        if turn % 2 and kind:
            interrupted(values)
        sweep = folder / ".sweep" / "x" if turn % 5 == 4 else None
        if sweep is not None:
            sweep.mkdir(parents=True)
            (sweep / LEADER).touch()
            settings = {"group": "g", "on_this_machine": False, "threads": 1}
            (sweep / "settings.json").write_text(json.dumps(settings))
        barrier, results = context.Barrier(2), context.Queue()
        # Impatient, they meet at the lock; a patient one comes when the other has finished.
        arguments = (values | kind, False, None), (values | kind, turn % 2 == 0 and sweep is None, sweep)
        processes = [
            context.Process(target=contend, args=(own, barrier, results, patient, where))
            for own, patient, where in arguments
        ]
        for process in processes:
            process.start()
        outcomes = [results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        told = sorted(outcome for outcome, _ in outcomes)
        for outcome in told:
            assert outcome in ("trained", "stored", "done") or BUSY in outcome, (turn, told)
            name = outcome if BUSY not in outcome else "refused"
            counts[name] = counts.get(name, 0) + 1
        assert "trained" in told or "done" in told, (turn, told)
        if kind != {"force": True}:
            assert told.count("trained") <= 1, (turn, told)
            # Whatever was there when one of them had ended is there still, as it was.
            for _, files in outcomes:
                if files is not None:
                    assert files.items() <= stamps(directory_of(values)).items(), (turn, told)
        after = stamps(directory_of(values))
        assert train.run(values).stored
        assert stamps(directory_of(values)) == after
        names = {Path(name).name for name in after}
        assert {"summary.json", "metrics.csv", "config.yaml", "last.ckpt", "row-000004.ckpt"} <= names
    print("outcomes of a hundred processes:", counts)
    assert counts["trained"] >= 40
    assert counts["stored"] >= 10
    assert counts["done"] >= 5
