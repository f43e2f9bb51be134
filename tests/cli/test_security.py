"""Files are data, names stay where they belong, and nobody's secrets are written down."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import TINY, CommandLine, StartProcess

FAST = (*TINY, "callbacks=minimal")
KEY = "0123456789abcdef" * 2 + "deadbeef"
TOKEN = "token-of-a-git-remote"
VARIABLE = "value-of-some-variable"


def assert_untold(folder: Path, *secrets: str) -> None:
    """No file below ``folder`` has them, zipped ones included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".ckpt" for path in files)
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, (path, secret)


def test_no_secret_is_written(command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the key for W&B, nor the environment, nor what stands in the address of a git remote."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SOME_VARIABLE", VARIABLE)
    for command in (["init", "-q"], ["remote", "add", "origin", f"https://me:{TOKEN}@example.org/mine.git"]):
        subprocess.run(["git", *command], check=True)
    outcome = command_line(*FAST, "logger.mode=offline")
    assert outcome.code == 0, outcome
    folder = (workplace / "outputs").resolve()
    assert list(folder.rglob("*.wandb"))
    assert_untold(folder, KEY, TOKEN, VARIABLE)
    for secret in (KEY, TOKEN, VARIABLE):
        assert secret not in outcome.out + outcome.err


@pytest.mark.slow
def test_no_secret_is_written_where_the_server_cannot_be_reached(start_process: StartProcess, workplace: Path) -> None:
    """Slow because W&B tries for half a minute."""
    outcome = start_process(
        *FAST, "logger.mode=online", WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9", SOME_VARIABLE=VARIABLE
    ).wait()
    assert outcome.code == 0, outcome
    assert "offline" in outcome.err
    assert_untold((workplace / "outputs").resolve(), KEY, VARIABLE)
    assert KEY not in outcome.out + outcome.err


@pytest.mark.parametrize("key", ["name", "task.expression", "logger.group", "optimizer.hidden.note"])
def test_the_environment_is_not_read_into_a_config(
    key: str, command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_VARIABLE", VARIABLE)
    outcome = command_line(*FAST, f"{key}=${{oc.env:SOME_VARIABLE}}")
    assert outcome.code == 2, outcome
    assert "environment" in outcome.err
    assert VARIABLE not in outcome.err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/tmp/x", "a/b", "a\\b", ".hidden", "'a b'", "x'\n'y", "-x/..", "'${seed}/..'"]
)
def test_a_name_cannot_leave_output_dir(name: str, command_line: CommandLine, workplace: Path) -> None:
    outcome = command_line(*FAST, f"name={name}", "output_dir=inside")
    assert outcome.code == 2, outcome
    assert len(outcome.err.splitlines()) == 1
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        # The folder is named after task and optimizer where there is no name; a plug-in's name is the user's.
        ("optimizer.hidden.name=torch.optim:Adam",),
        ("task.name=../../x",),
        ("optimizer.hidden.name=../../x",),
        ("logger.mode=offline", "logger.project=../../x"),
        ("logger.mode=offline", "logger.group='../../x'", "logger.tags=['../x']"),
        ("callbacks.mine.name=../../x",),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_other_names_stay_inside_as_well(
    arguments: tuple[str, ...], command_line: CommandLine, workplace: Path
) -> None:
    outcome = command_line(*FAST, *arguments, "output_dir=inside")
    assert outcome.code in (0, 2), outcome
    assert "Traceback" not in outcome.err
    assert {path.name for path in workplace.iterdir()} <= {"inside"}
    assert {path.name for path in workplace.parent.iterdir()} <= {"workplace"}


class Bomb:
    """What a hostile pickle does: it leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("bomb.ckpt", ("resume=bomb.ckpt",)),
        ("bomb.ckpt", ("network.initial_weights=bomb.ckpt",)),
        ("bomb.npz", ("network.initial_weights=bomb.npz",)),
        ("bomb.npz", ("data.split_file=bomb.npz",)),
        ("bomb.npz", ("task=cayley_table", "task.order=null", "task.path=bomb.npz")),
        ("bomb.npy", ("task=cayley_table", "task.order=null", "task.path=bomb.npy")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_file_is_never_executed(
    file: str, arguments: tuple[str, ...], command_line: CommandLine, workplace: Path
) -> None:
    mark = workplace / "executed"
    objects = np.array([Bomb(mark)], dtype=object)
    if file.endswith(".ckpt"):
        torch.save({"state_dict": Bomb(mark), "li2_lightning": {"row": 1, "config": {}}}, workplace / file)
    elif file.endswith(".npz"):
        np.savez(workplace / file, train=objects, test=objects, W=objects, V=objects, table=objects)
    else:
        (workplace / file).write_bytes(pickle.dumps(Bomb(mark)))
    outcome = command_line(*FAST, *arguments)
    assert outcome.code == 2, outcome
    assert len(outcome.err.splitlines()) == 1
    assert [path.name for path in workplace.iterdir()] == [file]


@pytest.mark.parametrize(
    "text", ["__import__('os').mkdir('executed')", "x.__class__", "().__class__", "eval(x)", "x:=1"]
)
def test_an_expression_is_never_executed(text: str, command_line: CommandLine, workplace: Path) -> None:
    quoted = text.replace("'", "\\'")
    outcome = command_line(
        "task=expression", "task.modulus=5", f"task.expression='{quoted}'", *(a for a in FAST if "order" not in a)
    )
    assert outcome.code == 2, outcome
    assert list(workplace.iterdir()) == []
