"""What runs on which device: refusals everywhere, and where there is a CUDA GPU, the numbers of the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

import train
from callbacks import build_callbacks
from li2_lightning import module as li2_module
from li2_lightning.config.checks import load_config
from li2_lightning.errors import InputError
from li2_lightning.measurement.rows import Row, rows_to_host
from li2_lightning.networks.activations import ACTIVATIONS, find_activation
from li2_lightning.networks.kernel import blocked_outputs
from li2_lightning.runs.metrics_csv import read_metrics
from li2_lightning.sweeps import stack
from li2_lightning.trainer import check_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trainer": {"precision": "64-true"}}, "trainer.precision=64-true"),
        ({"network": {"readout": "ridge"}}, "network.readout=ridge"),
        ({"loss": "cross_entropy_float64"}, "loss=cross_entropy_float64"),
        ({}, "callbacks.interaction.enabled=false"),
    ],
    ids=["float64", "ridge readout", "loss", "interaction columns"],
)
def test_mps_refuses_what_needs_float64(values: dict[str, Any], words: str) -> None:
    config = load_config(values)
    callbacks = build_callbacks(config.callbacks)
    check_device("cpu", config, callbacks)
    check_device("cuda", config, callbacks)
    with pytest.raises(InputError, match=r"float64, which mps does not have") as refused:
        check_device("mps", config, callbacks)
    assert words in str(refused.value)


def test_mps_takes_the_rest() -> None:
    config = load_config({"callbacks": {"interaction": {"enabled": False}}})
    check_device("mps", config, build_callbacks(config.callbacks))


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused(accelerator: str, tmp_path: Path) -> None:
    there = torch.backends.mps.is_available() if accelerator == "mps" else torch.cuda.is_available()
    if there or (accelerator == "gpu" and torch.backends.mps.is_available()):
        pytest.skip(f"this machine has {accelerator}")
    with pytest.raises(InputError, match="does not fit this machine"):
        train.run({"output_dir": str(tmp_path), "trainer": {"accelerator": accelerator}})
    assert not list(tmp_path.iterdir())


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_kernel_on_a_gpu_is_that_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    W, V = (torch.randn(*shape, dtype=dtype, generator=draw) for shape in ((14, 32), (32, 7)))
    index = torch.randint(7, (49, 2), generator=draw) + torch.tensor([0, 7])
    found = []
    for device in ("cpu", "cuda"):
        weights = [matrix.to(device).requires_grad_() for matrix in (W, V)]
        outputs = blocked_outputs(*weights, index.to(device), find_activation(name))
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-10, atol=1e-10)


def tiny(folder: Path, accelerator: str, **more: Any) -> dict[str, Any]:
    return {
        "task": {"order": 7},
        "network": {"width": 16},
        "max_steps": 30,
        "output_dir": str(folder / accelerator),
        "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
        "logger": {"mode": "disabled"},
        "trainer": {"accelerator": accelerator, "precision": "64-true"},
        **more,
    }


@needs_gpu
@pytest.mark.parametrize("loss", ["mse", "projected_mse", "cross_entropy"])
def test_a_run_on_a_gpu_measures_what_the_cpu_does(loss: str, tmp_path: Path) -> None:
    cpu, gpu = (
        read_metrics(train.run(tiny(tmp_path, accelerator, loss=loss)).directory / "metrics.csv")
        for accelerator in ("cpu", "cuda")
    )
    assert list(cpu.columns) == list(gpu.columns)
    off = ((gpu - cpu).abs() / cpu.abs().clip(lower=1)).drop(columns="update/eigengap")
    assert float(off.max().max()) < 1e-9


class NoWaiting(lightning.Callback):
    """torch raises where the host waits for the device, between two times that rows are handed over."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        wait_for_the_gpu("error" if 2 <= trainer.global_step < 9 else "default")

    def on_train_end(self, *args: Any) -> None:
        wait_for_the_gpu("default")


def wait_for_the_gpu(mode: str) -> None:
    """What torch does where the host waits for the device."""
    with warnings.catch_warnings():
        # torch calls the mode a prototype.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def train_stack(values: dict[str, Any], runs: int) -> list[Path]:
    """The directories of runs that differ in their seeds, trained together."""
    outcomes = train.run_stack([train.read_config({**values, "seed": seed}) for seed in range(runs)])
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert failures == []
    return [outcome.directory for outcome in outcomes if not isinstance(outcome, Exception)]


@needs_gpu
@pytest.mark.parametrize("runs", [1, 3])
def test_steps_do_not_wait_for_the_gpu(runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "build_callbacks", lambda sections: [NoWaiting(), *build_callbacks(sections)])
    values = tiny(tmp_path, "cuda")
    # These write files of the weights of early rows, or need rows on the host before the weights change.
    values["callbacks"] |= {"checkpoint": {"best": False, "transitions": False}, "snapshots": {"enabled": False}}
    try:
        train_stack(values, runs)
    finally:
        wait_for_the_gpu("default")


@needs_gpu
def test_a_stack_on_a_gpu_measures_what_the_cpu_does_with_one_transfer_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers: list[int] = []

    def count(rows: list[dict[str, Any]]) -> list[Row]:
        transfers.append(len(rows))
        return rows_to_host(rows)

    for module in (stack, li2_module):
        monkeypatch.setattr(module, "rows_to_host", count)
    cpu, gpu = (train_stack(tiny(tmp_path, accelerator), 3) for accelerator in ("cpu", "cuda"))
    assert [rows for rows in transfers if rows] == [3] * (2 * 31)
    for one, other in zip(cpu, gpu, strict=True):
        expected, found = (read_metrics(directory / "metrics.csv") for directory in (one, other))
        off = ((found - expected).abs() / expected.abs().clip(lower=1)).drop(columns="update/eigengap")
        assert float(off.max().max()) < 1e-9
