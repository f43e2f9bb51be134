"""Every optimizer that a config can name: it trains and is resumed bit for bit, or is refused before training."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from li2_lightning.errors import InputError
from optimizers import OptimizerError, names

# What an optimizer needs beyond its defaults.
NEEDS: dict[str, dict[str, Any]] = {"ranger21": {"num_iterations": 20}, "bsam": {"num_data": 19}}
# Names that are refused, and by what.
SECOND_ORDER = "needs second derivatives of the loss"
NOT_PLAIN = r"cannot be continued from a checkpoint: \S+ is a \S+, and a file"
NO_LOSS = r"cannot step on these weights: NoClosureError: "
REFUSED = {
    "adahessian": SECOND_ORDER,
    "sophiah": SECOND_ORDER,
    "adashift": NOT_PLAIN,
    "conda": NOT_PLAIN,
    "scalableshampoo": NOT_PLAIN,
    "scionlight": NOT_PLAIN,
    "alig": NO_LOSS,
    "bsam": NO_LOSS,
    "friendlysam": "needs optimizer.hidden.base_optimizer",
    "gsam": "needs optimizer.hidden.base_optimizer",
    "looksam": "needs optimizer.hidden.base_optimizer",
    "sam": "needs optimizer.hidden.base_optimizer",
    "lbfgs": "evaluates the loss several times a step",
    "sparseadam": "works on sparse gradients only",
    "distributedmuon": "process group has not been initialized",
}
if importlib.util.find_spec("einops") is None:
    REFUSED["demo"] = "You need to install `einops`"


def run(folder: Path, name: str, **options: Any) -> Path:
    section = {"name": name, **NEEDS.get(name, {})}
    off = {callback: {"enabled": False} for callback in ("report", "pictures", "progress")}
    values = {
        "task": {"order": 7},
        "network": {"width": 16},
        "max_steps": 20,
        "output_dir": str(folder),
        "optimizer": {"hidden": section, "output": section, "embedding": section},
        "logger": {"mode": "disabled"},
        "trainer": {"threads": 1, "accelerator": "cpu"},
        "callbacks": {**off, "checkpoint": {"every_n_steps": 7, "keep": 9}},
        **options,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return train.run(values).directory


def rows(directory: Path) -> list[list[str]]:
    """metrics.csv without the columns of times and the eigengap, whose updates only the newest checkpoint has."""
    lines = [line.split(",") for line in (directory / "metrics.csv").read_text().splitlines()]
    kept = [
        index for index, column in enumerate(lines[0]) if not column.startswith("time/") and column != "update/eigengap"
    ]
    return [[line[index] for index in kept] for line in lines]


# Mini-batches, a schedule, and a second parameter in the embedding role.
ALL_AT_ONCE = {
    "data": {"batch_size": 6, "evaluate_every_n_steps": 1},
    "scheduler": {"name": "exponential", "gamma": 0.9},
    "network": {"width": 16, "trainable_embedding": True},
}
OF_EACH_KIND = (
    "a2grad",
    "adago",
    "muonclip",
    "normuon",
    "schedulefreeradam",
    "splus",
    "muon",
    "slow_gradients",
    "soap",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_it_is_resumed_bit_for_bit_or_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    if name in REFUSED:
        assert_refused(tmp_path, REFUSED[name], name)
    else:
        assert_resumed(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_EACH_KIND if name in names()])
def test_so_it_is_with_mini_batches_and_a_schedule(tmp_path: Path, name: str) -> None:
    if name == "a2grad":  # its groups have no learning rate
        assert_refused(
            tmp_path, "sets learning rates, and the hidden, output, embedding optimizer", name, **ALL_AT_ONCE
        )
    else:
        assert_resumed(tmp_path, name, **ALL_AT_ONCE)


def assert_refused(tmp_path: Path, refusal: str, name: str, **options: Any) -> None:
    with pytest.raises((InputError, OptimizerError), match=rf"^[^\n]*{refusal}[^\n]*\.$"):
        run(tmp_path / "whole", name, **options)
    assert not (tmp_path / "whole").exists(), "it was refused after something had been written"


def assert_resumed(tmp_path: Path, name: str, **options: Any) -> None:
    whole = run(tmp_path / "whole", name, **options)
    checkpoint = whole / "checkpoints" / "row-000007.ckpt"
    resumed = run(tmp_path / "resumed", name, **options, resume=str(checkpoint))
    assert rows(resumed) == rows(whole)
    there, here = (
        torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for directory in (whole, resumed)
    )
    assert all(torch.equal(value, here[key]) for key, value in there.items())


def test_the_table_names_only_what_is_known() -> None:
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        assert {*REFUSED, *NEEDS} <= {*names()}
