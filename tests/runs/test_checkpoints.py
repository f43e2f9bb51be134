"""Checkpoints hold what is read again, and a file says what is wrong with it."""

from __future__ import annotations

import enum
import io
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import Parameter

import train
from li2_lightning.errors import DamagedError, InputError
from li2_lightning.runs.checkpoints import CONTAINERS, VALUES, check_plain, find_foreign, read_checkpoint
from li2_lightning.runs.load import load_run


class Level(enum.IntEnum):
    ONE = 1


Pair = namedtuple("Pair", "a b")

PLAIN = [
    None, True, 2**70, 1.5, 1j, "a", b"a", torch.zeros(2), Parameter(torch.zeros(2)), torch.Size([1]), torch.float64,
    torch.device("cpu"), {"a": 1}, OrderedDict(a=1), [1], (1,), {1},
]  # fmt: skip
FOREIGN = [
    Level.ONE, np.float64(1), np.float32(1), np.int64(1), np.bool_(True), np.zeros(1), len, lambda: 0, object(),
    defaultdict(list), deque([1]), Pair(1, 2), frozenset([1]), Path("a"), Counter("a"), OmegaConf.create({"a": 1}),
]  # fmt: skip


def test_every_plain_type_comes_back_from_a_file_as_it_was() -> None:
    assert [type(value) for value in PLAIN] == [*VALUES, *CONTAINERS]
    for value in PLAIN:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        restored = torch.load(file, weights_only=True)
        assert type(restored) is type(value)
        assert torch.equal(restored, value) if isinstance(value, torch.Tensor) else restored == value
        assert find_foreign(value) is None


@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: type(value).__name__)
def test_every_other_type_is_found_where_it_stands(value: Any) -> None:
    assert find_foreign(value) == ((), value)
    path, found = find_foreign({"a": [0, ({"b": value},)]}) or ((), None)
    assert path == ("a", "1", "0", "b")
    assert found is value
    if value.__hash__ is not None and not isinstance(value, np.ndarray):
        assert find_foreign({"a": {value: 1}}) == (("a", str(value)), value)


@pytest.mark.parametrize(
    ("section", "state", "who"),
    [
        ("callbacks", {"Mine": {"x": [np.float64(1)]}}, r"The state of callback Mine holds a numpy\.float64 at x\.0,"),
        ("lr_schedulers", [{"mode": Level.ONE}], r"The state of scheduler 0 holds a \S*Level at mode,"),
        ("optimizer_states", [{"f": len}], r"The state of optimizer 0 holds a \S*builtin_function_or_method at f,"),
        ("callbacks", {"Mine": Path("a")}, r"The state of callback Mine holds a \S*Path, and"),
        ("mine", {"when": object()}, r"The checkpoint's mine holds a builtins\.object at when,"),
    ],
)  # fmt: skip
def test_the_sentence_names_whose_state_it_is(section: str, state: Any, who: str) -> None:
    check_plain({"epoch": 0, section: "plain"})
    with pytest.raises(InputError, match=rf"^{who}.* holds only tensors, .*[^.]\.$"):
        check_plain({"epoch": 0, section: state})


class Keeping(lightning.Callback):
    """A callback of somebody else's, whose state is plain until a row."""

    def __init__(self, value: Any, since: int) -> None:
        self.value, self.since, self.row = value, since, -1

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        self.row = state.step

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {"value": self.value if self.row >= self.since else 0}}


@pytest.mark.parametrize(("value", "since"), [(np.float64(1), 6), (Level.ONE, 0), (len, 6)])
def test_a_callback_whose_state_could_not_be_read_is_refused_before_it_is_written(
    tiny_run: Any, make_record: Any, value: Any, since: int
) -> None:
    run = make_record()
    message = r"^The state of callback Keeping holds a \S+ at seen\.value, and .*[^.]\.$"
    every = "callbacks.checkpoint={every_n_steps: 2, best: false, transitions: false, keep: 9}"
    with pytest.raises(InputError, match=message):
        tiny_run("max_steps=8", every, into=run, callbacks=[Keeping(value, since)])
    kept = {path.name for path in (run.directory / "checkpoints").glob("row-*")}
    assert kept == ({"row-000002.ckpt", "row-000004.ckpt", "row-000004.window"} if since else set())
    for path in (run.directory / "checkpoints").glob("row-*.ckpt"):
        read_checkpoint(path, path.name)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a run of six steps, unfinished, with checkpoints of rows 2 and 4."""
    off = {name: {"enabled": False} for name in ("report", "pictures", "features", "interaction", "progress")}
    config = {
        "task": {"order": 5},
        "network": {"width": 4},
        "max_steps": 6,
        "output_dir": str(tmp_path_factory.mktemp("run")),
        "callbacks": {**off, "checkpoint": {"every_n_steps": 2}},
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1, "accelerator": "cpu"},
    }
    return config | {"directory": train.run(config).directory}


def unfinished(saved: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    config = dict(saved)
    directory: Path = config.pop("directory")
    (directory / "summary.json").unlink(missing_ok=True)
    return config | {"resume": "auto"}, directory / "checkpoints" / "row-000004.ckpt"


WHOLE = {
    "an enum": lambda checkpoint: checkpoint | {"extra": Level.ONE},
    "a NumPy number": lambda checkpoint: checkpoint | {"extra": np.float64(1)},
    "a function": lambda checkpoint: checkpoint | {"extra": len},
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_whole_file_that_cannot_be_loaded_safely_is_not_called_damaged_and_nobody_is_told_to_remove_it(
    saved: dict[str, Any], what: str
) -> None:
    config, path = unfinished(saved)
    before = path.read_bytes()
    try:
        torch.save(WHOLE[what](torch.load(path, weights_only=True)), path)
        with pytest.raises(InputError, match=r"is whole, but holds \S.*, which cannot be loaded safely\.$") as caught:
            load_run(path.parent.parent).weights("row-000004")
        sentences = [str(caught.value)]
        for resume, remedy in (("auto", "continue from another one with resume=PATH, or"), (str(path), "")):
            with pytest.raises(InputError, match=rf"is whole, but holds .*{remedy}") as caught:
                train.run(config | {"resume": resume})
            sentences.append(str(caught.value))
        assert not any("remove" in sentence or "damaged" in sentence for sentence in sentences)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_called_so_and_may_be_removed(saved: dict[str, Any], how: str) -> None:
    config, path = unfinished(saved)
    before = path.read_bytes()
    middle = len(before) // 2
    damaged = {
        "truncated": before[:-100],
        "altered": before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :],
        "empty": b"",
    }
    try:
        path.write_bytes(damaged[how])
        with pytest.raises(DamagedError, match="is damaged"):
            read_checkpoint(path, str(path))
        with pytest.raises(InputError, match=r"is damaged .*; remove it, and resume=auto will continue from row 2\.$"):
            train.run(config)
    finally:
        path.write_bytes(before)


def test_an_archive_of_another_kind_is_no_checkpoint_and_not_damaged(saved: dict[str, Any]) -> None:
    config, path = unfinished(saved)
    before = path.read_bytes()
    try:
        with path.open("wb") as stream:
            np.savez(stream, W=np.zeros(2))
        with pytest.raises(
            InputError, match=r"is no checkpoint .*; continue from another one with resume=PATH"
        ) as caught:
            train.run(config)
        assert not isinstance(caught.value, DamagedError)
        assert "remove" not in str(caught.value)
    finally:
        path.write_bytes(before)
