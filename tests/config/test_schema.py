"""The schema: which keys there are, and what each declares."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from li2_lightning.config.schema import (
    ACCURACY,
    NOT_NEGATIVE,
    POSITIVE,
    Bound,
    Config,
    between,
    declared,
    keys,
    to_plain,
)


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


def test_every_key_is_explained_in_one_phrase_of_its_own() -> None:
    phrases = {key: item.metadata["help"] for key, item in declared()}
    assert phrases.keys() == set(keys())
    assert len({*phrases.values()}) == len(phrases)
    for key, phrase in phrases.items():
        assert len(phrase) > 7, key
        assert not phrase.endswith("."), key


def test_every_default_is_allowed() -> None:
    for key, item in declared():
        default = attrgetter(key)(Config())
        assert default is None or all(bound.holds(default) for bound in item.metadata["range"]), key
        words = default if isinstance(default, list) else [default]
        assert not item.metadata["choices"] or set(words) <= set(item.metadata["choices"]), key


def test_sections_and_options_are_not_shared_between_configs() -> None:
    one, other = Config(), Config()
    one.optimizer.hidden["name"] = "sgd"
    one.callbacks["gram"] = {}
    one.network.width = 3
    one.scheduler["name"] = "step"
    assert other == Config() != one


def test_a_range_holds_no_nan_and_nothing_negative() -> None:
    def holds(allowed: tuple[Bound, ...], number: float) -> bool:
        return all(bound.holds(number) for bound in allowed)

    for allowed in (POSITIVE, NOT_NEGATIVE, ACCURACY, between(1), between(0, 5)):
        assert not holds(allowed, math.nan)
        assert not holds(allowed, -1)
    assert [holds(allowed, 0) for allowed in (POSITIVE, NOT_NEGATIVE, ACCURACY)] == [False, True, False]
    assert [holds(allowed, math.inf) for allowed in (POSITIVE, NOT_NEGATIVE, ACCURACY)] == [False, False, False]
    assert [holds(between(0, 5), number) for number in (0, 5, 6)] == [True, True, False]
