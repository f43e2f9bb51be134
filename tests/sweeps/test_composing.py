"""The configs of the runs of a sweep: composed with shared work, and equal to what Hydra composes for each run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.li2_sweeper import Composer
from li2_lightning.config import CONFIGS

GRIDS = [
    [["seed=0"], ["seed=1"]],
    [["optimizer=muon", "optimizer.lr=0.5"], ["optimizer=muon", "optimizer.lr=0.25"], ["optimizer=adam"]],
    [["network.width=8", "optimizer=muon"], ["++optimizer.hidden={name:sgd,momentum:0.5}"]],
    [["++callbacks.gram.sampled_columns=7", "callbacks.gram.exact=true"], ["~callbacks.gram"], ["seed=2"]],
    [["experiment=fig03_no_weight_decay_quick"], ["experiment=lock_in_quick", "seed=4", "hydra.verbose=true"]],
]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", ["max_steps=9"], RunMode.MULTIRUN)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_run_has_the_values_that_hydra_composes(
    grid: list[list[str]], loader: ConfigLoader, master: DictConfig
) -> None:
    compose = Composer(loader, master)
    for own in grid * 2:
        whole = loader.load_sweep_config(master, own)
        with open_dict(whole):
            del whole["hydra"]
        assert OmegaConf.to_container(compose(own)) == OmegaConf.to_container(whole)


def test_runs_that_choose_the_same_files_are_composed_once(
    loader: ConfigLoader, master: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[list[str]] = []
    whole = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda *args: composed.append(args[1]) or whole(*args))
    compose = Composer(loader, master)
    for name in ("adam", "muon"):
        for seed in range(3):
            assert compose([f"seed={seed}", f"optimizer={name}"]).seed == seed
    assert composed == [["optimizer=adam"], ["optimizer=muon"]]


def test_an_unknown_key_is_refused_as_by_hydra(loader: ConfigLoader, master: DictConfig) -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override 'sed'"):
        Composer(loader, master)(["sed=3"])
