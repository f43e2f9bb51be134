"""What `wandb agent` would type for each file of wandb_sweeps/ composes, and is a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import train
from li2_lightning.cli.hydra_errors import prepare
from li2_lightning.config.checks import load_config
from li2_lightning.runs.directory import RunDirectory

ROOT = Path(train.__file__).parent
FILES = sorted((ROOT / "wandb_sweeps").glob("*.yaml"))


def choices(parameter: dict[str, Any]) -> list[Any]:
    """Every value that the agent may draw; of a range its two ends."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    assert parameter["distribution"] in ("log_uniform_values", "uniform")
    assert 0 < parameter["min"] < parameter["max"]
    return [parameter["min"], parameter["max"]]


def commands(sweep: dict[str, Any]) -> Iterator[list[str]]:
    """Command lines with every value that may be drawn, expanded by W&B itself: the agent's own two functions."""
    drawn = {name: choices(parameter) for name, parameter in sweep["parameters"].items()}
    for number in range(max(map(len, drawn.values()))):
        held = {name: {"value": values[number % len(values)]} for name, values in drawn.items()}
        filling = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": ["python"],
            "${program}": [sweep["program"]],
            "${args_no_hyphens}": create_sweep_command_args({"args": held})["args_no_hyphens"],
        }
        yield [word for piece in create_sweep_command(list(sweep["command"])) for word in filling.get(piece, [piece])]


def test_there_are_some() -> None:
    assert {path.stem for path in FILES} >= {"lr_weight_decay", "muon_bayes"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_of_the_agent_is_a_run(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["metric"]["name"] == "test/loss"
    directories = set()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        typed = list(commands(sweep))
        for words in typed:
            assert words[:3] == ["/usr/bin/env", "python", "train.py"]
            assert not any(word.startswith("-") for word in words)
            config = load_config(compose("config", overrides=prepare(words[3:])))
            directories.add(RunDirectory.of(config).path)
    assert len(directories) == len(typed), "every one a run of its own"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_drawn_values_reach_the_optimizer(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last command of each, for two steps."""
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    *_, words = commands(sweep)
    small = ["max_steps=2", "task.order=7", "network.width=8", "logger.mode=disabled", "trainer.threads=1",
             "callbacks=minimal", f"output_dir={tmp_path}"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *words[3:], *small])
    GlobalHydra.instance().clear()
    assert train.main() == 0
    kept = yaml.safe_load((tmp_path / "latest" / "config.yaml").read_text())
    for word in words[3:]:
        key, _, value = word.partition("=")
        if key in ("optimizer", "max_steps"):
            continue
        held: Any = kept
        for part in key.split("."):
            held = held[part]
        assert held == pytest.approx(float(value)), key
