"""What is refused before a second process starts: ranks without room, and plug-ins that only this process knows."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from callbacks import CALLBACKS
from li2_lightning.config.checks import load_config
from li2_lightning.config.identity import config_hash
from li2_lightning.distributed import launcher
from li2_lightning.distributed import machine as machine_module
from li2_lightning.distributed.machine import CUDAAccelerator, MPSAccelerator, use_threads
from li2_lightning.errors import InputError, OtherRankError
from li2_lightning.losses import LOSSES
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.networks.base import NETWORKS
from li2_lightning.runs.metrics_csv import read_metrics
from li2_lightning.tasks.tasks import TASKS
from optimizers import OPTIMIZERS, SCHEDULES


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``refused(key=value, …)``: the sentence that a run is refused with; no process starts and nothing is written."""

    def start(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    def run(values: dict[str, Any]) -> str:
        values = {
            "task": {"order": 7},
            "network": {"width": 8},
            "output_dir": str(tmp_path / "outputs"),
            "logger": {"mode": "disabled"},
            **values,
        }
        with monkeypatch.context() as patch:
            patch.setattr(launcher, "start_processes", start)
            with pytest.raises(InputError) as error:
                train.run(values)
        assert not (tmp_path / "outputs").exists()
        return str(error.value)

    return run


def machine(monkeypatch: pytest.MonkeyPatch, cores: int = 2, cuda: int = 0, mps: int = 0) -> None:
    monkeypatch.setattr(machine_module, "usable_cores", lambda: cores)
    for kind, count in ((CUDAAccelerator, cuda), (MPSAccelerator, mps)):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda count=count: count > 0))
        monkeypatch.setattr(kind, "auto_device_count", staticmethod(lambda count=count: count))


@pytest.mark.parametrize(
    ("there", "trainer", "words"),
    [
        ({}, {"devices": 3, "accelerator": "cpu"}, "the CPU cores of this node that the run may use, 2"),
        ({"cuda": 8}, {"devices": 3, "accelerator": "cpu"}, "the CPU cores of this node that the run may use, 2"),
        ({"cores": 1}, {"devices": 2}, "the CPU cores of this node that the run may use, 1"),
        ({"cores": 64}, {"devices": 99}, "the CPU cores of this node that the run may use, 64"),
        ({"cores": 64, "cuda": 4}, {"devices": 5}, "the GPUs of this node, 4"),
        ({"cores": 64, "cuda": 1}, {"devices": 2, "accelerator": "gpu"}, "the GPUs of this node, 1"),
        ({"cores": 64}, {"devices": 2, "accelerator": "cuda"}, "the GPUs of this node, 0"),
        ({"mps": 1}, {"devices": 2}, "the GPUs of this node, 1"),
        # Only cores can be shared.
        ({"cuda": 1}, {"devices": 2, "oversubscribe": True}, "the GPUs of this node, 1"),
    ],
)
def test_more_ranks_than_cores_or_gpus_are_refused(
    there: dict[str, int], trainer: dict[str, Any], words: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **there)
    message = refused({"trainer": trainer})
    assert message.startswith(f"trainer.devices={trainer['devices']} is more than {words}; lower it")


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_is_refused_too_and_one_rank_says_so(
    rank: int, refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch)
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    values = {"trainer": {"devices": 3, "accelerator": "cpu"}}
    if rank == 0:
        assert "more than the CPU cores" in refused(values)
    else:
        with pytest.raises(OtherRankError) as error:
            train.run({"output_dir": str(tmp_path), **values})
        assert error.value.silent
        assert error.value.exit_code == 2


def test_tests_may_have_more_ranks_than_cores_and_the_run_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cores=1)
    configs = [load_config({"trainer": {"devices": 3, "oversubscribe": value}}) for value in (False, True)]
    with pytest.raises(InputError, match=r"trainer\.oversubscribe=true"):
        machine_module.check_room(configs[0])
    machine_module.check_room(configs[1])
    assert config_hash(configs[0]) == config_hash(configs[1])


@pytest.mark.parametrize(("threads", "ranks", "told"), [(2, 1, False), (3, 1, True), (2, 2, True), (1, 3, False)])
def test_more_threads_than_cores_are_told_and_set(
    threads: int, ranks: int, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch)
    before = torch.get_num_threads()
    use_threads(threads, ranks)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert (f"warning: trainer.threads={threads}" in capsys.readouterr().err) == told


