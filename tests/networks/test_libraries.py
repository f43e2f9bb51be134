"""The library of matrix products: measured once for a machine, and kept by a run that continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from li2_lightning.errors import Interrupted
from li2_lightning.networks import libraries
from li2_lightning.networks.libraries import MARGIN, ONEDNN, TORCH, explain_library, library, ratio, use_library
from tests.callbacks.test_checkpoint import InterruptAt


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of this test, and a process that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ratio.cache_clear()
    use_library(None)
    yield
    ratio.cache_clear()
    use_library(None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The ratios that measurements give, one after the other."""
    results: list[float] = []
    monkeypatch.setattr(libraries, "_measure", lambda: results.pop(0))
    return results


@pytest.mark.parametrize(("value", "faster"), [(0.4, ONEDNN), (MARGIN, TORCH), (1.3, TORCH)])
def test_the_faster_library_is_used_and_doctor_says_why(measured: list[float], value: float, faster: str) -> None:
    measured.append(value)
    assert library() == faster
    name = "oneDNN" if faster == ONEDNN else "torch's own"
    assert explain_library().startswith(f"{name}, because oneDNN takes {value:.2f} of the time of torch's own here")


def test_a_later_process_of_the_machine_does_not_measure_again(measured: list[float], tmp_path: Path) -> None:
    measured.append(0.5)
    assert library() == library() == ONEDNN
    ratio.cache_clear()
    assert library() == ONEDNN
    assert measured == []
    assert list(json.loads((tmp_path / "cache" / "li2_lightning" / "products.json").read_text()).values()) == [0.5]


@pytest.mark.parametrize("change", ["ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "processor"])
def test_another_machine_or_instruction_set_is_measured_by_itself(
    measured: list[float], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    measured += [0.5, 1.5]
    assert library() == ONEDNN
    ratio.cache_clear()
    if change == "processor":
        monkeypatch.setattr(libraries, "processor", lambda: "another")
    else:
        monkeypatch.setenv(change, "AVX2")
    assert library() == TORCH


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": "b"}', "directory", "file in the way"])
def test_a_cache_that_cannot_be_used_is_no_error(measured: list[float], tmp_path: Path, content: str) -> None:
    measured.append(0.5)
    path = tmp_path / "cache" / "li2_lightning" / "products.json"
    if content == "directory":
        path.mkdir(parents=True)
    elif content == "file in the way":
        (tmp_path / "cache").write_text("a file")
    else:
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert library() == ONEDNN


def test_a_torch_without_the_operator_uses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "onednn", lambda: None)
    use_library(ONEDNN)
    assert library() == TORCH
    assert explain_library() == "torch's own, because this torch has no operator for oneDNN's product"


def test_measuring_leaves_the_threads_and_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    try:
        assert 0.01 < libraries._measure() < 100
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("first", "then"), [(0.5, 1.5), pytest.param(1.5, 0.5, marks=pytest.mark.slow)])
def test_a_run_continues_with_the_library_that_it_began_with(
    tiny_run: Any, make_record: Any, measured: list[float], first: float, then: float, tmp_path: Path
) -> None:
    """The machine's measurement came out otherwise in between, as after its cache was deleted."""
    options = ["max_steps=4", "trainer.precision=32-true", "task.order=31", "network.width=256"]
    record = make_record()
    measured += [first, then]
    with pytest.raises(Interrupted):
        tiny_run(*options, into=record, callbacks=[InterruptAt(2)])
    begun = library()
    ratio.cache_clear()
    (tmp_path / "cache" / "li2_lightning" / "products.json").unlink()
    resumed = tiny_run(*options, "resume=auto")
    assert library() == begun
    assert library() != (ONEDNN if ratio() < MARGIN else TORCH)
    use_library(begun)
    ratio.cache_clear()
    (tmp_path / "cache" / "li2_lightning" / "products.json").unlink()
    measured.append(first)
    whole = tiny_run(*options, f"output_dir={tmp_path / 'whole'}")
    assert resumed.rows == whole.rows
    assert library() == begun
