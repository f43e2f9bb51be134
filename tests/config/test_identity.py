"""What identifies a run: its hash and its name."""

from __future__ import annotations

import inspect
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from callbacks import CALLBACKS
from callbacks import registry as callback_registry
from callbacks.gram import Gram
from callbacks.registry import KEEPING
from li2_lightning.config import identity
from li2_lightning.config.checks import load_config, read_config
from li2_lightning.config.identity import NOT_HASHED, config_hash, multiply, ridge_strength, run_name
from li2_lightning.config.schema import Config, NetworkConfig, keys, to_plain
from li2_lightning.errors import InputError
from li2_lightning.tasks.tasks import TASKS
from optimizers import OPTIMIZERS, SCHEDULES, schedules
from tests.config.test_checks import merged


def test_hash_is_ten_digits_that_depend_on_the_result_alone(tmp_path: Path) -> None:
    default = config_hash(merged())
    assert len(default) == 10
    assert int(default, 16) >= 0
    for values in ({"seed": 5}, {"name": "x"}, {"output_dir": "/x"}, {"debug": True}, {"task": {"order": 71}}):
        assert config_hash(merged(**values)) == default, values
    # A value written as it is by default is no other run.
    assert config_hash(merged(optimizer={"weight_decay": 2e-4}, data={"train_fraction": None})) == default
    assert config_hash(merged(max_steps=401)) != default
    table = tmp_path / "table.csv"
    table.write_text("0,1\n1,0\n")
    first = config_hash(merged(task={"name": "cayley_table", "path": str(table)}))
    table.write_text("0 1\n1 0\n")
    assert config_hash(merged(task={"name": "cayley_table", "path": str(table)})) != first


