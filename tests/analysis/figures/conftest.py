"""Runs whose rows a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from li2_lightning.config.checks import load_config
from li2_lightning.config.schema import to_plain
from li2_lightning.runs.load import Run

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run() -> MakeRun:
    """``make_run("optimizer.lr=0.1", accuracy=[0, 1])``: a finished run with these rows; columns by keyword or dict."""

    def make(
        *settings: str,
        accuracy: Sequence[float] = (0.0, 1.0),
        columns: Mapping[str, Sequence[float]] | None = None,
        status: str | None = "finished",
    ) -> Run:
        config = to_plain(load_config(OmegaConf.from_dotlist(list(settings))))
        rows: dict[str, Any] = {"train/accuracy": accuracy, "test/accuracy": accuracy, "test/loss": accuracy}
        run = Run(Path("somewhere"), config, None if status is None else {"status": status}, None)
        run.__dict__["metrics"] = pd.DataFrame(rows | dict(columns or {})).rename_axis("step")
        return run

    return make
