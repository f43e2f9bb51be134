"""Files that are written whole or not at all, locks on files, and reading the user's files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from li2_lightning.errors import InputError

# The errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Seconds for which a lock is tried, because `is_locked` of another process holds it for a few microseconds.
WAIT_S = 0.1


def lock(path: Path) -> AcquireReturnProxy[FileLock]:
    """Lock a file for this process, until the block that uses the lock ends or the process dies.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    try:
        return FileLock(path, timeout=WAIT_S, poll_interval=WAIT_S / 10, fallback_to_soft=False).acquire()
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            reason = "its file system has no locks (flock), which keep two processes apart"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def is_locked(path: Path) -> bool:
    """Whether a process has locked a file; a file that does not exist is not locked."""
    try:
        with path.open() as file:
            # A shared lock, which filelock lacks: two processes that ask at the same time do not exclude each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        # The file is locked, or its file system has no locks.
        return True
    return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces ``path`` when the block ends, and is removed when the block raises.

    An error of the file system about the temporary path names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, atomically; a copy where the file system has no hard links."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            # An error of the disk is raised again by the copy.
            shutil.copyfile(source, temporary)


def row_files(folder: Path, suffix: str) -> dict[int, Path]:
    """The files ``row-NNNNNN<suffix>`` of a folder by their row, lowest first; other names are left out."""
    name = re.compile(rf"row-(\d{{6,}}){re.escape(suffix)}")
    found = ((name.fullmatch(path.name), path) for path in folder.glob(f"row-*{suffix}"))
    return dict(sorted((int(match[1]), path) for match, path in found if match is not None))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is an error because JSON cannot hold it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes the strings that OmegaConf would read as numbers; to YAML 1.1, and so to PyYAML, 1e-3 is a string."""


def _write_string(dumper: _Dumper, value: str) -> yaml.Node:
    try:
        float(value)
        style = "'"
    except ValueError:
        style = None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)
    return node


_Dumper.add_representer(str, _write_string)


def write_yaml(path: Path, value: Any) -> None:
    """Write plain containers as YAML, atomically, so that OmegaConf reads the same values.

    OmegaConf writes the same text in ten times the time, which a sweep of small runs notices.
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_input(path: str, key: str) -> bytes:
    """The bytes of the file that ``key`` of the config names; `InputError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{key}={path!r} cannot be read: {error.strerror or error}.") from error


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file; nothing is unpickled; errors as for `read_npz`."""
    with _opened(path) as array:
        if not isinstance(array, np.ndarray):
            raise ValueError("it must hold one array")
        return array


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of an ``.npz`` file, or all; nothing is unpickled.

    Raises:
        ValueError: another kind of file, a damaged one, or a missing array.
        OSError: the file cannot be opened.
    """
    with _opened(path) as arrays:
        if isinstance(arrays, np.ndarray):
            raise ValueError("it holds a single array without a name")
        missing = [name for name in names or () if name not in arrays]
        if missing:
            raise ValueError(f"it has no array called {missing[0]!r}, only {sorted(arrays.files)}")
        return {name: arrays[name] for name in names or arrays.files}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What `np.load` finds in a file, with one kind of error for files that it cannot read."""
    try:
        # np.load would leave open a broken file that it had opened itself.
        with path.open("rb") as file:
            try:
                found = np.load(file, allow_pickle=False)
            except ValueError as error:
                # To NumPy every other file is a pickle, and its message advises to unpickle it, which would run code.
                raise ValueError("it is another kind of file, or one of pickled objects") from error
            yield found
    # NumPy raises errors of many types over a broken file.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error) as error:
        raise ValueError(f"it is damaged ({error})") from error
