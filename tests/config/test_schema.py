"""The schema: what it takes, what it refuses, and what identifies a run."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from callbacks import CALLBACKS
from callbacks import registry as callback_registry
from callbacks.gram import Gram
from callbacks.registry import KEEPING
from li2_lightning.config import schema as config_module
from li2_lightning.config.schema import (
    NOT_HASHED,
    Config,
    NetworkConfig,
    config_hash,
    explain,
    keys,
    load_config,
    multiply,
    ridge_strength,
    run_name,
    to_plain,
    unknown_key,
)
from li2_lightning.errors import InputError
from li2_lightning.tasks.tasks import TASKS
from optimizers import OPTIMIZERS, SCHEDULES, schedules
from train import read_config


def merged(**values: Any) -> Config:
    return load_config(values)


def test_nothing_given_is_the_default() -> None:
    config = merged()
    assert (config.task.name, config.task.order, config.network.width, config.max_steps) == ("cyclic", 71, 2048, 400)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.loss) == (None, 2e-4, "mse")
    expected = Config()
    expected.task.order = 71
    assert config == expected


@pytest.mark.parametrize("kind", [dict, OmegaConf.create, load_config])
def test_every_form_of_the_same_values_is_the_same(kind: Any) -> None:
    values = {"task": {"order": 7}, "optimizer": {"hidden": {"name": "sgd", "momentum": 0.5}}, "seed": 3}
    assert load_config(kind(values)) == load_config(values)


def test_what_is_passed_in_is_left_alone() -> None:
    values: dict[str, Any] = {"task": {"name": "cyclic"}, "callbacks": {"gram": {"exact": True}}}
    load_config(values)
    assert values == {"task": {"name": "cyclic"}, "callbacks": {"gram": {"exact": True}}}
    config = Config()
    load_config(config)
    assert config == Config()


def test_a_config_survives_its_plain_form() -> None:
    config = merged(task={"order": 7}, callbacks={"stages": {"rows": 3}}, optimizer={"hidden": {"name": "muon"}})
    plain = to_plain(config)
    assert load_config(plain) == config
    assert load_config(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(plain)))) == config  # type: ignore[arg-type]

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return type(value) is dict and all(map(is_plain, value.values()))
        if isinstance(value, list):
            return type(value) is list and all(map(is_plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert is_plain(plain)


def test_setting_one_hyperparameter_keeps_the_name_of_its_role() -> None:
    assert merged(optimizer={"hidden": {"momentum": 0.5}}).optimizer.hidden == {"name": "adam", "momentum": 0.5}


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"sed": 1}, "Did you mean 'seed'"),
        ({"task": {"ordr": 7}}, "Did you mean 'task.order'"),
        ({"network": {"transformer": {"head": 2}}}, "Did you mean 'network.transformer.heads'"),
        ({"optimizer": {"momentum": 0.5}}, "optimizer.momentum"),
        ({"task": 3}, "TaskConfig"),
        ({"task": None}, "task"),
        ({"max_steps": "many"}, "max_steps"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"max_steps": True}, "max_steps"),
        ({"seed": None}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"network": {"width": 0}}, "network.width=0"),
        ({"network": {"batch_norm": "perhaps"}}, "network.batch_norm"),
        ({"network": {"activation": "sqare"}}, "Did you mean 'square'"),
        ({"network": {"readout_init_scale": float("inf")}}, "network.readout_init_scale"),
        ({"network": {"ridge": 0.1}}, "network.readout=ridge"),
        ({"network": {"readout": "ridg"}}, "Did you mean 'ridge'"),
        ({"network": {"readout": "ridge"}, "loss": "cross_entropy"}, "cross_entropy"),
        ({"network": {"name": "transformer"}}, "relu or gelu"),
        ({"network": {"name": "transformer", "activation": "relu", "width": 6}}, "multiple"),
        ({"network": {"name": "transformer", "activation": "relu", "complex_weights": True}}, "complex_weights"),
        ({"network": {"inner_product": True, "activation": "tanh"}}, "no activation"),
        ({"data": {"batch_size": 0}}, "data.batch_size=0"),
        ({"callbacks": {"gram": 3}}, "callbacks.gram"),
        ({"logger": {"mode": "of"}}, "logger.mode"),
        ({"trainer": {"devices": 0}}, "trainer.devices=0"),
        ({"trainer": {"strategy": "ddp"}}, "Unknown key 'trainer.strategy'"),
        ({"name": "a/b"}, "plain folder name"),
        ({"name": "x" * 101}, "plain folder name"),
        ({"stop_at_test_accuracy": 0.0}, "(0, 1]"),
        ({"seed": "${nothing}"}, "nothing"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_about_its_key(values: dict[str, Any], mentions: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config(values)
    message = str(refused.value)
    assert mentions in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_keys_that_were_added_to_a_typed_config_are_refused() -> None:
    """As Hydra's +key=… does."""
    config = OmegaConf.structured(Config)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, "task.foo", 3, force_add=True)
    assert isinstance(config, DictConfig)
    with pytest.raises(InputError, match=r"task\.foo"):
        load_config(config)


def test_keys_are_those_of_the_dataclasses() -> None:
    found = list(keys())
    assert len(found) == len(set(found))
    assert {"seed", "task", "task.order", "network.transformer.heads", "optimizer.hidden", "callbacks"} <= set(found)
    plain = to_plain(Config())

    def exists(key: str) -> bool:
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        return True

    assert all(map(exists, found))
    leaves = sum(1 for section in fields(Config()) if not is_dataclass(getattr(Config(), section.name)))
    assert len([key for key in found if "." not in key]) == len(fields(Config)) > leaves


def test_unknown_key_lists_the_siblings_and_the_nearest() -> None:
    message = str(unknown_key("data.train_fractoin"))
    assert "Unknown key 'data.train_fractoin'" in message
    assert "train_size" in message
    assert "width" not in message
    assert message.endswith("Did you mean 'data.train_fraction'?")
    assert "Did you mean" not in str(unknown_key("zzzzzz"))


def test_explain_names_the_key_and_the_reason() -> None:
    with pytest.raises(OmegaConfBaseException) as raised:
        OmegaConf.merge(OmegaConf.structured(Config), {"network": {"width": "wide"}})
    message = str(explain(raised.value))
    assert "network.width" in message
    assert "wide" in message
    assert "\n" not in message
    assert message.endswith(".")


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
        {"network": {"width": 2048, "transformer": {"heads": 4}}},
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
        {"task": {"num_operands": 3}},
        {"scheduler": {"name": "cosine"}},
        {"optimizer": {"lr": 0.1}},
        # The default of Adam, and not what the shared value makes of it.
        {"optimizer": {"lr": 0.1, "hidden": {"lr": 1e-3}}},
        {"optimizer": {"weight_decay": 0.0}},
        {"optimizer": {"weight_decay": None, "hidden": {"weight_decay": 2e-4}}},
        {"optimizer": {"hidden": {"betas": [0.9, 0.99]}}},
        {"optimizer": {"hidden": {"name": "adamw"}}},
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


def test_a_release_with_other_numbers_moves_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = config_hash(merged()), config_hash(merged(max_steps=9))
    monkeypatch.setattr(config_module, "NUMERICS", config_module.NUMERICS + 1)
    assert not {*known} & {config_hash(merged()), config_hash(merged(max_steps=9))}


def test_what_is_not_hashed_is_there() -> None:
    kept = {f"callbacks.{label}" for label in KEEPING}
    assert kept < set(NOT_HASHED)
    assert set(NOT_HASHED) - kept <= set(keys())


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
