"""What goes wrong around a run: a full disk, files that cannot be written or read. One sentence, nothing good lost."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch

from li2_lightning.cli.hydra_errors import one_sentence
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import TINY, CommandLine, Outcome, directory

LONG = (*TINY, "callbacks=minimal", "max_steps=60", "callbacks.checkpoint.every_n_steps=5")


def assert_sentence(outcome: Outcome, *mentions: str) -> None:
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for mention in mentions:
        assert mention in lines[0]


def whole_rows(folder: Path) -> list[int]:
    """The steps in metrics.csv, a torn last line apart."""
    lines = (folder / "metrics.csv").read_text().rpartition("\n")[0].splitlines()
    return [int(line.partition(",")[0]) for line in lines[1:]]


def assert_whole(folder: Path) -> None:
    """Every checkpoint loads, and metrics.csv has each row up to the newest of them."""
    rows = whole_rows(folder)
    assert rows == list(range(len(rows)))
    for path in (folder / "checkpoints").glob("*.ckpt"):
        assert torch.load(path, weights_only=True)["li2_lightning"]["row"] <= rows[-1], path
    assert not list(folder.rglob(".*.part"))
    assert not (folder / "summary.json").exists()


def assert_goes_on(command_line: CommandLine, workplace: Path, *arguments: str) -> None:
    """The same command with resume=auto ends as a run without the fault."""
    stopped = directory(workplace)
    resumed = command_line(*arguments, "resume=auto")
    assert resumed.code == 0, resumed
    assert command_line(*arguments, "output_dir=undisturbed").code == 0
    whole = workplace / "undisturbed" / "latest"
    assert (stopped / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; who may not mount one skips."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_stops_the_run_and_keeps_what_was_good(
    small_disk: Path, command_line: CommandLine, workplace: Path
) -> None:
    """About thirty of these checkpoints fit."""
    (workplace / "outputs").symlink_to(small_disk)
    arguments = (*LONG, "network.width=64", "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=99")
    outcome = command_line(*arguments)
    assert_sentence(outcome, "No space left on device", "resume=auto continues from", "last.ckpt")
    folder = directory(workplace)
    assert_whole(folder)
    kept = sorted((folder / "checkpoints").glob("row-*.ckpt"))
    assert len(kept) > 5

    assert_sentence(command_line(*arguments, "resume=auto"), "No space left on device")
    # As the sentence says: make room.
    for path in kept[:-1]:
        path.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert_goes_on(command_line, workplace, *arguments)


def test_a_disk_that_is_full_from_the_start(small_disk: Path, command_line: CommandLine, workplace: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filling").write_bytes(bytes(2 * 1024**2))
    assert_sentence(command_line(*LONG, f"output_dir={small_disk}"), "output_dir", "No space left on device")


@pytest.fixture
def file_limit() -> Iterator[None]:
    """No file may grow beyond 12 kB: what a quota does, without a mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_no_half(
    file_limit: None, command_line: CommandLine, workplace: Path
) -> None:
    outcome = command_line(*LONG, "network.width=256")
    assert_sentence(outcome, "File too large", "resume=auto starts over")
    folder = directory(workplace)
    assert list((folder / "checkpoints").iterdir()) == []
    assert_whole(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert_goes_on(command_line, workplace, *LONG, "network.width=256")


@pytest.mark.slow
def test_rows_that_do_not_fit(file_limit: None, command_line: CommandLine, workplace: Path) -> None:
    """metrics.csv reaches the limit at some row, in the middle of a line. Slow because of three runs: 3 s."""
    arguments = (*LONG, "max_steps=300", "callbacks.checkpoint.enabled=false")
    assert_sentence(command_line(*arguments), "File too large")
    assert_whole(directory(workplace))
    assert 20 < len(whole_rows(directory(workplace))) < 300
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert_goes_on(command_line, workplace, *arguments)


def test_a_directory_that_goes_away(command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(*LONG, "callbacks.away.name=tests.cli.test_faults:Away")
    assert_sentence(outcome, "cannot be written any more: No such file or directory")


class Away(lightning.Callback):
    """A plug-in that removes the run directory in row 7."""

    def on_step_state(self, trainer: lightning.Trainer, module: object, state: object) -> None:
        if trainer.global_step == 7:
            shutil.rmtree(trainer.default_root_dir)


@pytest.mark.parametrize("path", ["/proc/li2", "/sys/li2"])
def test_an_output_dir_that_nobody_may_write(path: str, command_line: CommandLine, workplace: Path) -> None:
    """Not even root."""
    assert_sentence(command_line(*TINY, f"output_dir={path}"), "output_dir", "cannot be written")
    assert list(workplace.iterdir()) == []


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Path]:
    """A finished run of four rows on a file system that is read-only afterwards: file modes do not stop root."""
    yield small_disk
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


def test_a_read_only_checkpoint_can_be_continued(read_only: Path, command_line: CommandLine, workplace: Path) -> None:
    short = (*TINY, "callbacks=minimal")
    assert command_line(*short, f"output_dir={read_only}").code == 0
    checkpoint = (read_only / "latest" / "checkpoints" / "last.ckpt").resolve()
    checkpoint.chmod(0o444)
    subprocess.run(["mount", "-o", "remount,ro", read_only], check=True)
    outcome = command_line(*short, "max_steps=9", f"resume={checkpoint}")
    assert outcome.code == 0, outcome
    assert read_metrics(directory(workplace) / "metrics.csv")["step"].tolist() == list(range(10))


@pytest.mark.slow
def test_a_read_only_run_cannot_be_continued_in_place(
    read_only: Path, command_line: CommandLine, workplace: Path
) -> None:
    """Slow because it mounts a file system twice: 2 s."""
    assert command_line(*LONG, f"output_dir={read_only}").code == 0
    folder = (read_only / "latest").resolve()
    (folder / "summary.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", read_only], check=True)
    outcome = command_line(*LONG, f"output_dir={read_only}", "resume=auto")
    assert_sentence(outcome, "output_dir", "Read-only file system")


