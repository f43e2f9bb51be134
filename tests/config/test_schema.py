"""The schema: which keys there are, and what each declares."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from li2_lightning.config.schema import ACCURACY, NOT_NEGATIVE, POSITIVE, Config, between, declared, keys, to_plain


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
        assert item.metadata["range"] is None or default is None or item.metadata["range"].holds(default), key
        assert not item.metadata["choices"] or default in item.metadata["choices"], key


def test_sections_and_options_are_not_shared_between_configs() -> None:
    one, other = Config(), Config()
    one.optimizer.hidden["name"] = "sgd"
    one.callbacks["gram"] = {}
    one.network.width = 3
    one.scheduler["name"] = "step"
    assert other == Config() != one


def test_a_range_holds_no_nan_and_nothing_negative() -> None:
    for allowed in (POSITIVE, NOT_NEGATIVE, ACCURACY, between(1), between(0, 5)):
        assert not allowed.holds(math.nan)
        assert not allowed.holds(-1)
    assert (POSITIVE.holds(0), NOT_NEGATIVE.holds(0), ACCURACY.holds(0)) == (False, True, False)
    assert (POSITIVE.holds(math.inf), NOT_NEGATIVE.holds(math.inf), ACCURACY.holds(1)) == (False, False, True)
