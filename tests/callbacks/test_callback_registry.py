"""Which callbacks a run has, in which order; the base of those that measure; the contract of a plug-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from omegaconf import OmegaConf

import callbacks
import train
from callbacks import CALLBACKS, build_callbacks, with_defaults
from callbacks.diagnostic import Cadence, Diagnostic
from li2_lightning.errors import InputError
from li2_lightning.plugins import options_of

OURS = [
    "gradient",
    "gram",
    "energy",
    "features",
    "interaction",
    "updates",
    "stages",
    "progress",
    "pictures",
    "snapshots",
    "checkpoint",
    "report",
]


def names(sections: dict[str, Any]) -> list[str]:
    by_class = {CALLBACKS.find(name): name for name in OURS}
    return [by_class.get(type(callback), type(callback).__name__) for callback in build_callbacks(sections)]


def test_every_callback_of_ours_is_on_and_in_its_place() -> None:
    assert set(OURS) <= set(CALLBACKS.names())
    assert names({}) == OURS


def test_a_section_may_switch_one_off_or_set_its_options() -> None:
    assert names({"gram": {"enabled": False}, "report": {"enabled": False}}) == [
        name for name in OURS if name not in ("gram", "report")
    ]
    gram = build_callbacks({"gram": {"enabled": True, "sampled_columns": 7}})[1]
    assert gram.sampled_columns == 7  # type: ignore[attr-defined]


def test_a_plug_in_comes_after_what_measures_and_before_what_keeps() -> None:
    order = names({"lightning:Callback": {}})
    assert order.index("stages") + 1 == order.index("Callback") == order.index("progress") - 1
    assert "Callback" not in names({"lightning:Callback": {"enabled": False}})


def test_a_label_may_stand_for_a_name() -> None:
    assert names({"mine": {"name": "lightning:Callback"}}) == names({"lightning:Callback": {}})
    twice = names({"a": {"name": "lightning:Callback"}, "b": {"name": "lightning:Callback"}})
    assert twice.count("Callback") == 2


def test_equal_settings_look_equal_with_their_defaults() -> None:
    complete = with_defaults({})
    assert list(complete) == OURS
    assert complete["checkpoint"] == {
        "enabled": True, "every_n_steps": 100, "keep": 2, "best": True, "transitions": True, "resumable": False
    }  # fmt: skip
    assert complete["stages"]["independence"] == 0.5
    assert with_defaults(complete) == complete
    assert with_defaults({"gram": {"every_n_steps": 1}, "energy": {}}) == complete
    off = with_defaults({"gram": {"enabled": False}})
    assert off["gram"] == {"enabled": False}
    assert with_defaults({"gram": {"enabled": False, "sampled_columns": 9}}) == off != complete
    mine = with_defaults({"mine": {"name": "tests.callbacks.test_callback_registry:DeadNodes"}})["mine"]
    assert mine == {"name": "tests.callbacks.test_callback_registry:DeadNodes", "enabled": True, "every_n_steps": 1}


def test_the_defaults_of_the_command_line_are_those_of_the_callbacks() -> None:
    """configs/callbacks/default.yaml shows them; were one to differ, it and a notebook would train different runs."""
    shown = OmegaConf.to_container(OmegaConf.load(Path(train.__file__).parent / "configs/callbacks/default.yaml"))
    assert shown == with_defaults({})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"energi": {}}, r"Unknown callback 'energi'; known are checkpoint, .*Did you mean 'energy'\?"),
        ({"energi": {"enabled": False}}, r"Unknown callback 'energi'"),
        ({"energy": {"every": 3}}, r"'energy' has no option 'every' \(from callbacks\.energy\.every\); it takes every"),
        ({"energy": {"enabled": False, "every": 3}}, r"'energy' has no option 'every'"),
        ({"energy": {"enabled": "yes"}}, r"callbacks\.energy\.enabled='yes' does not fit; it is true or false"),
        ({"energy": {"every_n_steps": 0}}, r"callbacks\.energy\.every_n_steps=0 does not fit"),
        ({"fractions:Fraction": {}}, r"'fractions:Fraction' gave a Fraction, not a lightning\.\S+\.Callback\."),
        ({"no_such:Thing": {}}, r"The callback 'no_such:Thing' could not be imported"),
        ({"mine": {"name": "no_such:Thing"}}, r"The callback 'no_such:Thing' could not be imported"),
        ({"mine": {"name": 3}}, r"callbacks\.mine\.name=3 does not fit"),
        ({"mine": {"name": "lightning:Callback", "loud": 1}}, r"from callbacks\.mine\.loud"),
        ({"energy": {"name": "lightning:Callback"}}, r"would replace a callback of ours"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_callbacks(sections)


@pytest.mark.parametrize(
    ("every", "rows", "due"),
    [
        (1, range(4), [0, 1, 2, 3]),
        (10, range(31), [0, 10, 20, 30]),
        (10, range(0, 50, 7), [0, 14, 21, 35, 42]),
        (3, [0, 4, 5, 6, 20, 21, 23], [0, 4, 6, 20, 21]),
        (100, [0, 7], [0]),
    ],
)
def test_due_is_row_0_and_the_first_row_at_or_after_each_multiple(every: int, rows: Any, due: list[int]) -> None:
    cadence = Cadence("probe.every_n_steps", every)
    assert [row for row in rows if cadence.due(row)] == due


CADENCES = [
    (name, option)
    for name in CALLBACKS
    for option in options_of(CALLBACKS.find(name))[0]
    if option.endswith("every_n_steps")
]


def test_every_cadence_of_a_callback_is_a_number_or_a_log_scale() -> None:
    assert {"missing", "spectra", "circuits", "snapshots", "checkpoint"} < {name for name, _ in CADENCES}
    for name, option in CADENCES:
        written = {value: with_defaults({name: {option: value}})[name][option] for value in (7, "log", "log10", "log5")}
        assert written == {7: 7, "log": "log", "log10": "log", "log5": "log5"}
        build_callbacks({name: {option: "log5"}})
        with pytest.raises(InputError, match=rf"^callbacks\.{name}\.{option}='logg' does not fit; it is an integer of"):
            build_callbacks({name: {option: "logg"}})


class DeadNodes(Diagnostic):
    """The example that `callbacks` gives: share of the nodes that no row drives."""

    def measure(self, module: Any, state: Any) -> dict[str, Any]:
        return {"features/dead": (state.features == 0).all(dim=0).float().mean(), "features/undefined": torch.nan}


def test_a_plug_ins_columns_stand_in_the_rows_that_are_due(tiny_run: Any) -> None:
    assert "class DeadNodes(Diagnostic)" in (callbacks.__doc__ or "")
    run = tiny_run("network.activation=relu", "max_steps=5", callbacks=[DeadNodes(every_n_steps=2)])
    due = [row for row in run.rows if row["features/dead"] is not None]
    assert [row["step"] for row in due] == [0, 2, 4, 5]
    for row in due:
        assert row["features/dead"] == (run.seen[int(row["step"])].features == 0).all(dim=0).double().mean()
    assert "features/undefined" not in run.rows[0]


class MoreDeadNodes(DeadNodes):
    """The same columns."""


def test_two_callbacks_with_one_column_are_an_error_that_names_it(tiny_run: Any) -> None:
    with pytest.raises(ValueError, match="'features/dead' is logged twice in row 0"):
        tiny_run("max_steps=1", callbacks=[DeadNodes(), MoreDeadNodes()])


class Order(lightning.Callback):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def on_step_state(self, trainer: Any, module: Any, state: Any) -> None:
        assert "train/loss" in state.columns
        assert "gradient/norm" in state.columns
        self.told.append(("state", state.step))

    def on_row(self, trainer: Any, module: Any, row: dict[str, Any]) -> None:
        row["mine/row"] = 7.0
        self.told.append(("row", int(row["step"])))

    def on_last_row(self, trainer: Any, module: Any) -> None:
        self.told.append(("last", trainer.global_step))


def test_each_row_is_measured_then_handed_over_once_and_what_is_added_there_is_kept(tiny_run: Any) -> None:
    order = Order()
    run = tiny_run("max_steps=3", callbacks=[order])
    assert order.told == [(what, t) for t in range(4) for what in ("state", "row")] + [("last", 3)]
    assert run.column("mine/row") == [7.0] * 4