@pytest.mark.slow
def test_a_truncated_checkpoint_names_the_one_before(command_line: CommandLine, workplace: Path) -> None:
    """Slow because of several runs: 3 s."""
    assert command_line(*LONG).code == 0
    folder = directory(workplace)
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "row-000055.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert_sentence(command_line(*LONG, "resume=auto"), str(newest.name), "damaged", "continue from row 50")
    newest.unlink()
    assert_goes_on(command_line, workplace, *LONG)
    for path in (folder / "checkpoints").glob("row-*.ckpt"):
        path.unlink()
    (folder / "summary.json").unlink()
    newest.write_text("nothing")
    assert_sentence(command_line(*LONG, "resume=auto"), "start at row 0")


@pytest.mark.slow
def test_rows_that_are_no_rows(command_line: CommandLine, workplace: Path) -> None:
    """Slow because of several runs: 3 s."""
    assert command_line(*LONG).code == 0
    folder = directory(workplace)
    (folder / "summary.json").unlink()
    (folder / "metrics.csv").write_text("step,train/loss\nfive,6\nx,y\n")
    assert_sentence(command_line(*LONG, "resume=auto"), "metrics.csv", "force=true")
    (folder / "metrics.csv").write_bytes(b"\xff\xfe\n\x00\n")
    assert_sentence(command_line(*LONG, "resume=auto"), "metrics.csv", "force=true")


def test_what_a_killed_process_was_writing_is_cleared_away(command_line: CommandLine, workplace: Path) -> None:
    assert command_line(*LONG).code == 0
    folder = directory(workplace)
    (folder / "summary.json").unlink()
    part = folder / "checkpoints" / ".row-000060.ckpt.1234.part"
    part.write_bytes(b"half")
    assert command_line(*LONG, "resume=auto").code == 0
    assert not part.exists()
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_a_full_memory_is_one_sentence() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    for full in (error.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        assert one_sentence(full).startswith("The memory is too small for this run; lower network.width")
    assert one_sentence(RuntimeError("another")) == "Internal error: RuntimeError: another"
