"""A learning rate that nobody typed is each optimizer's own, and the config that is kept says which it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

import train
from li2_lightning.analysis.figures.style import headline
from li2_lightning.analysis.race import race_table
from li2_lightning.config.identity import config_hash, role_value
from li2_lightning.config.schema import Config, to_plain
from li2_lightning.errors import InputError
from li2_lightning.runs.load import load_run
from optimizers import build_optimizer, describe, spell_out

ROLES = ("hidden", "output", "embedding")
HERE = "tests.test_own_defaults"
PRESETS = Path(train.__file__).parent / "configs" / "optimizer"
extra = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None, reason="the optional extra is not installed"
)


class Demanding(Optimizer):
    """Takes lr and has no default for it."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})


def silent(params: Any, **hyperparameters: Any) -> Optimizer:
    """Its signature does not tell its lr."""
    return SGD(params, **hyperparameters)


def read(multiple: dict[str, float] | None = None, **optimizer: Any) -> Config:
    return train.read_config({"optimizer": optimizer, "multiple": multiple or {}})


def used(config: Config) -> dict[str, tuple[float | None, float | None]]:
    """lr and weight decay of each role, from the parameter groups; the config that is kept must say the same."""
    section = asdict(config.optimizer)
    built = build_optimizer({role: [(role, Parameter(torch.zeros(3, 3)))] for role in ROLES}, section)
    found = {group["role"]: (group.get("lr"), group.get("weight_decay")) for group in built.param_groups}
    assert to_plain(train.read_config(config)) == to_plain(config), "what is kept is read as it stands"
    return found


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("muon", 0.02), ("adam", 1e-3), ("rprop", 1e-2), ("adamax", 2e-3), ("adadelta", 1.0),
        ("orthogonal_gradient", 1e-3),
        *(pytest.param(name, 1.0, marks=extra) for name in ("prodigy", "dadaptadam", "dadaptsgd", "dadaptlion")),
        pytest.param("lion", 1e-4, marks=extra),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ROLES)
def test_an_optimizer_that_is_named_alone_has_its_own_lr_and_the_others_theirs(name: str, lr: float, role: str) -> None:
    config = read(**{role: {"name": name}})
    assert {r: values[0] for r, values in used(config).items()} == dict.fromkeys(ROLES, 1e-3) | {role: lr}
    assert {r: role_value(vars(config.optimizer), r, "lr") for r in ROLES} == dict.fromkeys(ROLES, 1e-3) | {role: lr}


def test_a_typed_lr_fills_in_for_every_role_that_sets_none_and_takes_it() -> None:
    config = read(lr=0.3, hidden={"name": "muon"}, output={"name": "sgd", "lr": 0.5}, embedding={"name": "adagrad"})
    assert {role: values[0] for role, values in used(config).items()} == {
        "hidden": 0.3,
        "output": 0.5,
        "embedding": 0.3,
    }
    section = {"hidden": {"name": f"{HERE}:Demanding"}}
    assert used(read(lr=0.3, **section))["hidden"][0] == 0.3


def test_an_optimizer_without_an_lr_of_its_own_needs_one() -> None:
    for role in ROLES:
        with pytest.raises(
            InputError, match=rf"^The optimizer '{HERE}:Demanding' needs optimizer\.{role}\.lr; it takes"
        ):
            read(**{role: {"name": f"{HERE}:Demanding"}})


def test_what_a_signature_does_not_tell_is_left_to_the_optimizer() -> None:
    """And the lr of the other roles, which would fill in for it if it were shared, stands in theirs."""
    config = read(hidden={"name": f"{HERE}:silent"}, output={"name": "muon"})
    assert used(config) == {"hidden": (1e-3, 2e-4), "output": (0.02, 2e-4), "embedding": (1e-3, 2e-4)}
    assert (config.optimizer.lr, config.optimizer.embedding["lr"]) == (None, 1e-3)
    for key in ("lr", "weight_decay"):
        with pytest.raises(InputError, match=rf"{HERE}:silent does not tell its own {key}, which multiple\.{key}"):
            read({key: 3.0}, weight_decay=None, hidden={"name": f"{HERE}:silent"})


def test_the_weight_decay_of_the_experiment_stays_shared_and_the_split_says_so() -> None:
    config = read(hidden={"name": "adamw"}, output={"name": "adam", "weight_decay": 0.5}, embedding={"name": "rprop"})
    assert {role: values[1] for role, values in used(config).items()} == {
        "hidden": 2e-4, "output": 0.5, "embedding": None,
    }  # fmt: skip
    roles = {role: [(role, Parameter(torch.zeros(3, 3)))] for role in ROLES}
    hidden, output, embedding = describe(build_optimizer(roles, asdict(config.optimizer))).split("\n")
    assert hidden.endswith("[shared decay]")
    assert output.endswith("output (3×3)")
    assert embedding.endswith("[takes no weight decay, the shared 0.0002 is not applied]")
    # null leaves it to the optimizers.
    config = read(weight_decay=None, hidden={"name": "adamw"})
    assert [values[1] for values in used(config).values()] == [1e-2, 0, 0]


@pytest.mark.parametrize(
    ("left_out", "typed"),
    [
        ({}, {"lr": 1e-3}),
        ({"hidden": {"name": "muon"}}, {"hidden": {"name": "muon", "lr": 0.02}}),
        ({"output": {"name": "muon"}}, {"lr": 1e-3, "output": {"name": "muon", "lr": 0.02}}),
        ({"hidden": {"name": "adamw"}, "weight_decay": None}, {"hidden": {"name": "adamw", "weight_decay": 1e-2},
                                                               "weight_decay": 0.0}),
    ],
    ids=str,
)  # fmt: skip
def test_a_default_and_the_number_that_it_is_are_one_run(left_out: dict[str, Any], typed: dict[str, Any]) -> None:
    assert to_plain(read(**left_out)) == to_plain(read(**typed))
    assert config_hash(read(**left_out)) == config_hash(read(**typed))


