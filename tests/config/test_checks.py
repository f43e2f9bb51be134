"""Which values make a config, and what is said of those that do not."""

from __future__ import annotations

import math
import re
from operator import attrgetter
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from li2_lightning.config.checks import explain, load_config, unknown_key
from li2_lightning.config.schema import Config, declared, to_plain
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
        ({"data": {"seed": -1}}, "data.seed"),
        ({"network": {"width": 0}}, "network.width=0"),
        ({"network": {"batch_norm": "perhaps"}}, "network.batch_norm"),
        ({"network": {"readout_init_scale": float("inf")}}, "network.readout_init_scale"),
        ({"network": {"init_scale": 0.0}}, "network.init_scale=0.0"),
        ({"network": {"hidden_init_scale": 0.0}}, "network.hidden_init_scale=0.0"),
        *(
            ({"network": {key: 0.5, "initial_weights": "w.npz"}}, f"network.{key}=0.5 scales drawn weights")
            for key in ("init_scale", "hidden_init_scale", "readout_init_scale")
        ),
        ({"network": {"name": "transformer", "activation": "relu", "hidden_init_scale": 2.0}}, "hidden_init_scale"),
        ({"network": {"ridge": 0.1}}, "network.readout=ridge"),
        ({"network": {"readout": "ridg"}}, "Did you mean 'ridge'"),
        ({"network": {"readout": "ridge"}, "loss": "cross_entropy"}, "cross_entropy"),
        ({"network": {"readout": "ridge"}, "loss": "cross_entropy_float64"}, "cross_entropy_float64"),
        ({"network": {"readout": "ridge"}, "loss": "stablemax"}, "stablemax"),
        ({"data": {"label_noise": 1.5}}, "data.label_noise=1.5 is out of range"),
        ({"data": {"label_noise": -0.1}}, "in [0, 1]"),
        ({"network": {"name": "transformer"}}, "relu or gelu"),
        ({"network": {"name": "transformer", "activation": "relu", "width": 6}}, "multiple"),
        ({"network": {"name": "transformer", "activation": "relu", "complex_weights": True}}, "complex_weights"),
        ({"network": {"inner_product": True, "activation": "tanh"}}, "no activation"),
        ({"network": {"residual": False}}, "network.hidden_layers"),
        ({"network": {"name": "transformer", "activation": "relu", "residual": False}}, "network.residual"),
        ({"data": {"batch_size": 0}}, "data.batch_size=0"),
        ({"callbacks": {"gram": 3}}, "callbacks.gram"),
        ({"logger": {"mode": "of"}}, "logger.mode"),
        ({"trainer": {"devices": 0}}, "trainer.devices=0"),
        ({"trainer": {"strategy": "ddp"}}, "Unknown key 'trainer.strategy'"),
        ({"name": "a/b"}, "plain folder name"),
        ({"name": "x" * 101}, "plain folder name"),
        ({"stop_at_test_accuracy": 0.0}, "(0, 1]"),
        ({"seed": "${nothing}"}, "nothing"),
        ({"callbacks": "${"}, "callbacks"),
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


RANGES = {key: item.metadata["range"] for key, item in declared() if item.metadata["range"]}
CHOICES = {key: item.metadata["choices"] for key, item in declared() if item.metadata["choices"]}


def nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("key", RANGES)
def test_a_number_outside_the_range_that_its_key_declares_is_refused(key: str) -> None:
    is_real = isinstance(attrgetter(key)(Config()), float) or key in ("network.ridge", "stop_at_test_accuracy")
    numbers = (-1, math.inf, math.nan) if is_real else (-1, 2**60)
    broken = {number: [bound for bound in RANGES[key] if not bound.holds(number)] for number in numbers}
    assert broken[-1]
    for number, bounds in broken.items():
        if not bounds:
            continue
        with pytest.raises(InputError) as refused:
            load_config(nested(key, number))
        message = str(refused.value)
        assert re.fullmatch(rf"{re.escape(key)}=\S+ is out of range; it must be .+\.", message), message
        assert message.endswith(f"{bounds[0].words}.")


@pytest.mark.parametrize(
    ("key", "first", "last"),
    [
        ("seed", 0, 2**32 - 1),
        ("max_steps", 1, 2**53),
        ("data.batch_size", 1, 2**53),
        ("network.width", 1, 2**20),
        ("network.hidden_layers", 0, 1000),
        ("trainer.threads", 1, 2**10),
        ("trainer.devices", 1, 10**9),
        ("stop_at_test_accuracy", 1e-9, 1.0),
    ],
)
def test_the_ends_of_a_range_are_allowed(key: str, first: float, last: float) -> None:
    for number in (first, last):
        assert attrgetter(key)(load_config(nested(key, number))) == number


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_that_is_no_choice_of_its_key_is_refused_with_the_choices(key: str) -> None:
    for word in ("nonsense", "", f"{CHOICES[key][0]} "):
        with pytest.raises(InputError) as refused:
            load_config(nested(key, [word] if isinstance(attrgetter(key)(Config()), list) else word))
        assert all(choice in str(refused.value) for choice in (key, *CHOICES[key]))


def test_the_config_package_leaves_activations_to_the_network() -> None:
    """The network knows its activations and refuses another one before anything is written (tests/cli)."""
    assert load_config({"network": {"activation": "sqare"}}).network.activation == "sqare"


def test_keys_that_were_added_to_a_typed_config_are_refused() -> None:
    """As Hydra's +key=… does."""
    config = OmegaConf.structured(Config)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, "task.foo", 3, force_add=True)
    assert isinstance(config, DictConfig)
    with pytest.raises(InputError, match=r"task\.foo"):
        load_config(config)


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


@pytest.mark.parametrize("value", ["log0", "logg", "10", "", 0, -3, 2.5, True])
def test_a_cadence_of_the_rows_is_a_number_or_a_log_scale_and_else_one_sentence(value: Any) -> None:
    for good in (1, 25, "log", "log20"):
        assert merged(data={"evaluate_every_n_steps": good}).data.evaluate_every_n_steps == good
    with pytest.raises(
        InputError, match=r"evaluate_every_n_steps.* it must be an integer of at least 1, log \(10 rows"
    ):
        merged(data={"evaluate_every_n_steps": value})


def test_every_entry_of_a_list_is_one_of_its_choices() -> None:
    assert merged(logger={"artifacts": ["last", "features"]}).logger.artifacts == ["last", "features"]
    with pytest.raises(InputError, match=r"logger\.artifacts: 'bset'; known are best, features, last\. Did you mean"):
        merged(logger={"artifacts": ["last", "bset"]})