SESSION = """
import functools, lightning, torch
from callbacks import CALLBACKS
from li2_lightning.losses import LOSSES, ClassCentredMSE
from li2_lightning.tasks.tasks import TASKS, group_task
from li2_lightning import groups
from li2_lightning.networks.activations import ACTIVATIONS, Activation
from li2_lightning.networks.base import NETWORKS
from li2_lightning.networks.two_layer import TwoLayerNetwork
from optimizers import SCHEDULES, register
ACTIVATIONS.register("of_the_session")(Activation("of_the_session", lambda z: z * z, lambda z: 2 * z))
NETWORKS.register("of_the_session")(TwoLayerNetwork)
SCHEDULES.register("of_the_session")(lambda max_steps, half=0.5: lambda t: half)
register("of_the_session")(torch.optim.SGD)
register("partial_of_the_session")(functools.partial(torch.optim.SGD, momentum=0.9))
TASKS.register("of_the_session")(lambda order, num_operands: group_task(groups.cyclic(order)))
LOSSES.register("of_the_session")(ClassCentredMSE)
@CALLBACKS.register("of_the_session")
class Nothing(lightning.Callback): ...
"""


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins that were registered in a notebook, taken back afterwards."""
    for owner in (ACTIVATIONS, CALLBACKS, LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES, TASKS):
        for name in ("_entries", "_modules"):
            monkeypatch.setattr(owner, name, dict(getattr(owner, name)))
    exec(SESSION, {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.hidden.name", {"optimizer": {"hidden": {"name": "of_the_session"}}}),
        ("optimizer.output.name", {"optimizer": {"output": {"name": "partial_of_the_session"}}}),
        ("optimizer.hidden.name", {"optimizer": {"hidden": {"name": "__main__:Mine"}}}),
        (
            "optimizer.hidden.inner",
            {"optimizer": {"hidden": {"name": "slow_gradients", "inner": ["orthogonal_gradient", "of_the_session"]}}},
        ),
        ("callbacks.of_the_session.name", {"callbacks": {"of_the_session": {"enabled": True}}}),
        ("callbacks.mine.name", {"callbacks": {"mine": {"name": "of_the_session"}}}),
        ("task.name", {"task": {"name": "of_the_session", "order": 7}}),
        ("loss", {"loss": "of_the_session"}),
        ("network.name", {"network": {"name": "of_the_session"}}),
        ("network.activation", {"network": {"activation": "of_the_session"}}),
        ("scheduler.name", {"scheduler": {"name": "of_the_session"}}),
        ("optimizer.hidden.name", {"optimizer": {"hidden": {"name": "made_here:Mine"}}}),
    ],
    ids=[
        "registered",
        "a partial",
        "import path",
        "inner",
        "callback",
        "labelled",
        "task",
        "loss",
        "network",
        "activation",
        "schedule",
        "no file",
    ],
)
def test_a_plug_in_of_the_session_alone_is_refused_for_several_ranks(
    key: str, values: dict[str, Any], session: None, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    made_here = types.ModuleType("made_here")
    monkeypatch.setitem(sys.modules, "made_here", made_here)
    for module in (made_here, sys.modules["__main__"]):
        monkeypatch.setattr(module, "Mine", torch.optim.SGD, raising=False)
    message = refused({"trainer": {"devices": 2, "accelerator": "cpu"}, **values})
    assert message.startswith(f"The plug-in of {key} exists in this session alone")
    assert message.endswith(f"put it into a file that can be imported, and name it as in {key}=my_module:MyClass.")


def test_a_single_process_takes_a_plug_in_of_the_session(session: None, tmp_path: Path) -> None:
    result = train.run(
        {
            "task": {"name": "of_the_session", "order": 7},
            "loss": "of_the_session",
            "network": {"name": "of_the_session", "activation": "of_the_session", "width": 8},
            "max_steps": 2,
            "optimizer": {"hidden": {"name": "of_the_session"}, "lr": 0.5},
            "scheduler": {"name": "of_the_session", "half": 0.25},
            "output_dir": str(tmp_path),
            "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
            "logger": {"mode": "disabled"},
            "trainer": {"accelerator": "cpu", "threads": 1},
        }
    )
    assert result.summary["status"] == "finished"
    assert set(read_metrics(result.directory / "metrics.csv")["optimizer/hidden_lr"]) == {0.125}


SCRIPT = """
import torch
import train
from optimizers import register
import elsewhere.registering

{here}

if __name__ == "__main__":
    train.run(
        dict(
            task={{"order": 7}}, network={{"width": 8}}, max_steps=2, optimizer={{"hidden": {{"name": "{name}"}}}},
            logger={{"mode": "disabled"}}, callbacks={{"report": {{"enabled": False}}}},
            trainer={{"devices": 2, "accelerator": "cpu", "threads": 1, "oversubscribe": True}},
        )
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "here", "words"),
    [
        ("of_a_module", "", "2 ranks"),
        ("of_the_script", "register('of_the_script')(torch.optim.SGD)", "exists in this session alone"),
    ],
)
def test_what_a_script_imports_is_known_to_every_rank(name: str, here: str, words: str, tmp_path: Path) -> None:
    """Slow because it starts processes: 10 s. The script lies in a folder that only its own process searches."""
    scripts = tmp_path / "scripts"
    (scripts / "elsewhere").mkdir(parents=True)
    (scripts / "elsewhere" / "__init__.py").touch()
    (scripts / "elsewhere" / "registering.py").write_text(
        "import torch\nfrom optimizers import register\nregister('of_a_module')(torch.optim.SGD)\n"
    )
    (scripts / "script.py").write_text(SCRIPT.format(name=name, here=here))
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(scripts / "script.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert words in done.stdout + done.stderr, done
    assert (tmp_path / "outputs").exists() == (here == "")