@pytest.mark.parametrize(
    "values",
    [
        {"max_steps": 400, "loss": "mse", "stop_at_test_accuracy": None},
        {"task": {"name": "cyclic", "order": 71, "num_operands": 2}},
        {"data": {"train_fraction": 0.4}},
        {"data": {"seed": None, "keep_pairs_together": False}},
        {"data": {"seed": 0}},
        {"network": {"width": 2048, "transformer": {"heads": 4}}},
        {"network": {"init_scale": 1.0, "hidden_init_scale": 1.0}},
        {"optimizer": {"hidden": {"lr": 1e-3}, "output": {"lr": "1e-3", "weight_decay": None}}},
        {"optimizer": {"hidden": {"betas": [0.9, 0.999], "eps": 1e-8, "amsgrad": False}}},
        {"scheduler": {"name": "none"}},
        {"callbacks": {"gram": {"enabled": True, "sampled_columns": 96}, "stages": {"rows": 5}}},
        {"callbacks": {"cost": {"enabled": False}}},
        {"trainer": {"precision": "32-true", "devices": 1}},
    ],
    ids=str,
)
def test_a_default_that_is_written_out_moves_no_run(values: dict[str, Any]) -> None:
    assert config_hash(merged(**values)) == config_hash(merged()) == config_hash(read_config(values))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"task": {"name": "quaternion"}}, {"task": {"name": "quaternion", "order": 8}}),
        ({"scheduler": {"name": "cosine"}}, {"scheduler": {"name": "cosine", "final_fraction": 0.0}}),
        (
            {"scheduler": {"name": "step", "step_size": 9}},
            {"scheduler": {"name": "step", "step_size": 9, "gamma": "1e-1"}},
        ),
        # A shared value is what it makes of the roles.
        (
            {"optimizer": {"lr": 0.02}},
            {"optimizer": {role: {"lr": 0.02} for role in ("hidden", "output", "embedding")}},
        ),
        ({"data": {"evaluate_every_n_steps": "log"}}, {"data": {"evaluate_every_n_steps": "log10"}}),
        (
            {"callbacks": {"gradient": {"every_n_steps": "log", "pairs_every_n_steps": "log"}}},
            {"callbacks": {"gradient": {"every_n_steps": "log10", "pairs_every_n_steps": "log10"}}},
        ),
    ],
    ids=str,
)
def test_a_default_of_a_plug_in_that_is_written_out_moves_no_run(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert config_hash(merged(**short)) == config_hash(merged(**long)) != config_hash(merged())


@pytest.mark.parametrize(
    "values",
    [
        *({key: value} for key, value in {"seed": 5, "output_dir": "x", "name": "x", "force": True}.items()),
        *({"resume": "auto"}, {"debug": True}, {"logger": {"mode": "disabled", "tags": ["x"]}}),
        {"trainer": {"threads": 3}},
        *({"callbacks": {label: {"enabled": False}}} for label in KEEPING),
        {"callbacks": {"progress": {"lines": 3}, "checkpoint": {"keep": 7, "every_n_steps": 3}}},
    ],
    ids=str,
)
def test_what_only_shows_or_keeps_moves_no_run(values: dict[str, Any]) -> None:
    assert config_hash(merged(**values)) == config_hash(merged())


def test_what_changes_the_numbers_moves_the_run() -> None:
    values: list[dict[str, Any]] = [
        {},
        {"trainer": {"precision": "64-true"}},
        {"trainer": {"devices": 2}},
        {"data": {"train_fraction": 0.5}},
        {"data": {"train_size": 9}},
        {"data": {"seed": 1}},
        {"data": {"seed": 2}},
        {"data": {"keep_pairs_together": True}},
        {"task": {"num_operands": 3}},
        {"scheduler": {"name": "cosine"}},
        {"optimizer": {"lr": 0.1}},
        # The default of Adam, and not what the shared value makes of it.
        {"optimizer": {"lr": 0.1, "hidden": {"lr": 1e-3}}},
        {"optimizer": {"weight_decay": 0.0}},
        {"optimizer": {"weight_decay": None, "hidden": {"weight_decay": 2e-4}}},
        {"optimizer": {"hidden": {"betas": [0.9, 0.99]}}},
        {"optimizer": {"hidden": {"name": "adamw"}}},
        {"network": {"init_scale": 0.5}},
        {"network": {"hidden_init_scale": 0.5}},
        {"network": {"readout": "ridge"}},
        {"network": {"readout": "ridge"}, "optimizer": {"weight_decay": 0.3, "output": {"name": "lbfgs"}}},
        {"network": {"readout": "ridge"}, "optimizer": {"weight_decay": 0.4, "output": {"name": "lbfgs"}}},
        {"callbacks": {"gram": {"enabled": False}}},
        {"callbacks": {"gram": {"every_n_steps": 2}}},
        {"callbacks": {"energy": {"every_n_steps": 2}}},
        {"callbacks": {"cost": {}}},
        {"callbacks": {"mine": {"name": "callbacks.cost:Cost"}}},
    ]
    assert len({config_hash(merged(**value)) for value in values}) == len(values)


def test_a_seed_of_the_data_that_is_the_seed_of_the_run_moves_no_run() -> None:
    for seed in (0, 3, 2**32 - 1):
        assert config_hash(merged(seed=seed, data={"seed": seed})) == config_hash(merged(seed=seed))
        assert config_hash(merged(seed=seed, data={"seed": 7})) == config_hash(merged(data={"seed": 7}))


def test_a_new_key_with_a_default_moves_no_run() -> None:
    """At the top, in a section, and a whole section of them."""
    section = make_dataclass("Section", [("one", int, 1), ("two", str | None, None)])
    network = make_dataclass("Network", [("novel", float, 0.5)], bases=(NetworkConfig,))
    added = [("novel", int, 3), ("more", section, field(default_factory=section)),
             ("network", network, field(default_factory=network))]  # fmt: skip
    longer = make_dataclass("Longer", added, bases=(Config,))
    known = config_hash(Config())
    assert config_hash(longer()) == known
    changed = [longer(novel=4), longer(more=section(two="x")), longer(network=network(novel=0.6))]
    assert len({known, *map(config_hash, changed)}) == 4


def test_a_new_option_of_a_plug_in_with_a_default_moves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"scheduler": {"name": "exponential", "gamma": 0.9}, "task": {"order": 7}}
    known = config_hash(merged(**values))

    class LongerGram(Gram):
        def __init__(self, every_n_steps: int = 1, sampled_columns: int = 96, exact: bool = False, novel: int = 3):
            super().__init__(every_n_steps, sampled_columns, exact)

    def adam(params: Any, lr: float = 1e-3, weight_decay: float = 0.0, novel: str = "x") -> Any:
        return torch.optim.Adam(params, lr, weight_decay=weight_decay)

    def exponential(max_steps: int, gamma: float, novel: tuple[int, int] = (1, 2)) -> Any:
        return schedules.exponential(max_steps, gamma)

    def cyclic(order: int = 71, num_operands: int = 2, novel: int | None = 5) -> Any:
        raise NotImplementedError

    monkeypatch.setitem(CALLBACKS._entries, "gram", LongerGram)
    monkeypatch.setitem(TASKS._entries, "cyclic", cyclic)
    monkeypatch.setitem(OPTIMIZERS._entries, "adam", adam)
    monkeypatch.setitem(SCHEDULES._entries, "exponential", exponential)
    assert config_hash(merged(**values)) == config_hash(read_config(values)) == known
    changed: list[dict[str, Any]] = [
        {"callbacks": {"gram": {"novel": 4}}},
        {"optimizer": {"hidden": {"novel": "y"}}},
        {"scheduler": {"name": "exponential", "gamma": 0.9, "novel": [1, 3]}},
    ]
    assert len({known, *(config_hash(merged(**(values | change))) for change in changed)}) == 1 + len(changed)
    for change in ({"callbacks": {"gram": {"novel": 3}}}, {"optimizer": {"hidden": {"novel": "x"}}}):
        assert config_hash(merged(**(values | change))) == known


