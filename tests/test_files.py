"""Files that are whole or absent, on file systems that lack hard links or locks; locks; names that are ours."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import train
from li2_lightning.errors import InputError
from li2_lightning.files import is_locked, link_or_copy, lock, replacing, row_files, write_yaml

TINY: dict[str, Any] = {
    "task": {"order": 5},
    "network": {"width": 4},
    "max_steps": 3,
    "logger": {"mode": "disabled"},
    "callbacks": {name: {"enabled": False} for name in ("report", "pictures", "interaction", "energy", "gram")},
    "trainer": {"accelerator": "cpu"},
}


def failing_with(number: int) -> Any:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS])
def test_without_hard_links_a_second_name_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "row").write_text("new")
    (tmp_path / "last").write_text("old")
    monkeypatch.setattr(os, "link", failing_with(number))
    link_or_copy(tmp_path / "row", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "new"
    assert not (tmp_path / "last").samefile(tmp_path / "row")
    assert {path.name for path in tmp_path.iterdir()} == {"row", "last"}


def test_with_hard_links_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "row").write_text("new")
    link_or_copy(tmp_path / "row", tmp_path / "last")
    assert (tmp_path / "last").samefile(tmp_path / "row")


def test_a_copy_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last").write_text("old")
    (tmp_path / "row").write_text("new")
    monkeypatch.setattr(os, "link", failing_with(errno.EPERM))
    monkeypatch.setattr("shutil.copyfile", failing_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        link_or_copy(tmp_path / "row", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "old"


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "table.csv"
    with pytest.raises(FileNotFoundError) as error, replacing(path) as temporary:
        temporary.write_text("x", encoding="utf-8")
    assert error.value.filename == str(path)


def test_a_run_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing_with(errno.EOPNOTSUPP))
    folder = train.run(TINY | {"output_dir": str(tmp_path)}).directory / "checkpoints"
    assert (folder / "last.ckpt").read_bytes() == (folder / "row-000003.ckpt").read_bytes()


def test_a_run_needs_no_symbolic_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "symlink", failing_with(errno.EPERM))
    assert not train.run(TINY | {"output_dir": str(tmp_path)}).stored
    assert "latest could not be pointed to" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_with(number))
    with pytest.raises(InputError, match=r"output_dir=.* cannot be written: its file system has no locks"):
        train.run(TINY | {"output_dir": str(tmp_path)})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_lock_is_not_refused_since_somebody_asked_whether_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    path.touch()
    probe = path.open()
    fcntl.flock(probe, fcntl.LOCK_SH)
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: probe.close())
        with lock(path):
            assert is_locked(path)
            with pytest.raises(BlockingIOError):
                lock(path)
    assert not is_locked(path)


def test_to_ask_whether_a_file_is_locked_neither_makes_it_nor_locks_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    assert not path.exists()
    path.touch()
    with path.open() as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        assert not is_locked(path)
    with lock(path):
        pass


def locked_by_a_process(path: Path, ready: Any) -> None:
    with lock(path):
        ready.set()
        signal.pause()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path, context = tmp_path / ".lock", multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=locked_by_a_process, args=(path, ready))
    process.start()
    try:
        assert ready.wait(60)
        assert is_locked(path)
        with pytest.raises(BlockingIOError):
            lock(path)
    finally:
        process.kill()
        process.join()
    assert not is_locked(path)
    with lock(path):
        assert is_locked(path)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_lock_is_held_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path):
        process = multiprocessing.get_context("fork").Process(target=signal.pause)
        process.start()
        assert is_locked(path)
    try:
        assert not is_locked(path)
    finally:
        process.kill()
        process.join()


def test_only_files_with_our_names_have_a_row(tmp_path: Path) -> None:
    ours = ("row-000007.ckpt", "row-000100.ckpt", "row-1000000.ckpt")
    for name in (*ours, "row-old.ckpt", "row-7.ckpt", "row-000007 copy.ckpt", "row--00001.ckpt", "row-000008.png",
                 "row-00000x.ckpt", "row-.ckpt", "my-row-000009.ckpt", ".row-000009.ckpt.1.part"):  # fmt: skip
        (tmp_path / name).touch()
    assert row_files(tmp_path, ".ckpt") == dict(zip((7, 100, 1000000), (tmp_path / name for name in ours), strict=True))
    assert row_files(tmp_path / "nowhere", ".ckpt") == {}


@pytest.mark.parametrize(
    "text",
    ["1e-3", "1E5", "12", "-.5", "nan", "off", "yes", "null", "~", "2020-01-01", "", " a", "a: b\n#c", "ü", "!x"],
)
def test_a_string_in_a_yaml_file_stays_a_string(tmp_path: Path, text: str) -> None:
    values = {"value": text, "list": [text, {text or "key": text}], "number": 1e-5}
    write_yaml(tmp_path / "file.yaml", values)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "file.yaml")) == values
