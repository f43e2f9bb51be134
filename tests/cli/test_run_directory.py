"""What a run leaves behind, and what a second call does with it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from omegaconf import OmegaConf
from pandas.api.types import is_numeric_dtype

import train
from li2_lightning.config.checks import load_config
from li2_lightning.config.identity import config_hash
from li2_lightning.errors import InputError
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import TINY, CommandLine, directory

FAST = (*TINY, "callbacks=minimal")


def stamps(folder: Path) -> dict[str, int]:
    """When each file was last written, but for the lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_contents(command_line: CommandLine, workplace: Path) -> None:
    """One run with everything on, long enough for the first transition."""
    outcome = command_line("task.order=7", "network.width=128", "max_steps=80", *TINY[3:])
    assert outcome.code == 0, outcome
    folder = directory(workplace)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.yaml", "features", "metrics.csv", "report.png", "stages.json", "summary.json"
    ]  # fmt: skip

    config = load_config(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    assert folder.name == f"{config_hash(config)}-s0"
    assert folder.parent.name == "cyclic-adam"
    assert os.readlink(workplace / "outputs" / "latest") == f"cyclic-adam/{folder.name}"

    metrics = read_metrics(folder / "metrics.csv")
    assert metrics.columns[0] == "step"
    assert metrics["step"].tolist() == list(range(81))
    assert all(is_numeric_dtype(dtype) for dtype in metrics.dtypes)

    stages = json.loads((folder / "stages.json").read_text())
    assert set(stages) == {"schema_version", "stalled", "events"}
    assert stages["stalled"] is False
    event = stages["events"][0]
    assert set(event) == {"from", "to", "step", "first_step", "lag", "evidence", "caveat"}
    assert (event["from"], event["to"], event["lag"]) == (1, 2, event["step"] - event["first_step"])
    row = metrics.set_index("step").loc[event["step"]]
    assert {"train/accuracy", "gradient/independence", "gradient/coupling"} <= set(event["evidence"])
    for column, value in event["evidence"].items():
        assert column not in metrics or row[column] == value
    assert (metrics["stage/index"] == np.where(metrics["step"] < event["step"], 1, 2)).all()

    summary = json.loads((folder / "summary.json").read_text())
    assert {"schema_version", "status", "final", "first_step", "stages", "wall_time_s", "seconds", "steps_per_second",
            "config_hash", "versions"} == set(summary)  # fmt: skip
    assert summary["status"] == "finished"
    assert summary["final"] == {name: v for name, v in metrics.iloc[-1].items() if v == v}
    assert summary["stages"] == stages
    assert summary["config_hash"] == config_hash(config)
    for split in ("train", "test"):
        for level, step in summary["first_step"][split].items():
            reached = metrics.loc[metrics[f"{split}/accuracy"] >= float(level), "step"]
            assert step == (None if reached.empty else reached.iloc[0])
    assert set(summary["first_step"]["train"]) == {"0.5", "0.9", "0.99"}

    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["li2_lightning"]["row"] == 80
    # Each weight once, under a name that does not depend on trainer.compile.
    assert set(checkpoint["state_dict"]) == {"network.W", "network.V"}

    picture = imread(folder / "report.png")
    height, width = picture.shape[:2]
    assert 700 <= height <= 2000
    assert 1000 <= width <= 3000
    assert picture[..., :3].std() > 0.02, "an empty picture"


def test_a_finished_run_is_not_repeated(command_line: CommandLine, workplace: Path) -> None:
    first = command_line(*FAST)
    before = stamps(workplace)
    again = command_line(*FAST)
    assert (first.code, again.code) == (0, 0)
    assert stamps(workplace) == before
    assert "force=true" in again.out
    # The closing table is shown again, after the note.
    assert again.out.splitlines()[1:] == first.out.splitlines()[-len(again.out.splitlines()) + 1 :]


def test_from_python_the_stored_result_is_returned(workplace: Path) -> None:
    values: dict[str, Any] = {
        "task": {"order": 7}, "network": {"width": 8}, "max_steps": 3, "logger": {"mode": "disabled"},
        "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
    }  # fmt: skip
    first, second = train.run(values), train.run(values)
    assert (first.stored, second.stored) == (False, True)
    assert first.summary == second.summary
    assert first.directory == second.directory
    assert train.run(values | {"force": True}).stored is False


def test_force_starts_over(command_line: CommandLine, workplace: Path) -> None:
    command_line(*FAST)
    folder = directory(workplace)
    (folder / "left over").write_text("from an older version")
    rows = (folder / "metrics.csv").read_text()
    before = stamps(folder)
    assert command_line(*FAST, "force=true").code == 0
    assert not (folder / "left over").exists()
    assert (folder / "metrics.csv").read_text() == rows
    assert stamps(folder)[str(folder / "summary.json")] != before[str(folder / "summary.json")]


def unfinish(folder: Path) -> None:
    """As a process that was killed leaves it."""
    for name in ("summary.json", "report.png", "stages.json"):
        (folder / name).unlink(missing_ok=True)


def test_an_unfinished_run_is_refused_or_resumed(command_line: CommandLine, workplace: Path) -> None:
    arguments = (*FAST, "max_steps=7", "callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep=9")
    command_line(*arguments)
    folder = directory(workplace)
    rows, end = (folder / "metrics.csv").read_text(), (folder / "checkpoints" / "last.ckpt").read_bytes()
    unfinish(folder)
    (folder / "checkpoints" / "row-000007.ckpt").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    os.link(folder / "checkpoints" / "row-000004.ckpt", folder / "checkpoints" / "last.ckpt")
    before = stamps(workplace)

    refused = command_line(*arguments)
    assert refused.code == 2
    assert "resume=auto" in refused.err
    assert "force=true" in refused.err
    assert stamps(workplace) == before

    resumed = command_line(*arguments, "resume=auto")
    assert resumed.code == 0, resumed
    assert "step 4/7" not in resumed.out
    assert "step 7/7" in resumed.out
    assert (folder / "metrics.csv").read_text() == rows
    assert weights(end) == weights((folder / "checkpoints" / "last.ckpt").read_bytes())


def test_an_unfinished_run_without_checkpoint_starts_over_with_resume(
    command_line: CommandLine, workplace: Path
) -> None:
    command_line(*FAST)
    folder = directory(workplace)
    rows = (folder / "metrics.csv").read_text()
    unfinish(folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.unlink()
    assert command_line(*FAST, "resume=auto").code == 0
    assert (folder / "metrics.csv").read_text() == rows


def test_resume_auto_on_a_new_directory_starts(command_line: CommandLine, workplace: Path) -> None:
    assert command_line(*FAST, "resume=auto").code == 0
    assert read_metrics(directory(workplace) / "metrics.csv")["step"].tolist() == [0, 1, 2, 3]


def test_a_torn_last_line_is_cut(command_line: CommandLine, workplace: Path) -> None:
    arguments = (*FAST, "max_steps=6", "callbacks.checkpoint.every_n_steps=2")
    command_line(*arguments)
    folder = directory(workplace)
    rows = (folder / "metrics.csv").read_text()
    unfinish(folder)
    (folder / "checkpoints" / "last.ckpt").unlink()
    os.link(folder / "checkpoints" / "row-000004.ckpt", folder / "checkpoints" / "last.ckpt")
    (folder / "metrics.csv").write_text(rows[:-30])
    assert command_line(*arguments, "resume=auto").code == 0
    assert (folder / "metrics.csv").read_text() == rows


def test_more_steps_from_an_older_checkpoint(command_line: CommandLine, workplace: Path) -> None:
    """The longer run goes on exactly as an uninterrupted one."""
    command_line(*FAST, "max_steps=4")
    short = directory(workplace)
    longer = command_line(*FAST, "max_steps=9", f"resume={short / 'checkpoints' / 'last.ckpt'}", "name=longer")
    assert longer.code == 0, longer
    continued = directory(workplace)
    command_line(*FAST, "max_steps=9", "name=whole")
    whole = directory(workplace)
    rows, expected = (read_metrics(folder / "metrics.csv") for folder in (continued, whole))
    after = rows[rows["step"] > 4].reset_index(drop=True)
    assert after.equals(expected[expected["step"] > 4].reset_index(drop=True))
    ends = [weights((folder / "checkpoints" / "last.ckpt").read_bytes()) for folder in (continued, whole)]
    assert ends[0] == ends[1]


def test_a_longer_run_still_has_all_its_rows(command_line: CommandLine, workplace: Path) -> None:
    command_line(*FAST, "max_steps=4")
    checkpoint = directory(workplace) / "checkpoints" / "last.ckpt"
    command_line(*FAST, "max_steps=9", f"resume={checkpoint}")
    assert read_metrics(directory(workplace) / "metrics.csv")["step"].tolist() == list(range(10))


def test_a_run_killed_while_its_report_was_drawn_can_be_finished(command_line: CommandLine, workplace: Path) -> None:
    """Between the last checkpoint and summary.json there is a second or so."""
    command_line(*FAST, "callbacks.checkpoint.every_n_steps=2")
    folder = directory(workplace)
    rows = (folder / "metrics.csv").read_text()
    unfinish(folder)
    outcome = command_line(*FAST, "callbacks.checkpoint.every_n_steps=2", "resume=auto")
    assert outcome.code == 0, outcome
    assert (folder / "metrics.csv").read_text() == rows
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_two_processes_cannot_write_one_directory(command_line: CommandLine, workplace: Path) -> None:
    command_line(*FAST)
    folder = directory(workplace)
    unfinish(folder)
    (folder / "checkpoints" / "last.ckpt").unlink()
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "locked\n"
        before = stamps(workplace)
        for more in ("resume=auto", "force=true"):
            refused = command_line(*FAST, more)
            assert refused.code == 2
            assert "another process" in refused.err
            assert len(refused.err.splitlines()) == 1
        assert stamps(workplace) == before
        holder.stdin.close()
    assert command_line(*FAST, "resume=auto").code == 0


@pytest.mark.parametrize("path", ["a file/below", "a file"])
def test_an_output_dir_that_cannot_be_is_refused(path: str, command_line: CommandLine, workplace: Path) -> None:
    (workplace / "a file").write_text("")
    outcome = command_line(*FAST, f"output_dir='{path}'")
    assert outcome.code == 2
    assert "output_dir" in outcome.err
    assert [entry.name for entry in workplace.iterdir()] == ["a file"]


def test_a_damaged_summary_is_refused(command_line: CommandLine, workplace: Path) -> None:
    command_line(*FAST)
    for text in ("{", "[]", "{}"):
        (directory(workplace) / "summary.json").write_text(text)
        outcome = command_line(*FAST)
        assert outcome.code == 2, outcome
        assert "summary.json" in outcome.err
        assert "force=true" in outcome.err
    assert command_line(*FAST, "force=true").code == 0


def test_the_hash_covers_what_changes_the_result(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=np.arange(20), test=np.arange(20, 49))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    np.savez(tmp_path / "c.npz", train=np.arange(21), test=np.arange(21, 49))

    def digest(**values: Any) -> str:
        return config_hash(load_config({"task": {"order": 7}} | values))

    same: list[dict[str, Any]] = [
        {"seed": 1}, {"output_dir": "x"}, {"name": "x"}, {"logger": {"mode": "offline", "tags": ["x"]}},
        {"resume": "auto"}, {"force": True}, {"debug": True},
    ]  # fmt: skip
    other: list[dict[str, Any]] = [
        {"max_steps": 9}, {"loss": "cross_entropy"}, {"task": {"order": 8}}, {"data": {"train_size": 9}},
        {"network": {"width": 9}}, {"optimizer": {"lr": 9.0}}, {"optimizer": {"hidden": {"name": "sgd"}}},
        {"scheduler": {"name": "cosine"}}, {"stop_at_test_accuracy": 0.5}, {"trainer": {"precision": "64-true"}},
    ]  # fmt: skip
    assert {digest(**values) for values in same} == {digest()}
    assert len({digest(), *(digest(**values) for values in other)}) == 1 + len(other)
    by_file = [digest(data={"split_file": str(tmp_path / name)}) for name in ("a.npz", "b.npz", "c.npz")]
    assert by_file[0] == by_file[1], "a moved file is the same input"
    assert by_file[0] != by_file[2], "an edited file is another input"


def test_equal_settings_share_a_directory_however_they_were_given(command_line: CommandLine, workplace: Path) -> None:
    """The command line composes every default of the callbacks; a notebook names what differs."""
    assert command_line(*TINY, "callbacks.report.enabled=false", "callbacks.pictures.enabled=false").code == 0
    again = train.run(
        {
            "task": {"order": 7},
            "network": {"width": 8},
            "max_steps": 3,
            "logger": {"mode": "offline"},
            "trainer": {"threads": 1},
            "callbacks": {
                "report": {"enabled": False}, "pictures": {"enabled": False}, "energy": {"every_n_steps": 1}
            },
        }
    )  # fmt: skip
    assert again.stored
    assert again.directory.resolve() == directory(workplace)


def test_an_option_of_a_named_variation_can_be_taken_out(command_line: CommandLine, workplace: Path) -> None:
    chosen = ("scheduler=step", "~scheduler.gamma")
    assert command_line(*FAST, *chosen).code == 0
    config = OmegaConf.load(directory(workplace) / "config.yaml")
    assert OmegaConf.select(config, chosen[1].removeprefix("~")) is None


def test_an_edited_input_file_makes_another_run(command_line: CommandLine, workplace: Path) -> None:
    np.savez(workplace / "split.npz", train=np.arange(20), test=np.arange(20, 49))
    command_line(*FAST, "data.split_file=split.npz")
    first = directory(workplace)
    np.savez(workplace / "split.npz", train=np.arange(25), test=np.arange(25, 49))
    outcome = command_line(*FAST, "data.split_file=split.npz")
    assert outcome.code == 0
    assert "25 training" in outcome.out
    assert directory(workplace) != first


def test_a_run_that_cannot_go_on_leaves_nothing(workplace: Path) -> None:
    """What only shows when everything is put together is found before the directory is made."""
    values = {"task": {"order": 7}, "optimizer": {"hidden": {"name": "adam", "betas": [2, 3]}}}
    with pytest.raises(ValueError, match=r"betas?"):
        train.run(values)
    with pytest.raises(InputError):
        train.run({"task": {"order": 7}, "data": {"train_size": 500}})
    assert list(workplace.iterdir()) == []


def weights(checkpoint: bytes) -> dict[str, bytes]:
    """The network's parameters, bit for bit."""
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)["state_dict"]
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}
