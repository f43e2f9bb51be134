"""Stages of a run: the column, stages.json, the hook, and what the run says of its equilibrium."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import lightning
import pytest

from callbacks.registry import CALLBACKS
from callbacks.stages import Stages, no_equilibrium, stages_document
from li2_lightning.errors import InputError
from li2_lightning.theory.stages import StageTracker, Thresholds, Transition

# Everything agrees: II at the fifth row, III at the fifth after it.
ALWAYS = "callbacks.stages={train_accuracy: 0, independence: -1, independence_fall: 9, coupling_lead: -2}"
# The gradient's cosines are defined and positive from row 0 on.
OPTIONS = ["loss=projected_mse", "optimizer.lr=0.01", "max_steps=14", "network.width=32"]


class Listener(lightning.Callback):
    """Hears of transitions, and sees the stage in the row."""

    def __init__(self) -> None:
        self.heard: list[Transition] = []
        self.stages: list[float] = []

    def on_stage_transition(self, trainer: Any, module: Any, transition: Transition) -> None:
        self.heard.append(transition)

    def on_row(self, trainer: Any, module: Any, row: dict[str, float]) -> None:
        self.stages.append(row["stage/index"])


def test_a_run_records_its_transitions_with_the_evidence_of_their_rows(tiny_run: Any) -> None:
    listener = Listener()
    run = tiny_run(*OPTIONS, ALWAYS, callbacks=[listener])
    document = json.loads((run.directory / "stages.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert [(e["from"], e["to"], e["step"] - e["first_step"], e["lag"]) for e in document["events"]] == [
        (1, 2, 4, 4),
        (2, 3, 4, 4),
    ]
    first, second = (event["step"] for event in document["events"])
    assert run.column("stage/index") == [1 + (t >= first) + (t >= second) for t in range(15)] == listener.stages
    for event in document["events"]:
        row = run.rows[event["step"]]
        evidence = dict(event["evidence"])
        peak = evidence.pop("peak of gradient/independence", None)
        assert evidence == {name: row[name] for name in evidence}
        assert {"train/accuracy", "gradient/independence", "gradient/coupling", "energy/mean"} <= set(evidence)
    assert peak == max(run.column("gradient/independence")[first : second + 1])
    assert [transition.to_dict() for transition in listener.heard] == document["events"]


def test_a_run_without_a_transition_says_so_and_stays_in_stage_one(tiny_run: Any) -> None:
    run = tiny_run("max_steps=3")
    document = json.loads((run.directory / "stages.json").read_text(encoding="utf-8"))
    assert document == {"schema_version": 1, "stalled": False, "events": []}
    assert run.column("stage/index") == [1, 1, 1, 1]


def test_without_the_gradient_callback_no_transition_is_declared(tiny_run: Any) -> None:
    run = tiny_run(*OPTIONS, ALWAYS, "callbacks.gradient.enabled=false")
    assert set(run.column("stage/index")) == {1}


def test_a_stalled_run_is_called_stalled_in_stages_json_and_keeps_stage_two(tiny_run: Any) -> None:
    """II at once; then every row is below a stalled_alignment of 2, and none leads by 2."""
    run = tiny_run(
        *OPTIONS,
        "callbacks.stages={train_accuracy: 0, independence: -1, independence_fall: 9, coupling_lead: 3, "
        "stalled_alignment: 2}",
    )
    document = json.loads((run.directory / "stages.json").read_text(encoding="utf-8"))
    assert document["stalled"] is True
    assert [event["to"] for event in document["events"]] == [2]
    assert run.column("stage/index")[-1] == 2


EXTRA = pytest.mark.skipif(find_spec("pytorch_optimizer") is None, reason="the optional extra is not installed")


@pytest.mark.parametrize(
    ("overrides", "caveat"),
    [
        ([], None),
        (["optimizer.weight_decay=0"], None),
        (["optimizer.hidden={name: adamw}"], None),
        (["optimizer.hidden={name: muon}"], None),
        (["optimizer.output={name: sgd}"], None),
        (["optimizer.output={name: adamw}", "optimizer.weight_decay=0"], None),
        (["network.readout=ridge", "optimizer.hidden={name: adamw}"], None),
        (["loss=cross_entropy"], "the loss CrossEntropy has no ridge equilibrium"),
        (["loss=stablemax"], "the loss StableMax has no ridge equilibrium"),
        (["loss=projected_mse"], None),
        (["optimizer.output={name: adamw}"], "decoupled weight decay of V has no ridge equilibrium"),
        (["optimizer.output={name: muon}"], "decoupled weight decay of V has no ridge equilibrium"),
        (["optimizer.output={name: radam, decoupled_weight_decay: true}"], "decoupled weight decay of V has no ridge"),
        (["optimizer.output={name: adafactor}"], "decoupled weight decay of V has no ridge equilibrium"),
        (["optimizer.output={name: slow_gradients, inner: muon}"], "decoupled weight decay of V has no ridge equilib"),
        pytest.param(["optimizer.output={name: lion}"], "decoupled weight decay of V has no ridge", marks=EXTRA),
        pytest.param(["optimizer.output={name: lion, weight_decouple: false}"], None, marks=EXTRA),
        pytest.param(["optimizer.output={name: soap}"], "decoupled weight decay of V has no ridge", marks=EXTRA),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_the_caveat_is_there_where_v_has_no_ridge_equilibrium(
    tiny_run: Any, overrides: list[str], caveat: str | None
) -> None:
    module = tiny_run(*overrides, "max_steps=1").module
    found = no_equilibrium(module)
    assert found is None if caveat is None else (found or "").startswith(caveat)


def test_the_caveat_stands_in_stages_json(tiny_run: Any) -> None:
    run = tiny_run(*OPTIONS, ALWAYS, "optimizer.output={name: adamw}")
    events = json.loads((run.directory / "stages.json").read_text(encoding="utf-8"))["events"]
    assert [event["caveat"] for event in events] == [None, "decoupled weight decay of V has no ridge equilibrium"]


def test_the_options_are_the_thresholds_and_others_are_refused_with_their_names() -> None:
    callback = CALLBACKS.build("stages", "callbacks.stages", {"rows": 3, "coupling_lead": 0.2})
    assert callback.tracker.thresholds == Thresholds(rows=3, coupling_lead=0.2)
    with pytest.raises(
        InputError, match=r"no option 'row' .*it takes rows=5, train_accuracy=0\.99, .*Did you mean 'rows'"
    ):
        CALLBACKS.build("stages", "callbacks.stages", {"row": 3})


@pytest.mark.parametrize(
    ("option", "value"),
    [("rows", 0), ("rows", "five"), ("rows", 2.5), ("rows", True), ("independence", "high"), ("coupling_lead", None)],
)
def test_a_threshold_that_is_no_number_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.stages\.{option}={value!r} does not fit"):
        Stages(**{option: value})


def test_the_document_is_plain_json() -> None:
    event = Transition(1, 2, 9, 5, {"train/accuracy": 1.0}, "a caveat")
    lost = {"gradient/independence": 0.1, "gradient/coupling": 0.1}
    tracker, layer = StageTracker(stage=2, transitions=[event], last=lost, peak=0.9), StageTracker(layer=1)
    assert json.loads(json.dumps(stages_document(tracker, [layer]))) == {
        "schema_version": 1,
        "stalled": True,
        "layers": [{"stalled": False, "events": []}],
        "events": [
            {"from": 1, "to": 2, "step": 9, "first_step": 5, "lag": 4, "evidence": {"train/accuracy": 1.0},
             "caveat": "a caveat"}
        ],
    }  # fmt: skip
