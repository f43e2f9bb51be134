"""The schema: what it takes, what it refuses, and what identifies a run."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from li2_lightning.config import (
    Config,
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
        ({"trainer": {"strategy": "fsdp"}}, "auto, ddp"),
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
