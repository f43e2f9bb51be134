"""li2 play: the trainer in the page computes what the library computes, and the page trains in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from li2_lightning.cli.main import main
from li2_lightning.runs.metrics_csv import read_metrics

PLAY = Path(train.__file__).parent / "li2_lightning" / "resources" / "play"
NODE = shutil.which("node")
COLUMNS = ("train/loss", "test/loss", "train/accuracy", "test/accuracy", "gradient/norm", "gradient/independence",
           "gradient/coupling", "energy/mean", "energy/max", "features/purity", "features/coverage")  # fmt: skip
PROGRAM = """
const {Trainer} = require(process.argv[1]);
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const trainer = new Trainer(given.M, given.K, given.order, Float64Array.from(given.W), Float64Array.from(given.V));
trainer.choose(given.optimizer);
const rows = [];
for (let step = 0; step <= given.steps; step++) {
  rows.push(trainer.measure(given.n));
  trainer.update(given.n, given.multiple, given.decay);
}
console.log(JSON.stringify(rows));
"""


@pytest.mark.skipif(NODE is None, reason="no node on this machine to run the page's trainer")
@pytest.mark.parametrize(
    ("optimizer", "M", "K", "multiple", "decay"),
    [
        ("adam", 7, 10, 3.0, 2e-2),
        pytest.param("sgd", 8, 6, 0.2, 2e-4, marks=pytest.mark.slow),
        # A wide W and a tall one.
        ("muon", 5, 24, 2.0, 1e-3),
        pytest.param("muon", 11, 8, 1.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_the_page_trains_as_the_library_does(
    tmp_path: Path, optimizer: str, M: int, K: int, multiple: float, decay: float
) -> None:
    """Same weights and rows, 30 steps in float64: every column agrees to 1e-9."""
    generator = np.random.default_rng(0)
    order, n, steps = generator.permutation(M * M), round(0.6 * M * M), 30
    W, V = generator.uniform(-0.4, 0.4, (2 * M, K)), generator.uniform(-0.4, 0.4, (K, M))
    np.savez(tmp_path / "weights.npz", W=W, V=V)
    np.savez(tmp_path / "split.npz", train=order[:n], test=order[n:])
    off = ("report", "pictures", "snapshots", "interaction", "gram", "updates", "stages", "progress", "checkpoint")
    preset = {
        "adam": {role: {"name": "adam", "lr": 1e-3 * multiple} for role in ("hidden", "output")},
        "sgd": {role: {"name": "sgd", "lr": multiple, "momentum": 0.9} for role in ("hidden", "output")},
        "muon": {
            "hidden": {"name": "muon", "lr": 0.02 * multiple, "decoupled": False},
            "output": {"name": "adam", "lr": 1e-3 * multiple},
        },
    }
    directory = train.run(
        {
            "task": {"order": M},
            "data": {"split_file": str(tmp_path / "split.npz")},
            "network": {"width": K, "initial_weights": str(tmp_path / "weights.npz")},
            "optimizer": {**preset[optimizer], "weight_decay": decay},
            "max_steps": steps,
            "output_dir": str(tmp_path),
            "callbacks": {name: {"enabled": False} for name in off},
            "logger": {"mode": "disabled"},
            "trainer": {"accelerator": "cpu", "threads": 1, "precision": "64-true"},
        }
    ).directory
    given: dict[str, Any] = {
        "M": M,
        "K": K,
        "order": order.tolist(),
        "W": W.ravel().tolist(),
        "V": V.ravel().tolist(),
        "optimizer": optimizer,
        "steps": steps,
        "n": n,
        "multiple": multiple,
        "decay": decay,
    }
    assert NODE is not None
    done = subprocess.run([NODE, "-e", PROGRAM, str(PLAY / "trainer.js")], input=json.dumps(given), text=True,
                          capture_output=True, check=True)  # fmt: skip
    rows, metrics = json.loads(done.stdout), read_metrics(directory / "metrics.csv")
    for column in COLUMNS:
        found = np.array([row[column] for row in rows])
        assert found == pytest.approx(metrics[column].to_numpy(), rel=1e-9, abs=1e-11), column
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"], "the comparison is about a network that learns"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def shown(page: Path, settings: str, profile: Path) -> dict[str, float]:
    """The numbers that the page shows in Chromium once it has trained; every error of a script fails."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
               f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
               "--virtual-time-budget=20000", "--dump-dom", f"{page.as_uri()}#{settings}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.findall(r'<output id="([\w/]+)">([^<]*)</output>', done.stdout)
    return {name: float(value) if value != "undefined" else float("nan") for name, value in found}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page")
def test_the_page_trains_in_a_browser(tmp_path: Path) -> None:
    """It groks with weight decay and stalls without; the settings of the link are those of the network."""
    grokked = shown(PLAY / "index.html", "steps=450", tmp_path / "a")
    assert grokked["step"] == 450
    assert grokked["train/accuracy"] == grokked["test/accuracy"] == grokked["covered"] == 1
    stalled = shown(PLAY / "index.html", "steps=450&decay=-6", tmp_path / "b")
    assert stalled["train/accuracy"] == 1
    assert stalled["test/accuracy"] < 0.5
    assert stalled["features/purity"] < 0.75 * grokked["features/purity"]
    for optimizer in ("sgd", "muon"):
        other = shown(PLAY / "index.html", f"steps=60&optimizer={optimizer}", tmp_path / optimizer)
        assert other["step"] == 60
        assert other["train/loss"] < 0.5
    other = shown(PLAY / "index.html", "steps=20&M=11&K=32&share=0.8", tmp_path / "small")
    assert other["step"] == 20
    live = shown(PLAY / "index.html", "M=7&K=16", tmp_path / "live")
    assert live["step"] > 0, "without steps the page trains by itself"
    fast = shown(PLAY / "index.html", "steps=300&optimizer=sgd&rate=1.5", tmp_path / "diverged")
    assert np.isnan(fast["train/loss"])
    assert fast["step"] < 300, "a diverged network is not trained on"


@pytest.mark.parametrize("has_browser", [True, False])
def test_li2_play_opens_the_page_or_says_where_it_is(
    has_browser: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or has_browser)
    assert main(["play"]) == 0
    said = capsys.readouterr().out
    assert opened == [(PLAY / "index.html").as_uri()]
    assert opened[0] in said
    assert ("none was found" in said) is not has_browser


def test_the_page_fetches_nothing_but_its_scripts() -> None:
    html = (PLAY / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'\b(?:src|href)="([^"]*)"', html)
    assert sorted(named) == ["page.js", "trainer.js"]
    assert all((PLAY / name).is_file() for name in named)
    assert "default-src 'none'" in html
    scripts = "".join((PLAY / name).read_text(encoding="utf-8") for name in named)
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|WebSocket|import\(", scripts)