def test_a_new_callback_that_is_on_by_default_moves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = config_hash(read_config({}))
    monkeypatch.setattr(callback_registry, "MEASURING", (*callback_registry.MEASURING, "cost"))
    assert "cost" in read_config({}).callbacks
    assert config_hash(read_config({})) == known


@pytest.mark.parametrize(
    ("values", "hashed"),
    [
        ({}, "86c315b1c4"),
        ({"optimizer": {"weight_decay": 0.0}}, "76b8f1e112"),
        ({"task": {"order": 7}, "network": {"width": 8, "activation": "relu"}, "max_steps": 9}, "818aa1d657"),
    ],
    ids=str,
)
def test_a_directory_moves_only_when_numerics_is_raised(values: dict[str, Any], hashed: str) -> None:
    """Finished runs of other days are found again; whoever raises `NUMERICS` writes the new hashes here."""
    assert config_hash(merged(**values)) == hashed


def test_a_release_with_other_numbers_moves_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = config_hash(merged()), config_hash(merged(max_steps=9))
    monkeypatch.setattr(identity, "NUMERICS", identity.NUMERICS + 1)
    assert not {*known} & {config_hash(merged()), config_hash(merged(max_steps=9))}


def test_what_is_not_hashed_is_there() -> None:
    kept = {f"callbacks.{label}" for label in KEEPING}
    assert kept < set(NOT_HASHED)
    extra = {f"trainer.extra.{name}" for name in inspect.signature(lightning.Trainer.__init__).parameters}
    assert set(NOT_HASHED) - kept <= {*keys(), *extra}


def test_hash_of_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.initial_weights='nowhere\.npz' cannot be read"):
        config_hash(merged(network={"initial_weights": "nowhere.npz"}))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "cyclic-adam"),
        ({"name": "mine"}, "mine"),
        ({"name": "-x_1.2"}, "-x_1.2"),
        ({"task": {"name": "symmetric"}, "optimizer": {"hidden": {"name": "muon"}}}, "symmetric-muon"),
        ({"optimizer": {"hidden": {"name": "my.module:Class"}}}, "cyclic-my.module-Class"),
        ({"optimizer": {"hidden": {"name": "../../x:y"}}}, "cyclic-..-..-x-y"),
    ],
)
def test_run_name(values: dict[str, Any], name: str) -> None:
    assert run_name(merged(**values)) == name
    assert "/" not in name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", ".hidden", "x\n", "ü", "latest"])
def test_a_name_that_is_no_plain_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="name="):
        merged(name=name)


def test_multiples_are_what_the_user_would_have_written() -> None:
    roles = {"hidden": {"name": "muon", "lr": 0.02}, "output": {"name": "adam", "weight_decay": "5e-1"}}
    multiplied = merged(optimizer={"lr": 1e-3, **roles}, multiple={"lr": 3, "weight_decay": 3.0})
    multiply(multiplied)
    roles["hidden"]["lr"], roles["output"]["weight_decay"] = 0.06, 1.5
    written = merged(optimizer={"lr": 3e-3, "weight_decay": 6e-4, **roles})
    assert multiplied == written
    assert config_hash(multiplied) == config_hash(written)
    again = load_config(to_plain(multiplied))
    multiply(again)
    assert again == multiplied, "what config.yaml holds is not multiplied again"


def test_multiples_that_do_not_fit() -> None:
    for multiple in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"multiple\.lr=.* must be positive and finite"):
            merged(multiple={"lr": multiple})
    with pytest.raises(InputError, match=r"multiple\.lr=3\.0 has nothing to multiply; set optimizer\.lr"):
        multiply(merged(multiple={"lr": 3}))


def test_ridge_strength() -> None:
    """η = nλ/2 with the decay of the output role, unless it is given."""
    assert ridge_strength(merged(), 2016) is None
    assert ridge_strength(merged(network={"readout": "ridge"}), 2016) == pytest.approx(0.2016, rel=1e-12)
    assert ridge_strength(merged(network={"readout": "ridge", "ridge": 0.5}), 2016) == 0.5
    own = {"output": {"name": "adam", "weight_decay": 1e-2}}
    assert ridge_strength(merged(network={"readout": "ridge"}, optimizer=own), 100) == pytest.approx(0.5)
    # null leaves it to the shared one, as the optimizers do.
    null = {"output": {"name": "adam", "weight_decay": None}}
    assert ridge_strength(merged(network={"readout": "ridge"}, optimizer=null), 100) == pytest.approx(0.01)
    with pytest.raises(InputError, match=r"network\.ridge"):
        ridge_strength(merged(network={"readout": "ridge"}, optimizer={"weight_decay": 0.0}), 100)
    with pytest.raises(InputError, match=r"network\.ridge"):
        ridge_strength(merged(network={"readout": "ridge"}, optimizer={"weight_decay": None}), 100)
