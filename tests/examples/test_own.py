"""The examples of a Trainer, a callback and data of one's own run from their first line to their last."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import train
from li2_lightning.trainer import quiet_lightning

EXAMPLES = Path(train.__file__).parent / "examples"


@pytest.fixture
def run_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run_example("own_data")``: the names of the script after its last line; it writes below ``tmp_path``."""

    def run(name: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        with quiet_lightning():
            return runpy.run_path(str(EXAMPLES / f"{name}.py"))

    return run


def test_a_trainer_of_ones_own_stops_when_the_network_generalizes(
    run_example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_example("own_trainer")
    assert names["best"].best_model_score >= 0.99
    assert names["measured"]["test/accuracy"] == pytest.approx(float(names["best"].best_model_score))
    assert 40 <= names["trainer"].global_step < 400
    assert f"row {names['trainer'].global_step}: 212 of 212 test rows are right" in capsys.readouterr().out


def test_a_measurement_of_ones_own_is_a_column(run_example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example("own_callback")
    shares = [row["weights/top_tenth"] for row in names["diary"].rows]
    assert len(shares) == 101
    W = names["module"].network.W.detach()
    sizes = W.square().sum(dim=0).sort(descending=True).values
    assert shares[-1] == pytest.approx((sizes[:25].sum() / sizes.sum()).item(), rel=1e-5)
    assert shares[-1] > shares[0]
    shown = capsys.readouterr().out
    assert "stage 2, the largest tenth of the nodes has" in shown
    assert "stage 3, the largest tenth of the nodes has" in shown


def test_a_table_of_ones_own_is_learned(run_example: Any) -> None:
    names = run_example("own_data")
    data, learned = names["data"], names["learned"]
    assert (len(data.train), len(data.test)) == (192, 64)
    assert names["measured"]["train/accuracy"] == 1
    assert names["measured"]["test/accuracy"] > 0.9
    a, b = data.test.tokens.unbind(-1)
    hits = (learned[a, b] == data.test.labels).double().mean().item()
    assert hits == pytest.approx(names["measured"]["test/accuracy"])