@pytest.mark.parametrize(("name", "lr"), [("muon", 0.06), ("rprop", 0.03), ("slow_gradients", 3e-3)])
def test_a_multiple_multiplies_an_optimizers_own_lr(name: str, lr: float) -> None:
    config = read({"lr": 3.0, "weight_decay": 2.0}, hidden={"name": name})
    found = used(config)
    assert (found["hidden"][0], found["output"]) == (lr, (3e-3, 4e-4))
    assert vars(config.multiple) == {"lr": 1.0, "weight_decay": 1.0}


def test_nothing_to_multiply_is_one_sentence() -> None:
    roles = {role: {"name": "rprop"} for role in ROLES}
    with pytest.raises(InputError, match=r"^multiple\.weight_decay=3\.0 has nothing to multiply; set optimizer\."):
        read({"weight_decay": 3.0}, weight_decay=None, **roles)


def test_a_mistake_in_an_optimizers_section_is_the_users() -> None:
    with pytest.raises(InputError, match=r"Unknown optimizer 'muonn'.* Did you mean 'muon'"):
        read(hidden={"name": "muonn"})
    assert spell_out(asdict(Config().optimizer))["lr"] == 1e-3


# lr and weight decay of W, V and the embedding by each preset alone, and lr with optimizer.lr=.007 beside it: what the
# file says of a role stays.
NUMBERS = {
    "adam": ([(1e-3, 2e-4)] * 3, [7e-3] * 3),
    "adamw": ([(1e-3, 1.0)] * 3, [7e-3] * 3),
    "egalitarian": ([(0.02, 0.1), (1e-3, 2e-4), (1e-3, 2e-4)], [0.02, 7e-3, 7e-3]),
    "lion": ([(3e-4, 3.0), (1e-3, 2e-4), (1e-3, 2e-4)], [3e-4, 7e-3, 7e-3]),
    "muon": ([(0.02, 2e-4), (1e-3, 2e-4), (1e-3, 2e-4)], [0.02, 7e-3, 7e-3]),
    "muon_decoupled": ([(0.02, 0.5), (1e-3, 2e-4), (1e-3, 2e-4)], [0.02, 7e-3, 7e-3]),
    "muon_published": ([(0.01, 2e-4)] * 3, [7e-3] * 3),
    "normuon": ([(0.01, 0.1), (1e-3, 2e-4), (1e-3, 2e-4)], [0.01, 7e-3, 7e-3]),
    "orthogonal_gradient": ([(1e-3, 0.1), (1e-3, 2e-4), (1e-3, 2e-4)], [7e-3] * 3),
    "prodigy": ([(1.0, 1.0)] * 3, [7e-3] * 3),
    "schedule_free": ([(2.5e-3, 0.3)] * 3, [7e-3] * 3),
    "scion": ([(0.02, 0.1), (0.1, 0.1), (1e-3, 2e-4)], [7e-3, 0.1, 1e-3]),
    "sgd": ([(1.0, 2e-4)] * 3, [7e-3] * 3),
    "slow_gradients": ([(1e-3, 6e-4), (1e-3, 2e-4), (1e-3, 2e-4)], [7e-3] * 3),
    "slow_gradients_control": ([(3e-3, 6e-4), (1e-3, 2e-4), (1e-3, 2e-4)], [3e-3, 7e-3, 7e-3]),
    "soap": ([(3e-3, 0.3)] * 3, [7e-3] * 3),
}


def test_every_preset_has_its_numbers_here() -> None:
    assert sorted(NUMBERS) == sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=extra) if n in ("lion", "soap") else n for n in NUMBERS])
def test_a_preset_of_ours_keeps_its_numbers(name: str) -> None:
    preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    alone, with_lr = NUMBERS[name]
    assert list(used(read(**preset)).values()) == alone
    assert [values[0] for values in used(read(**{**preset, "lr": 7e-3})).values()] == with_lr


@extra
@pytest.mark.parametrize("name", ["prodigy", "dadaptadam", "dadaptlion"])
def test_optimizers_that_find_their_own_step_move(tiny_run: Callable[..., Any], name: str) -> None:
    """At lr 1 and not at .001, at which the estimate of the distance stays where it began."""
    arguments = ("max_steps=20", f"optimizer.hidden.name={name}", "callbacks.features.enabled=false")
    alone, typed = (tiny_run(*arguments, *more) for more in ((), ("optimizer.lr=0.001",)))
    moved, still = (
        (run.seen[20].weights["W"] - run.seen[0].weights["W"]).norm() / run.seen[0].weights["W"].norm()
        for run in (alone, typed)
    )
    assert still < 1e-5
    assert moved > 1e-3


def test_what_reads_a_run_afterwards_sees_the_lr_that_was_used(tiny_run: Callable[..., Any]) -> None:
    run = load_run(tiny_run("max_steps=2", "optimizer.hidden.name=muon").directory)
    assert (run["optimizer.lr"], run["optimizer.hidden.lr"]) == (1e-3, 0.02)
    assert "lr 0.02 / 0.001, weight decay 0.0002, seed 0" in headline([run])
    assert list(race_table([run])["optimizer"]) == ["muon / adam"]
    assert "lr 0.001, weight decay" in headline([load_run(tiny_run("max_steps=2").directory)])
