"""Plug-ins as their authors meet them: a file in the current folder; and the compiled network beside the plain one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import train
from li2_lightning.runs.metrics_csv import read_metrics
from tests.cli.conftest import CommandLine, StartProcess

TINY = ("task.order=7", "network.width=8", "max_steps=3", "logger.mode=disabled", "callbacks=minimal")


def test_an_optimizer_of_the_current_folder_trains(start_process: StartProcess, workplace: Path) -> None:
    (workplace / "my_module.py").write_text(
        "import torch\n"
        "class Descent(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.5, boldness=1.0):\n"
        "        super().__init__(params, lr=lr * boldness)\n"
    )
    mine = ("optimizer.hidden.name=my_module:Descent", "optimizer.hidden.lr=0.1")
    outcome = start_process(*TINY, *mine, "optimizer.hidden.boldness=2").wait()
    assert outcome.code == 0, outcome
    assert "my_module:Descent  lr 0.2" in outcome.out
    outcome = start_process(*TINY, *mine, "optimizer.hidden.bold=2").wait()
    assert outcome.code == 2
    assert "boldness" in outcome.err


MINE = (
    "from callbacks.diagnostic import Diagnostic\n"
    "class Mean(Diagnostic):\n"
    "    def __init__(self, every_n_steps=1, power=1):\n"
    "        super().__init__(every_n_steps)\n"
    "        self.power = power\n"
    "    def measure(self, module, state):\n"
    "        return {'mine/mean': state.outputs.pow(self.power).mean()}\n"
)


def test_a_callback_of_the_current_folder_measures(
    command_line: CommandLine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "my_callbacks.py").write_text(MINE)
    monkeypatch.syspath_prepend(workplace)
    # A key with a colon is beyond Hydra; the sentence says what works, and it does.
    refused = command_line(*TINY, "callbacks.my_callbacks:Mean.power=2")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    advice = re.search(r"say (callbacks\.\S+) (callbacks\.\S+) instead", refused.err)
    assert advice is not None, refused.err
    outcome = command_line(*TINY, *advice.groups(), "callbacks.Mean.every_n_steps=2")
    assert outcome.code == 0, outcome
    column = read_metrics(workplace / "outputs" / "latest" / "metrics.csv")["mine/mean"]
    # At the cadence, and in the last row.
    assert column.notna().tolist() == [True, False, True, True]
    assert (column.dropna() > 0).all()


@pytest.mark.slow
# torch's own compiler uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch")
def test_a_compiled_network_gives_the_same_rows(tmp_path: Path) -> None:
    """Slow because torch compiles C++ for it."""
    rows = []
    for compiled in (False, True):
        result = train.run(
            {
                "task": {"order": 11},
                "network": {"width": 32},
                "max_steps": 5,
                "output_dir": str(tmp_path / str(compiled)),
                "logger": {"mode": "disabled"},
                "trainer": {"threads": 1, "compile": compiled, "precision": "64-true"},
                "callbacks": {"report": {"enabled": False}, "pictures": {"enabled": False}},
            }
        )
        rows.append(read_metrics(result.directory / "metrics.csv"))
    plain, compiled_rows = rows
    for column in ("train/loss", "test/loss", "gradient/norm", "energy/mean", "weights/hidden_norm"):
        assert compiled_rows[column].to_numpy() == pytest.approx(plain[column].to_numpy(), rel=1e-9)
