"""Which runs of a sweep are trained together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from omegaconf import OmegaConf

import train
from li2_lightning.distributed.machine import Memory, memory_for
from li2_lightning.sweeps.plan import Job
from li2_lightning.sweeps.stacking import automatic, describe, kind, obstacle, stacks

GIGABYTE = 2**30


def job(*overrides: str) -> Job:
    values = OmegaConf.merge({"task": {"order": 7}, "network": {"width": 8}}, OmegaConf.from_dotlist(list(overrides)))
    return Job(list(overrides), " ".join(overrides), Path("-".join(overrides) or "none"), train.read_config(values))


def config(*overrides: str) -> Any:
    return job(*overrides).config


@pytest.mark.parametrize(
    "override",
    [
        "seed=3",
        "data.seed=5",
        "optimizer.lr=0.5",
        "optimizer.weight_decay=0",
        "optimizer.hidden.betas=[0.8,0.9]",
        "network.output_scale=2",
        "network.readout_init_scale=0.1",
        "network.hidden_init_scale=3",
        "stop_at_test_accuracy=0.5",
        "stack=4",
    ],
)
def test_runs_that_differ_in_a_number_are_of_one_kind(override: str) -> None:
    assert kind(config(override)) == kind(config())


@pytest.mark.parametrize(
    "override",
    [
        "task.order=8",
        "network.width=9",
        "max_steps=7",
        "loss=cross_entropy",
        "data.batch_size=4",
        "data.train_fraction=0.5",
        "optimizer.hidden.name=muon",
        "network.activation=relu",
        "callbacks.gram.exact=true",
        "scheduler.name=cosine",
        "trainer.precision=64-true",
        "optimizer.hidden.amsgrad=true",
    ],
)
def test_runs_of_other_shapes_or_other_plug_ins_are_of_another_kind(override: str) -> None:
    assert kind(config(override)) != kind(config())


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("network.name=transformer", "network.activation=relu"), "network.name=transformer"),
        (("trainer.compile=true",), "trainer.compile=true"),
        (("trainer.devices=2",), "trainer.devices=2"),
        (("trainer.precision=16-mixed",), "trainer.precision=16-mixed"),
        (("trainer.extra.gradient_clip_val=1",), "trainer.extra.gradient_clip_val"),
    ],
)
def test_what_cannot_be_stacked_has_a_reason(overrides: tuple[str, ...], reason: str) -> None:
    assert obstacle(config(*overrides)) == reason
    assert obstacle(config()) is None


def test_kinds_are_divided_into_stacks_of_even_size_and_processes_share_them() -> None:
    jobs = [job(f"seed={seed}", "stack=4") for seed in range(10)] + [job("network.width=9")]
    sizes = [[len(stack) for stack in stacks(jobs, processes)] for processes in (1, None, 2, 11)]
    assert sizes[0] == sizes[1] == [3, 3, 4, 1]
    assert sizes[2] == [3, 3, 4, 1]
    assert sizes[3] == [1] * 11
    assert sorted(own.label for stack in stacks(jobs, 2) for own in stack) == sorted(own.label for own in jobs)


def test_auto_fits_the_memory_and_leaves_large_runs_of_a_cpu_alone() -> None:
    small, large = config("task.order=31", "network.width=64"), config("task.order=71", "network.width=2048")
    assert automatic(small, Memory(8 * GIGABYTE, on_gpu=False)) == 32
    assert 1 <= automatic(small, Memory(GIGABYTE // 64, on_gpu=False)) < 32
    assert automatic(large, Memory(64 * GIGABYTE, on_gpu=False)) == 1
    assert automatic(small, Memory(80 * GIGABYTE, on_gpu=True)) == 128
    assert [automatic(large, Memory(80 * GIGABYTE, on_gpu=True), processes) for processes in (1, 2, 8)] == [46, 23, 5]


@pytest.mark.parametrize(
    ("accelerator", "memory"),
    [("cpu", None), ("auto", None), ("gpu", Memory(2**34, True)), ("cuda", Memory(2**34, True))],
)
def test_the_memory_of_a_run_is_that_of_its_device(
    accelerator: str, memory: Memory | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpu in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(gpu, "is_available", staticmethod(lambda: False))
    found = memory_for(config(f"trainer.accelerator={accelerator}"))
    assert found == memory or (memory is None and not found.on_gpu and found.size > GIGABYTE)
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=7))
    expected = found if accelerator == "cpu" else Memory(7, on_gpu=True)
    assert memory_for(config(f"trainer.accelerator={accelerator}")) == expected


def test_the_opening_says_how_many_runs_are_together_and_why_others_are_not() -> None:
    jobs = [job(f"seed={seed}") for seed in range(5)] + [
        job("trainer.compile=true"),
        job("stack=1"),
        job("max_steps=9"),
    ]
    assert describe(stacks(jobs, 1)) == (
        "5 runs in 1 stack; 1 by itself (trainer.compile=true); 1 by itself (stack=1); "
        "1 by itself (no other run of its shape, or a large one)"
    )
    assert describe(stacks(jobs[5:], 1)) == ""
