"""What a run left, as Python values."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

import li2_lightning
from li2_lightning.analysis.collect import outcome
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, differing_settings, find_runs, groups_of_seeds, load_run


def only(folder: Path) -> Path:
    return next(path.parent for path in sorted(folder.rglob("config.yaml")))


def test_a_run_has_its_config_rows_stages_and_weights(small_sweep: Path) -> None:
    run = li2_lightning.load_run(small_sweep / "latest")
    assert run.finished
    assert run["optimizer.lr"] == 2e-2
    assert run["optimizer"]["weight_decay"] == 2e-4
    assert run.settings["optimizer.hidden.name"] == "adam"
    assert run.metrics.index.name == "step"
    assert run.metrics.index.tolist() == list(range(13))
    assert run.summary is not None
    assert run.metrics["test/loss"].iloc[-1] == run.summary["final"]["test/loss"], "read back to the last bit"
    assert math.isnan(run.metrics["update/hidden"].iloc[0])
    assert run.stages is not None
    assert run.stages["events"] == json.loads((run.directory / "stages.json").read_text())["events"]
    weights = run.weights()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"W": (14, 8), "V": (8, 7)}
    held = torch.load(run.directory / "checkpoints" / "row-000012.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["W"], held["network.W"])
    assert torch.equal(run.weights("row-000012")["V"], held["network.V"])
    assert run.task.name == "Z7"
    assert run.train_fraction == 19 / 49


def test_the_package_is_light_until_a_run_is_asked_for() -> None:
    code = "import sys, li2_lightning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="load_runs"):
        _ = li2_lightning.load_runs


def test_every_run_is_found_once_in_order(small_sweep: Path) -> None:
    runs = find_runs([small_sweep / "small", small_sweep, small_sweep / "latest"])
    assert len(runs) == 4, "the link latest is one of them"
    assert [run.directory.name for run in runs] == sorted(run.directory.name for run in runs)
    (latest,) = find_runs([small_sweep / "latest"])
    assert latest.directory == small_sweep / "latest"


def test_seed_ten_comes_after_seed_nine(own_sweep: Path) -> None:
    first = only(own_sweep)
    for seed in (9, 10):
        (own_sweep / f"x-s{seed}").mkdir()
        (own_sweep / f"x-s{seed}" / "config.yaml").write_bytes((first / "config.yaml").read_bytes())
    assert [run.directory.name for run in find_runs([own_sweep])][-2:] == ["x-s9", "x-s10"]


def test_an_unfinished_run_is_read_up_to_its_last_whole_line(own_sweep: Path) -> None:
    directory = only(own_sweep)
    for name in ("summary.json", "stages.json"):
        (directory / name).unlink()
    text = (directory / "metrics.csv").read_text()
    (directory / "metrics.csv").write_text(text[:-5])
    run = load_run(directory)
    assert (run.status, run.finished, run.summary, run.stages) == ("unfinished", False, None, None)
    assert run.metrics.index[-1] == 11
    (directory / "metrics.csv").unlink()
    assert load_run(directory).metrics.empty


def test_a_run_that_has_written_its_header_alone_has_no_rows(own_sweep: Path) -> None:
    """The header is on disk at once, and the first rows follow some rows later."""
    directory = only(own_sweep)
    file = directory / "metrics.csv"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    run = load_run(directory)
    assert (len(run.metrics), list(run.metrics)) == (0, [])
    assert outcome(run)["step"] is None
    assert run.first_step("test/accuracy", 0.5) is None


def test_a_diverged_run_is_not_finished(own_sweep: Path) -> None:
    directory = only(own_sweep)
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps({**summary, "status": "diverged", "reason": "why"}))
    run = load_run(directory)
    assert (run.status, run.finished) == ("diverged", False)


def test_the_first_step_at_which_a_column_is_reached() -> None:
    run = Run(Path(), {}, None, None)
    frame = pd.DataFrame({"a": [0.1, math.nan, 0.9, 0.95]}, index=[0, 2, 4, 6])
    run.__dict__["metrics"] = frame
    assert run.first_step("a", 0.9) == 4
    assert run.first_step("a", 0.96) is None
    assert run.first_step("b", 0.5) is None


def test_runs_that_differ_in_their_seed_alone_are_one_group(small_sweep: Path) -> None:
    runs = find_runs([small_sweep])
    assert differing_settings(runs) == ["optimizer.lr"]
    groups = groups_of_seeds(runs)
    assert list(groups) == ["lr=0.001", "lr=0.02"]
    assert [[run["seed"] for run in group] for group in groups.values()] == [[0, 1], [0, 1]]
    assert list(groups_of_seeds(groups["lr=0.02"])) == [""]


def test_what_the_hash_leaves_out_does_not_split_a_group_of_seeds() -> None:
    """What only shows or keeps, and a default that one run writes out; a setting that counts does."""

    def run(name: str, **settings: object) -> Run:
        made = with_settings(**settings)
        return Run(Path("runs") / name, made.config, None, None)

    shown = [
        run("0123456789-s0", trainer={"threads": 1, "precision": "32-true"}, callbacks={"progress": {"lines": 5}}),
        run("0123456789-s1", trainer={"threads": 2, "precision": "32-true"}, callbacks={"checkpoint": {"keep": 5}}),
    ]
    assert differing_settings(shown) == []
    assert list(groups_of_seeds(shown)) == [""]
    written = [
        run("0123456789-s0", optimizer={"hidden": {"name": "adam", "lr": 1e-3}}),
        run("0123456789-s1"),
        run("aaaaaaaaaa-s0", optimizer={"hidden": {"name": "muon"}}),
    ]
    assert [len(group) for group in groups_of_seeds(written).values()] == [2, 1]
    measured = [run("0123456789-s0", callbacks={"gram": {"every_n_steps": 2}}), run("aaaaaaaaaa-s0")]
    assert differing_settings(measured) == ["callbacks.gram.every_n_steps"]


def test_a_run_from_before_a_key_has_its_default(own_sweep: Path) -> None:
    """An old run and a new one are one experiment; a key of a section, a whole section, and a key of a plug-in."""
    before, after, *_ = find_runs([own_sweep])
    path = before.directory / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    del config["network"]["residual"], config["multiple"], config["network"]["transformer"]["heads"], config["stack"]
    OmegaConf.save(config, path)
    old = load_run(before.directory)
    assert old.config == before.config
    assert differing_settings([old, after]) == differing_settings([before, after])


def test_runs_that_differ_in_the_seed_of_their_data_are_a_group_of_seeds() -> None:
    """Whether it is written out, the seed of the run, or alone varied."""
    sections: list[tuple[int, dict[str, object]]] = [(0, {}), (0, {"seed": 0}), (0, {"seed": 5}), (1, {"seed": 5})]
    runs = [
        Run(Path("runs") / f"{number:010x}-s{seed}", with_settings(seed=seed, data=data).config, None, None)
        for number, (seed, data) in enumerate(sections)
    ]
    assert differing_settings(runs) == []
    assert list(groups_of_seeds(runs)) == [""]
    assert [run.seeds for run in runs] == ["0", "0", "0 (data 5)", "1 (data 5)"]


def with_settings(**values: object) -> Run:
    config: dict[str, object] = {"seed": 0, "name": "a", "max_steps": 5, "task": {"name": "cyclic", "order": 7},
                                 "data": {}, "optimizer": {"hidden": {"name": "adam"}}}  # fmt: skip
    return Run(Path(), config | values, None, None)


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        # The name says nothing that the settings do not.
        ([with_settings(name="b", max_steps=9, loss="mse"), with_settings(loss="cross_entropy")],
         ["loss=cross_entropy", "loss=mse"]),
        ([with_settings(name="b"), with_settings(name="a")], ["name=a", "name=b"]),
        ([with_settings(max_steps=10), with_settings(max_steps=9)], ["max_steps=9", "max_steps=10"]),
        ([with_settings(task={"name": "cyclic", "order": 11}), with_settings()], ["Z7", "Z11"]),
        # Two tasks of one name.
        ([with_settings(task={"name": "cyclic", "order": 7, "num_operands": 3}), with_settings()],
         ["task.num_operands=null", "task.num_operands=3"]),
        # A null is shown only where there is nothing else to say.
        ([with_settings(data={"train_fraction": None, "train_size": 9}),
          with_settings(data={"train_fraction": 0.3, "train_size": None})], ["train_size=9", "train_fraction=0.3"]),
        ([with_settings(network={"ridge": 0.5}), with_settings(network={"ridge": None})], ["ridge=null", "ridge=0.5"]),
        ([with_settings(lr=0.1), with_settings(lr=0.1000000001)], ["lr=0.1", "lr=0.1000000001"]),
        ([with_settings(optimizer={"hidden": {"name": "muon"}}), with_settings()], ["hidden=adam", "hidden=muon"]),
    ],
)  # fmt: skip
def test_a_label_says_what_sets_a_group_apart(runs: list[Run], labels: list[str]) -> None:
    assert list(groups_of_seeds(runs)) == labels


def test_what_is_not_there_is_one_sentence(own_sweep: Path) -> None:
    with pytest.raises(InputError, match=r"own is no run directory.* for example .*small"):
        load_run(own_sweep)
    with pytest.raises(InputError, match="nowhere is no directory"):
        find_runs([own_sweep / "nowhere"])
    run = load_run(only(own_sweep))
    with pytest.raises(InputError, match="holds no runs"):
        find_runs([run.directory / "checkpoints"])
    with pytest.raises(InputError, match=r"'optimizer.lrs'.*Did you mean 'optimizer.lr'"):
        run["optimizer.lrs"]
    with pytest.raises(InputError, match=r"'lst'.*known are best, last, row-000012.*Did you mean 'last'"):
        run.weights("lst")
    with pytest.raises(InputError, match="Unknown checkpoint"):
        run.weights("../../elsewhere/last")
    (run.directory / "stages.json").write_text("[]")
    with pytest.raises(InputError, match=r"stages.json cannot be read"):
        load_run(run.directory)


@pytest.mark.parametrize("text", ["task: {value: 1}", "a: [", "- 1\n- 2", "", "max_steps: {value: 3}"])
def test_a_config_that_is_not_ours_makes_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="holds no runs"):
        find_runs([tmp_path])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", ""])
def test_a_damaged_config_of_a_run_is_named(own_sweep: Path, text: str) -> None:
    directory = only(own_sweep)
    (directory / "config.yaml").write_text(text)
    for read in (load_run, lambda path: find_runs([path.parent])):
        with pytest.raises(InputError, match=r"config\.yaml cannot be read: .*; remove the directory"):
            read(directory)


def test_the_network_of_a_run_computes_its_outputs(small_sweep: Path) -> None:
    run = load_run(small_sweep / "latest")
    network = run.network()
    operands, labels = torch.from_numpy(run.task.operands), torch.from_numpy(run.task.labels)
    right = network(operands).outputs.argmax(-1) == labels
    for split, rows in (("train", run.split.train), ("test", run.split.test)):
        assert right[rows].double().mean().item() == run.metrics[f"{split}/accuracy"].iloc[-1]
    W, V = (run.weights()[name] for name in ("W", "V"))
    one = torch.eye(7)
    F = (torch.cat([one[operands[:, 0]], one[operands[:, 1]]], dim=1) @ W).square()
    torch.testing.assert_close(network(operands).outputs.detach(), F @ V)
    torch.testing.assert_close(network.compute_features(operands).last.detach(), F)
    torch.testing.assert_close(run.network(12).W, network.W, rtol=0, atol=0)
    assert run.checkpoint("best").name == "best.ckpt"
    with pytest.raises(InputError, match=r"Unknown checkpoint of .*'row-000005'"):
        run.network(5)
