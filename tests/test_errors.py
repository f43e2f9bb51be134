"""Which name a message suggests for one that is unknown."""

from __future__ import annotations

import pytest

import optimizers
from li2_lightning import errors
from li2_lightning.config.schema import keys
from li2_lightning.networks.activations import ACTIVATIONS

KEYS = list(keys())
SCHEDULES = ("none", "step", "multistep", "exponential", "cosine", "linear_warmup")
LOSSES = ("mse", "projected_mse", "cross_entropy", "cross_entropy_float64", "stablemax")
NEAR = [
    # letters swapped, missing, doubled, wrong
    ("sede", KEYS, "seed"),
    ("maxsteps", KEYS, "max_steps"),
    ("netwrok.widht", KEYS, "network.width"),
    ("optimzer.wieght_decay", KEYS, "optimizer.weight_decay"),
    ("trainer.device", KEYS, "trainer.devices"),
    ("adma", optimizers.names(), "adam"),
    ("sdg", optimizers.names(), "sgd"),
    ("Muon", optimizers.names(), "muon"),
    ("rmsporp", optimizers.names(), "rmsprop"),
    ("tahn", ACTIVATIONS, "tanh"),
    ("CrossEntropy", LOSSES, "cross_entropy"),
    ("cross-entropy", LOSSES, "cross_entropy"),
    # a part of the name, or the name with more
    ("width", KEYS, "network.width"),
    ("batchsize", KEYS, "data.batch_size"),
    ("data.train_frac", KEYS, "data.train_fraction"),
    ("warmup", SCHEDULES, "linear_warmup"),
    ("cosine_annealing", SCHEDULES, "cosine"),
    ("exp", SCHEDULES, "exponential"),
]
FAR = [
    ("foo", KEYS),
    ("epochs", KEYS),
    ("network.size", KEYS),
    ("trainer.gpus", KEYS),
    ("loss.name", KEYS),
    ("optimizer.momentum", KEYS),
    ("optimizer@optimizer", KEYS),
    ("zz", KEYS),
    ("", KEYS),
    ("resnet", ("two_layer", "transformer")),
    ("polynomial", SCHEDULES),
    ("swish", ACTIVATIONS),
    ("accuracy", LOSSES),
    ("hinge", LOSSES),
    ("--sed", ("--help", "--cfg", "--resolve")),
    ("permutation", ("alternating", "cyclic", "expression", "product", "symmetric")),
    ("bar", optimizers.names()),
]


@pytest.mark.parametrize(("word", "options", "meant"), NEAR)
def test_what_was_meant_is_suggested(word: str, options: list[str], meant: str) -> None:
    assert errors.nearest(word, options) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize(("word", "options"), FAR)
def test_what_is_far_away_is_not_suggested(word: str, options: list[str]) -> None:
    assert errors.nearest(word, options) == ""
