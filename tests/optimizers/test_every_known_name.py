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
RATELESS, NO_RATE = {"a2grad"}, "sets learning rates, and the hidden, output, embedding optimizer has none"
NO_LOSS = r"cannot step on these weights: NoClosureError: "
REFUSED = {
    "adahessian": SECOND_ORDER,
    "sophiah": SECOND_ORDER,
    "adashift": NOT_PLAIN,
    "conda": NOT_PLAIN,
    "scalableshampoo": NOT_PLAIN,
    "scion": NOT_PLAIN,
    "scionlight": NOT_PLAIN,
    "alig": NO_LOSS,
    "bsam": NO_LOSS,
    "friendlysam": "needs a value for 'base_optimizer'",
    "gsam": "needs a value for 'base_optimizer'",
    "looksam": "needs a value for 'base_optimizer'",
    "sam": "needs a value for 'base_optimizer'",
    "lbfgs": "evaluates the loss several times a step",
    "sparseadam": "works on sparse gradients only",
    "distributedmuon": "process group has not been initialized",
}
if importlib.util.find_spec("einops") is None:
    REFUSED["demo"] = "You need to install `einops`"


def run(folder: Path, name: str, options: dict[str, Any], **more: Any) -> Path:
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
        **more,
    }
    values["network"] |= options.get("network", {})
    values |= {key: value for key, value in options.items() if key != "network"}
    with contextlib.redirect_stdout(io.StringIO()):
        return train.run(values).directory


def rows(directory: Path) -> list[list[str]]:
    """metrics.csv without the columns of times."""
    lines = [line.split(",") for line in (directory / "metrics.csv").read_text().splitlines()]
    kept = [index for index, column in enumerate(lines[0]) if not column.startswith("time/")]
    return [[line[index] for index in kept] for line in lines]


VARIANTS: dict[str, dict[str, Any]] = {
    "full batch": {},
    "mini-batches": {"data": {"batch_size": 6, "evaluate_every_n_steps": 1}},
    # Vectors beside matrices, in the embedding role.
    "a scheduler": {"scheduler": {"name": "exponential", "gamma": 0.9}, "network": {"trainable_embedding": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", names())
def test_it_is_resumed_bit_for_bit_or_refused_in_one_sentence(tmp_path: Path, name: str, variant: str) -> None:
    no_rate = NO_RATE if variant == "a scheduler" and name in RATELESS else None
    if refusal := REFUSED.get(name, no_rate):
        with pytest.raises((InputError, OptimizerError), match=rf"^[^\n]*{refusal}[^\n]*\.$"):
            run(tmp_path / "whole", name, VARIANTS[variant])
        assert not (tmp_path / "whole").exists(), "it was refused after something had been written"
        return
    whole = run(tmp_path / "whole", name, VARIANTS[variant])
    checkpoint = whole / "checkpoints" / "row-000007.ckpt"
    resumed = run(tmp_path / "resumed", name, VARIANTS[variant], resume=str(checkpoint))
    assert rows(resumed) == rows(whole)
    there, here = (
        torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for directory in (whole, resumed)
    )
    assert all(torch.equal(value, here[key]) for key, value in there.items())


def test_the_table_names_only_what_is_known() -> None:
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        assert {*REFUSED, *NEEDS} <= {*names()}
