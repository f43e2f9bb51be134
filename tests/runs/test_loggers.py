"""Loggers other than W&B: each gets the rows of metrics.csv, the stages and the pictures as far as it can hold them."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from lightning.pytorch.loggers import Logger

import train
from li2_lightning.errors import InputError, Interrupted
from li2_lightning.runs.metrics_csv import read_metrics
from tests.callbacks.test_checkpoint import InterruptAt

AT_ONCE = {"rows": 1, "train_accuracy": 0.0, "independence": -1.0, "independence_fall": -1.0}


class Memory(Logger):
    """A logger of a user's own, which keeps what it gets."""

    made: ClassVar[list[Memory]] = []

    def __init__(self, save_dir: str, colour: str = "red") -> None:
        super().__init__()
        self.save_dir_given, self.colour = save_dir, colour
        self.params: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.pictures: list[tuple[int, str]] = []
        self.ended: list[str] = []
        self.made.append(self)

    name, version = "memory", "0"  # type: ignore[assignment]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.params.update(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_image(self, key: str, images: list[str], step: int) -> None:
        assert all(Path(image).exists() for image in images)
        self.pictures.append((step, key))

    def finalize(self, status: str) -> None:
        self.ended.append(status)


def run(folder: Path, logger: dict[str, Any], pictures: bool = False, **values: Any) -> Path:
    """The directory of a tiny run with a transition in its first rows."""
    base = {
        "task": {"order": 7},
        "network": {"width": 8},
        "max_steps": 4,
        "output_dir": str(folder / "out"),
        "logger": logger,
        "trainer": {"threads": 1, "accelerator": "cpu"},
        "callbacks": {
            "report": {"enabled": False},
            "pictures": {"enabled": pictures, "every_n_steps": 100},
            "stages": AT_ONCE,
        },
    }
    return train.run({**base, **values}).directory


def transitions(directory: Path) -> dict[int, int]:
    return {event["step"]: event["to"] for event in json.loads((directory / "stages.json").read_text())["events"]}


def assert_rows(rows: list[dict[str, float]], metrics: pd.DataFrame) -> None:
    """One row for each row of metrics.csv, with every value that it has."""
    assert [row["step"] for row in rows] == metrics["step"].tolist()
    for row, (_, written) in zip(rows, metrics.iterrows(), strict=True):
        kept = {name: value for name, value in written.items() if not math.isnan(value)}
        there = {name: value for name, value in row.items() if name != "stage/transition"}
        assert there == pytest.approx(kept, rel=1e-6)


def test_any_logger_of_lightning_by_its_import_path_gets_rows_transitions_and_pictures(tmp_path: Path) -> None:
    logger = {"name": "tests.runs.test_loggers:Memory", "options": {"colour": "blue"}}
    directory = run(tmp_path, logger, pictures=True)
    memory = Memory.made[-1]
    assert (memory.colour, memory.save_dir_given) == ("blue", str(directory))
    assert memory.params["task"]["order"] == 7
    assert memory.params["config_hash"] == directory.name.removesuffix("-s0")
    assert_rows([row for _, row in memory.rows], read_metrics(directory / "metrics.csv"))
    assert all(step == row["step"] for step, row in memory.rows)
    points = {step: row["stage/transition"] for step, row in memory.rows if "stage/transition" in row}
    assert points == transitions(directory) != {}
    assert [picture for picture in memory.pictures if picture[0] in (0, 4)] == [(0, "features"), (4, "features")]
    assert memory.ended == ["success"]


def test_csv_has_the_rows_in_the_run_directory(tmp_path: Path) -> None:
    directory = run(tmp_path, {"name": "csv"})
    rows = [row.dropna().to_dict() for _, row in pd.read_csv(directory / "csv" / "metrics.csv").iterrows()]
    assert_rows(rows, read_metrics(directory / "metrics.csv"))
    assert "order: 7" in (directory / "csv" / "hparams.yaml").read_text()


@pytest.mark.parametrize("kept", [[], ["callbacks.checkpoint.every_n_steps=3"]])
def test_a_run_that_was_stopped_begins_its_log_anew_with_every_row_once(
    tiny_run: Callable[..., Any], make_record: Callable[[], Any], kept: list[str]
) -> None:
    options = ("logger={mode: auto, name: csv}", "resume=auto", *kept)
    with pytest.raises(Interrupted):
        tiny_run(*options, into=make_record(), callbacks=[InterruptAt(6)])
    directory = tiny_run(*options).directory
    steps = pd.read_csv(directory / "csv" / "metrics.csv")["step"].tolist()
    assert steps == read_metrics(directory / "metrics.csv")["step"].tolist() == list(range(11))


