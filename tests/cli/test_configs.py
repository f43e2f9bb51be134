"""Every YAML that we ship composes and trains, and says what the code says."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from callbacks import CALLBACKS
from callbacks.registry import KEEPING, MEASURING
from li2_lightning.config.checks import load_config, read_config
from li2_lightning.config.identity import config_hash
from li2_lightning.config.schema import Config
from li2_lightning.runs.directory import RunDirectory
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import ROOT, CommandLine

CONFIGS = ROOT / "configs"
VARIATIONS = [path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.glob("*/*.yaml"))]
GROUPS = {variation.parent.name for variation in VARIATIONS}
SHRUNK = ("network.width=8", "max_steps=3", "logger.mode=disabled", "trainer.threads=1")


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def settings(variation: Path) -> list[str]:
    """The overrides for three steps of ``variation``; the file under test itself is left as it is."""
    group, name = variation.parent.name, variation.name
    shrunk = [f"{group}={name}", *SHRUNK]
    if group not in ("task", "experiment", "workload"):
        shrunk.append("task.order=7")
    if group in ("experiment", "workload"):
        shrunk.append("data.evaluate_every_n_steps=1")
    if name == "cayley_table":
        shrunk.append("task.path=table.csv")
    if group not in ("callbacks", "trainer"):
        shrunk += ["callbacks.report.enabled=false", "callbacks.pictures.enabled=false"]
    return shrunk


def is_slow(variation: Path) -> bool:
    """Whether three steps take a second; the quick preset of an experiment stands for the full one."""
    return variation.parent.name == "workload" or variation.with_name(f"{variation.name}_quick") in VARIATIONS


@pytest.mark.parametrize(
    "variation", [pytest.param(v, marks=[pytest.mark.slow] if is_slow(v) else []) for v in VARIATIONS], ids=str
)
def test_every_variation_trains_three_steps(variation: Path, command_line: CommandLine, workplace: Path) -> None:
    (workplace / "table.csv").write_text("0,1,2\n1,2,0\n2,0,1\n")
    outcome = command_line(*settings(variation), "output_dir=out")
    assert outcome.code == 0, outcome
    assert not re.search("error|warning", outcome.err, re.IGNORECASE)
    metrics = read_metrics(workplace / "out" / "latest" / "metrics.csv")
    assert all(map(math.isfinite, metrics["train/loss"]))
    kept = yaml.safe_load((workplace / "out" / "latest" / "config.yaml").read_text())
    assert metrics["step"].tolist() == [0, 1, 2, 3]
    group, file = variation.parent.name, yaml.safe_load((CONFIGS / f"{variation}.yaml").read_text()) or {}
    section = kept if group in ("experiment", "workload") else kept[group]
    for key, value in file.items():
        if key not in ("defaults", "hydra", "mode", "max_steps", "network", "width") and not isinstance(value, dict):
            assert section[key] == value, f"{variation} says {key}={value}"


def test_the_composed_default_is_the_default_of_the_schema() -> None:
    typed, plain = load_config(composed()), load_config({})
    assert typed.callbacks != {}, "configs/callbacks/default.yaml lists what there is"
    plain.callbacks = typed.callbacks
    assert typed == plain


@pytest.mark.parametrize(("name", "lr"), [("muon", 0.02), ("rprop", 0.01), ("adadelta", 1.0)])
def test_the_default_preset_leaves_another_optimizer_its_own_lr(name: str, lr: float) -> None:
    optimizer = read_config(composed(f"optimizer.hidden.name={name}")).optimizer
    assert (optimizer.lr, optimizer.hidden) == (1e-3, {"name": name, "lr": lr})


def test_callbacks_default_lists_exactly_the_options_with_their_defaults() -> None:
    listed = yaml.safe_load((CONFIGS / "callbacks" / "default.yaml").read_text())
    assert list(listed) == [*MEASURING, *KEEPING]
    for name, options in listed.items():
        parameters = [p for p in signature(CALLBACKS.find(name)).parameters.values() if p.name != "self"]
        assert all(p.default is not Parameter.empty for p in parameters)
        assert options == {"enabled": True} | {p.name: p.default for p in parameters}, name


def test_callbacks_minimal_switches_off_every_measurement() -> None:
    listed = yaml.safe_load((CONFIGS / "callbacks" / "minimal.yaml").read_text())
    assert set(listed) == {*MEASURING, "pictures", "snapshots", "report"}
    assert all(options == {"enabled": False} for options in listed.values())


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
def test_no_variation_instantiates_by_path(variation: Path) -> None:
    assert "_target_" not in (CONFIGS / f"{variation}.yaml").read_text()


@pytest.mark.parametrize("preset", [v for v in VARIATIONS if v.parent.name == "experiment"], ids=str)
def test_a_task_that_the_user_chooses_replaces_that_of_a_preset(preset: Path) -> None:
    """A preset names its task by `override /task`; `task.name` in it would win over the choice without a word."""
    assert composed(f"experiment={preset.name}", "task=dihedral").task.name == "dihedral"


def test_every_group_is_one_of_the_sections_or_of_whole_configs() -> None:
    assert {*asdict(Config()), "experiment", "workload"} >= GROUPS


@pytest.mark.parametrize("quick", [v for v in VARIATIONS if re.fullmatch("fig03_.*_quick", v.name)], ids=str)
def test_a_quick_experiment_is_its_full_one_with_one_seed(quick: Path) -> None:
    full = load_config(composed(f"experiment={quick.name.removesuffix('_quick')}"))
    small = load_config(composed(f"experiment={quick.name}"))
    assert config_hash(full) == config_hash(small)
    assert RunDirectory.of(full).path != RunDirectory.of(small).path


@pytest.mark.parametrize("quick", [v for v in VARIATIONS if v.name.endswith("_quick")], ids=str)
def test_a_quick_experiment_stands_beside_a_full_one_and_is_smaller(quick: Path) -> None:
    """No longer and no wider."""
    full, small = (
        OmegaConf.to_container(composed(f"experiment={name}"))
        for name in (quick.name.removesuffix("_quick"), quick.name)
    )
    assert isinstance(full, dict)
    assert isinstance(small, dict)
    assert (full["name"], small["name"]) == (quick.name.removesuffix("_quick"), quick.name)
    assert small["max_steps"] <= full["max_steps"]
    assert small["network"]["width"] <= full["network"]["width"]


def test_the_experiments_differ_in_weight_decay_alone() -> None:
    with_decay, without = (
        OmegaConf.to_container(composed(f"experiment=fig03_{name}")) for name in ("weight_decay", "no_weight_decay")
    )
    assert isinstance(with_decay, dict)
    assert isinstance(without, dict)
    assert without["optimizer"].pop("weight_decay") == 0
    assert with_decay["optimizer"].pop("weight_decay") == 2e-4
    del with_decay["name"], without["name"]
    assert with_decay == without
