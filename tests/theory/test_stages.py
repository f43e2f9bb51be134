"""The stage rule on made-up series: when it fires, when it must not, and what it leaves as evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from li2_lightning.theory.stages import PEAK, StageTracker, Thresholds

Row = dict[str, float | None]
NAN = float("nan")


def row(
    independence: float | None,
    coupling: float | None,
    accuracy: float | None = 1.0,
    energy: float | None = 1.0,
    purity: float | None = 0.2,
) -> Row:
    return {
        "train/accuracy": accuracy,
        "gradient/independence": independence,
        "gradient/coupling": coupling,
        "energy/mean": energy,
        "features/purity": purity,
    }


LAZY, INDEPENDENT, COUPLED = row(0.1, 0.1), row(0.9, 0.9), row(0.6, 0.7)


def feed(tracker: StageTracker, rows: Iterable[Row], start: int = 0) -> list[int]:
    """Feed the rows; the stage after each of them."""
    stages = []
    for step, values in enumerate(rows, start=start):
        tracker.update(step, values)
        stages.append(tracker.stage)
    return stages


def in_stage_two(**options: object) -> StageTracker:
    """A tracker that has declared stage II at row 4, with a peak of .9."""
    tracker = StageTracker(**options)  # type: ignore[arg-type]
    feed(tracker, [INDEPENDENT] * 5)
    assert tracker.stage == 2
    return tracker


def test_both_transitions_are_declared_at_the_fifth_agreeing_row() -> None:
    tracker = StageTracker()
    stages = feed(tracker, [LAZY] * 3 + [INDEPENDENT] * 7 + [COUPLED] * 6)
    assert stages == [1] * 7 + [2] * 7 + [3] * 2
    first, second = tracker.transitions
    assert (first.source, first.target, first.first_step, first.step, first.lag) == (1, 2, 3, 7, 4)
    assert (second.source, second.target, second.first_step, second.step, second.lag) == (2, 3, 10, 14, 4)
    assert first.evidence == {**INDEPENDENT, PEAK: 0.9}
    assert second.evidence == {**COUPLED, PEAK: 0.9}
    assert first.caveat is second.caveat is None
    assert not tracker.stalled


def test_a_transition_is_plain_json_with_the_keys_of_stages_json() -> None:
    tracker = in_stage_two()
    document = json.loads(json.dumps(tracker.transitions[0].to_dict()))
    assert document == {
        "from": 1,
        "to": 2,
        "step": 4,
        "first_step": 0,
        "lag": 4,
        "evidence": {**INDEPENDENT, "peak of gradient/independence": 0.9},
        "caveat": None,
    }


@pytest.mark.parametrize(
    ("edge", "outside"),
    [(row(0.5, 0.0, 0.99), row(0.499, 0.0, 0.99)), (row(0.5, 0.0, 0.99), row(0.5, 0.0, 0.989))],
    ids=["independence", "train accuracy"],
)
def test_stage_two_begins_on_both_thresholds_and_not_below_either(edge: Row, outside: Row) -> None:
    assert feed(StageTracker(), [outside] * 9)[-1] == 1
    assert feed(StageTracker(), [edge] * 5)[-1] == 2


@pytest.mark.parametrize(
    "outside",
    [row(0.7201, 0.9), row(0.6, 0.649), row(0.6, 0.3)],
    ids=["independence has not fallen below .8 of .9", "the lead is short of .05", "coupling is behind"],
)
def test_stage_three_needs_the_fall_and_the_lead(outside: Row) -> None:
    assert feed(in_stage_two(), [outside] * 20)[-1] == 2
    assert feed(in_stage_two(), [row(0.7199, 0.77)] * 5)[-1] == 3


@pytest.mark.parametrize("stage", [1, 2])
def test_one_row_against_it_starts_the_count_anew(stage: int) -> None:
    tracker, agrees, against = {1: (StageTracker(), INDEPENDENT, LAZY), 2: (in_stage_two(), COUPLED, INDEPENDENT)}[
        stage
    ]
    assert feed(tracker, ([agrees] * 4 + [against]) * 5, start=10)[-1] == stage
    assert feed(tracker, [agrees] * 5, start=35)[-2:] == [stage, stage + 1]
    assert tracker.transitions[-1].first_step == 35


@pytest.mark.parametrize("missing", [None, NAN])
@pytest.mark.parametrize("stage", [1, 2])
def test_an_undefined_row_neither_agrees_nor_breaks_a_streak(stage: int, missing: float | None) -> None:
    tracker, agrees = {1: (StageTracker(), INDEPENDENT), 2: (in_stage_two(), COUPLED)}[stage]
    holes = [row(missing, 0.7), row(0.6, missing), row(0.6, 0.7, missing), {}]
    stages = feed(tracker, [agrees, *holes, agrees, agrees, *holes, agrees, agrees], start=10)
    assert stages == [stage] * 12 + [stage + 1]
    assert (tracker.transitions[-1].first_step, tracker.transitions[-1].lag) == (10, 12)


def test_the_peak_is_that_of_all_rows_so_far() -> None:
    tracker = StageTracker()
    feed(tracker, [row(0.8, 0.8, 0.5), *[row(0.6, 0.6)] * 5])
    assert tracker.transitions[0].evidence[PEAK] == 0.8
    assert feed(tracker, [row(0.65, 0.75)] * 9)[-1] == 2
    feed(tracker, [row(0.9, 0.9)])
    assert feed(tracker, [row(0.65, 0.75)] * 5)[-1] == 3
    assert tracker.transitions[1].evidence[PEAK] == 0.9


def test_the_stage_never_goes_back_and_three_is_the_last() -> None:
    tracker = in_stage_two()
    assert feed(tracker, [COUPLED] * 5 + [INDEPENDENT] * 20 + [LAZY] * 20)[4:] == [3] * 41
    assert len(tracker.transitions) == 2


def test_a_run_that_loses_both_alignments_is_stalled_in_stage_two() -> None:
    """The default run without weight decay: independence .9 → .03, coupling below zero."""
    tracker = in_stage_two()
    assert not tracker.stalled
    fall = [row(0.9 - 0.02 * t, 0.9 - 0.025 * t) for t in range(44)]
    assert feed(tracker, fall)[-1] == 2
    assert tracker.stalled
    feed(tracker, [row(0.3, 0.36)])
    assert not tracker.stalled


def test_a_run_that_never_memorized_is_not_stalled() -> None:
    tracker = StageTracker()
    feed(tracker, [row(0.0, 0.0, 0.5)] * 50)
    assert not tracker.stalled


def test_without_an_equilibrium_the_lead_still_counts_with_the_caveat() -> None:
    tracker = in_stage_two(equilibrium_caveat="no equilibrium here")
    assert tracker.transitions[0].caveat is None
    feed(tracker, [COUPLED] * 5)
    assert (tracker.stage, tracker.transitions[-1].caveat) == (3, "no equilibrium here")


def test_without_an_equilibrium_v_may_fit_after_independence_has_come_and_gone() -> None:
    series = [row(0.6, 0.6, 0.4)] * 3 + [row(0.2, 0.1, 0.5)] * 3 + [row(0.1, 0.1)] * 5
    tracker = StageTracker(equilibrium_caveat="no equilibrium here")
    assert feed(tracker, series)[-2:] == [1, 2]
    caveat = tracker.transitions[0].caveat
    assert caveat is not None
    assert caveat.startswith("no equilibrium here; independence peaked before")
    assert feed(StageTracker(), series)[-1] == 1
    never = [row(0.499, 0.6, 0.4)] * 3 + [row(0.1, 0.1)] * 9
    assert feed(StageTracker(equilibrium_caveat="no equilibrium here"), never)[-1] == 1


def grown(energy: float | None, purity: float | None) -> Row:
    """Independence has fallen, coupling does not lead, features are at these multiples of theirs at the fall."""
    return row(0.5, 0.4, energy=energy, purity=None if purity is None else 0.2 * purity)


def test_without_an_equilibrium_stage_three_is_read_from_energy_and_purity_growing_after_the_fall() -> None:
    tracker = in_stage_two(equilibrium_caveat="no equilibrium here")
    series = [grown(1, 1)] * 3 + [grown(1.49, 1.7), grown(1.7, 1.49)] * 5 + [grown(1.5, 1.51)] * 5
    assert feed(tracker, series) == [2] * 17 + [3]
    caveat = tracker.transitions[-1].caveat
    assert caveat is not None
    assert caveat.startswith("no equilibrium here; read from the growth of the features")


def test_growth_says_nothing_where_an_equilibrium_is_predicted() -> None:
    assert feed(in_stage_two(), [grown(1, 1)] * 3 + [grown(9, 4)] * 20)[-1] == 2


def test_growth_counts_from_the_last_fall_of_independence() -> None:
    tracker = in_stage_two(equilibrium_caveat="no equilibrium here")
    feed(tracker, [grown(1, 1), row(0.85, 0.8, energy=2.0, purity=0.4), grown(2, 2)])
    assert feed(tracker, [grown(2.9, 2.9)] * 9)[-1] == 2
    assert feed(tracker, [grown(3.01, 3.01)] * 5)[-1] == 3


def test_growth_is_that_of_energy_alone_where_there_is_no_purity() -> None:
    tracker = in_stage_two(equilibrium_caveat="no equilibrium here")
    assert feed(tracker, [grown(1, None)] * 3 + [grown(1.51, None)] * 5)[-1] == 3


def test_rows_between_those_that_measure_the_features_do_not_break_a_streak_of_growth() -> None:
    """Energy and purity every third row, the gradient every row."""
    tracker = in_stage_two(equilibrium_caveat="no equilibrium here")
    between = [grown(None, None)] * 2
    series = between + ([grown(1, 1), *between] * 2) + [grown(1.6, 1.6), *between] * 5
    stages = feed(tracker, series, start=5)
    assert stages == [2] * 20 + [3] * 3


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_saved_tracker_goes_on_as_if_it_had_not_stopped(cut: int) -> None:
    """Also in the middle of a streak, and with a fall on record."""
    rows = [LAZY, *[INDEPENDENT] * 6, row(0.95, 0.9), *[grown(1, 1)] * 2, INDEPENDENT, *[grown(2, 2)] * 2]
    rows += [grown(2.9, 3.1)] * 2 + [grown(3.1, 3.1)] * 8
    whole = StageTracker(equilibrium_caveat="caveat")
    feed(whole, rows)
    assert whole.stage == 3
    before = StageTracker(equilibrium_caveat="caveat")
    feed(before, rows[:cut])
    after = StageTracker(equilibrium_caveat="caveat")
    after.load_state_dict(before.state_dict())
    feed(after, rows[cut:], start=cut)
    assert after == whole


def test_the_thresholds_are_options() -> None:
    assert feed(StageTracker(Thresholds(rows=2)), [INDEPENDENT] * 2) == [1, 2]
    assert feed(StageTracker(Thresholds(independence=0.95)), [INDEPENDENT] * 9)[-1] == 1
    strict = StageTracker(Thresholds(coupling_lead=0.2))
    assert feed(strict, [INDEPENDENT] * 5 + [COUPLED] * 9)[-1] == 2