def test_disabled_holds_for_every_logger(tmp_path: Path) -> None:
    made = len(Memory.made)
    run(tmp_path, {"name": "tests.runs.test_loggers:Memory", "mode": "disabled"})
    assert len(Memory.made) == made


@pytest.mark.slow
def test_tensorboard_has_rows_transitions_and_pictures(tmp_path: Path) -> None:
    """Slow because TensorBoard takes long to import."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = run(tmp_path, {"name": "tensorboard"}, pictures=True)
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    metrics = read_metrics(directory / "metrics.csv")
    for name in metrics.columns.drop("step"):
        points = {event.step: event.value for event in events.Scalars(name)}
        written = metrics.set_index("step")[name].dropna().to_dict()
        assert points == pytest.approx(written, rel=1e-6), name
    assert {event.step: event.value for event in events.Scalars("stage/transition")} == transitions(directory)
    drawn = [int(path.stem.removeprefix("row-")) for path in sorted((directory / "features").glob("row-*.png"))]
    assert [image.step for image in events.Images("features")] == drawn
    assert "stalled" in str(events.Tensors("stages/text_summary")[0].tensor_proto)


@pytest.mark.slow
def test_mlflow_has_rows_transitions_and_pictures(tmp_path: Path) -> None:
    """Slow because MLflow makes a database."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = {"tracking_uri": uri, "experiment_name": "grokking", "artifact_location": str(tmp_path / "artifacts")}
    directory = run(tmp_path, {"name": "mlflow", "options": options}, pictures=True)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("grokking")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("cyclic-adam-s0", "FINISHED")
    assert found.data.params["task/order"] == "7"
    metrics = read_metrics(directory / "metrics.csv").set_index("step")
    for name in metrics:
        points = {point.step: point.value for point in client.get_metric_history(found.info.run_id, name)}
        assert points == pytest.approx(metrics[name].dropna().to_dict()), name
    told = {point.step: point.value for point in client.get_metric_history(found.info.run_id, "stage/transition")}
    assert told == transitions(directory)
    kept = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "features")}
    assert kept == {f"features/{path.name}" for path in (directory / "features").glob("row-*.png")}
    assert "stages.json" in {artifact.path for artifact in client.list_artifacts(found.info.run_id)}


def refuse(*arguments: Any, **options: Any) -> Logger:
    """A logger whose server does not answer."""
    raise ConnectionError("nobody answers at port 9")


MEMORY = "tests.runs.test_loggers:Memory"


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ({"name": "tensorbord"}, r"Unknown logger 'tensorbord'; known are csv, mlflow, .*Did you mean 'tensorboard'"),
        ({"name": "no_such_module:Thing"}, r"The logger 'no_such_module:Thing' could not be imported"),
        ({"name": MEMORY, "options": {"color": "x"}}, r"no option 'color' \(from logger\.options\.color\); it takes"),
        ({"name": "csv", "options": {"flush_logs_every_n_steps": "often"}}, r"must be a number, like 100"),
        ({"name": "csv", "artifacts": ["best"]}, r"belong to logger\.name=wandb, not to csv"),
        ({"name": MEMORY, "alerts": True}, r"belong to logger\.name=wandb"),
        ({"options": {"colour": "x"}, "mode": "offline"}, r"logger\.options belongs to other loggers"),
    ],
)
def test_a_logger_section_that_does_not_fit_is_refused_before_anything_is_written(
    logger: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, logger)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["tensorboard", "mlflow"])
def test_without_its_package_a_logger_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"logger\.name={package} needs {package}; pip install 'li2-l.*\[loggers\]'"):
        run(tmp_path, {"name": package})
    assert not (tmp_path / "out").exists()


def test_a_logger_that_cannot_begin_is_one_sentence_and_the_run_can_go_on_with_another(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot begin its log: ConnectionError: nobody answers at port 9\.$"):
        run(tmp_path, {"name": "tests.runs.test_loggers:refuse"})
    directory = run(tmp_path, {"name": "csv"}, resume="auto")
    assert read_metrics(directory / "csv" / "metrics.csv")["step"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["", "checkpoints", "features", "checkpoints/log"])
def test_a_log_over_the_files_of_the_run_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"write over the files of the run .*; choose another logger\.options\.name"):
        run(tmp_path, {"name": "csv", "options": {"name": name}})
