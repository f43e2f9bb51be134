"""`trainer.extra`: which arguments of Lightning's Trainer a run may have, what they do, and what is refused."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from li2_lightning.config.checks import load_config, read_config
from li2_lightning.config.identity import config_hash
from li2_lightning.errors import InputError
from li2_lightning.trainer import EXTRA, REFUSED, build_trainer

REFUSED_NAMES = [name for names in REFUSED.values() for name in names]
SGD = ("optimizer.hidden.name=sgd", "optimizer.output.name=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0",
       "max_steps=4")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    """`deterministic` and `benchmark` are switches of torch for the whole process."""
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def updates(run: Any) -> list[torch.Tensor]:
    """All weights as one vector, the difference of each two rows."""
    rows = [torch.cat([w.flatten() for _, w in sorted(seen.weights.items())]) for _, seen in sorted(run.seen.items())]
    return [after - before for before, after in itertools.pairwise(rows)]


def test_every_argument_of_lightnings_trainer_is_allowed_or_refused_for_a_reason() -> None:
    arguments = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert arguments == {*EXTRA, *REFUSED_NAMES}
    assert len(EXTRA) + len(REFUSED_NAMES) == len(arguments), "no argument is in two places"


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_what_would_make_rows_wrong_or_fights_a_key_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^trainer\.extra\.{name} is refused: [^{{]+; trainer\.extra takes profiler"):
        build_trainer(load_config({"trainer": {"extra": {name: 1}}}), tmp_path, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_clip_vall": 1}, r"key of trainer\.extra: 'gradient_clip_vall'.* Did you mean 'gradient_clip_val'"),
        ({"profiler": "simpel"}, r"value of trainer\.extra\.profiler: 'simpel'.* Did you mean 'simple'"),
        ({"gradient_clip_val": "much"}, "does not fit Lightning or this machine: .*much"),
        ({"gradient_clip_algorithm": "nrom"}, "does not fit Lightning or this machine: .*nrom"),
        ({"max_time": "soon"}, "does not fit Lightning or this machine: .*soon"),
        ({"max_time": 10}, r"trainer\.extra\.max_time=10 has no unit; write DD:HH:MM:SS"),
    ],
)
def test_a_slip_of_the_hand_is_one_sentence(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build_trainer(load_config({"trainer": {"extra": extra}}), tmp_path, [])


def test_clipping_by_norm_shortens_the_update_and_leaves_the_columns_of_the_gradient(
    tiny_run: Callable[..., Any],
) -> None:
    plain, clipped = tiny_run(*SGD), tiny_run(*SGD, "trainer.extra.gradient_clip_val=0.01")
    assert all(update.norm() > 0.01 for update in updates(plain))
    assert [update.norm().item() for update in updates(clipped)] == pytest.approx([0.5 * 0.01] * 4, rel=1e-4)
    assert clipped.rows[0] == plain.rows[0]
    assert clipped.rows[1]["update/hidden"] < plain.rows[1]["update/hidden"]


def test_clipping_by_value_bounds_each_entry_of_the_update(tiny_run: Callable[..., Any]) -> None:
    extra = "trainer.extra={gradient_clip_val: 1e-4, gradient_clip_algorithm: value}"
    largest = [update.abs().max().item() for update in updates(tiny_run(*SGD, extra))]
    assert largest == pytest.approx([0.5 * 1e-4] * 4, rel=1e-9)


@pytest.mark.parametrize(
    "extra",
    [
        "{profiler: simple}",
        pytest.param("{profiler: advanced}", marks=pytest.mark.slow),
        pytest.param("{profiler: pytorch}", marks=pytest.mark.slow),
        "{detect_anomaly: true}",
        pytest.param("{deterministic: true, benchmark: false}", marks=pytest.mark.slow),
        pytest.param("{benchmark: true}", marks=pytest.mark.slow),
        pytest.param("{enable_model_summary: true}", marks=pytest.mark.slow),
    ],
)
def test_what_only_shows_or_checks_leaves_every_row_and_the_directory_as_they_are(
    extra: str, tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    plain = tiny_run("max_steps=3")
    run = tiny_run("max_steps=3", f"trainer.extra={extra}", f"output_dir={tmp_path / 'extra'}")
    assert run.rows == plain.rows
    assert run.directory.name == plain.directory.name


def test_the_simple_profiler_shows_where_a_step_spends_its_time(
    tiny_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run("max_steps=3", "trainer.extra.profiler=simple")
    table = capsys.readouterr().out.partition("% of the epoch")[2]
    cells = [line.split() for line in table.splitlines()]
    shown = {words[-1]: words for words in cells if words and words[0].replace(".", "").isdecimal()}
    assert {"[Strategy]SingleDeviceStrategy.backward", "[Callback]Gradient.on_step_state"} <= set(shown)
    assert shown["run_training_epoch"][:2] == ["100.0", "1"]
    assert shown["[Callback]Gradient.on_step_state"][1] == "4", "one call for each row"
    assert 5 < len(shown) <= 20


def test_the_advanced_profiler_writes_into_the_run_directory(tiny_run: Callable[..., Any]) -> None:
    directory = tiny_run("max_steps=2", "trainer.extra.profiler=advanced").directory
    assert "cumulative time" in (directory / "fit-profile.txt").read_text()


@pytest.mark.parametrize(("steps", "rows"), [("2", [0, 1, 2]), pytest.param("true", [0, 1], marks=pytest.mark.slow)])
def test_fast_dev_run_ends_after_its_steps_in_a_directory_of_its_own(
    steps: str, rows: list[int], tiny_run: Callable[..., Any]
) -> None:
    plain, fast = tiny_run("max_steps=3"), tiny_run("max_steps=3", f"trainer.extra.fast_dev_run={steps}")
    assert fast.column("step") == rows
    assert fast.rows[0] == plain.rows[0]
    assert fast.directory != plain.directory


def test_max_time_ends_a_run_with_a_last_row(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("trainer.extra.max_time='00:00:00:00'", "callbacks.checkpoint.every_n_steps=1")
    assert run.column("step")[0] == 0
    assert len(run.rows) < 11
    last = torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["li2_lightning"]["row"] == run.rows[-1]["step"]


def test_only_what_changes_numbers_changes_the_hash() -> None:
    def hashed(**extra: Any) -> str:
        return config_hash(read_config({"trainer": {"extra": extra}}))

    assert hashed(profiler="simple", detect_anomaly=True, deterministic=True, benchmark=True) == hashed()
    different = [hashed(gradient_clip_val=1.0), hashed(gradient_clip_val=2.0), hashed(fast_dev_run=True),
                 hashed(max_time="00:00:01:00")]  # fmt: skip
    assert len({*different, hashed()}) == 5
