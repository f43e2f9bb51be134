"""The table of a race: who the entrants are, which setting is best, and what the nodes of it are like."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from li2_lightning.analysis.race import (
    describe_setting,
    entrants,
    markdown,
    node_statistics,
    race_table,
    share_statistics,
)
from li2_lightning.analysis.race.command import __doc__ as HELP
from li2_lightning.config.checks import load_config
from li2_lightning.config.schema import to_plain
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, load_run
from tests.conftest import li2_command

main = li2_command("race")


def made(step: int | None, *, seed: int = 0, folder: Path = Path(), ended: bool = True, **values: Any) -> Run:
    """A run of 100 steps that reached test accuracy .99 at ``step``, as if it had been read from a directory."""
    values.setdefault("optimizer", {})
    config = to_plain(load_config({"task": {"order": 7}, "seed": seed, "max_steps": 100, **values}))
    run = Run(folder, config, {"status": "finished"} if ended else None, None)
    accuracy = [1.0 if step is not None and t >= step else 0.1 for t in range(101)]
    vars(run)["metrics"] = pd.DataFrame({"test/accuracy": accuracy}, index=pd.RangeIndex(101, name="step"))
    return run


def adam(lr: float, decay: float, step: int | None, seed: int = 0, **more: Any) -> Run:
    return made(step, seed=seed, optimizer={"lr": lr, "weight_decay": decay}, **more)


def with_hidden(step: int | None, **hidden: Any) -> Run:
    return made(step, optimizer={"hidden": hidden})


def test_most_seeds_come_before_the_median_and_an_absent_seed_is_later_than_any() -> None:
    runs = [
        *(adam(1e-3, 1e-4, step, seed) for seed, step in enumerate((40, 50, 60))),
        *(adam(1e-2, 1e-4, step, seed) for seed, step in enumerate((5, 6, None))),
        *(adam(1e-1, 1e-4, step, seed) for seed, step in enumerate((41, 51, 52))),
        *(adam(1.0, 1e-4, step, seed) for seed, step in enumerate((3, None, None))),
    ]
    (entrant,) = entrants(runs)
    assert [setting.reached for setting in entrant.settings] == [3, 2, 3, 1]
    assert [setting.median for setting in entrant.settings] == [50, 6, 51, math.inf]
    assert entrant.best is entrant.settings[0]
    assert entrant.best.steps == [40, 50, 60]


def test_who_never_gets_there_has_no_best_setting() -> None:
    line = race_table([adam(1e-3, 0.1, None), adam(1e-2, 0.1, None)]).iloc[0]
    assert line[["steps to .99", "seeds", "range", "settings", "best setting"]].tolist() == [
        "–", "0 of 1", "–", "0 of 2", "–"
    ]  # fmt: skip


def test_equal_medians_go_by_the_sum_of_steps() -> None:
    runs = [adam(lr, 1e-4, step, seed) for lr, steps in ((1e-3, (40, 50, 90)), (1e-2, (40, 50, 60)))
            for seed, step in enumerate(steps)]  # fmt: skip
    assert entrants(runs)[0].best.values["hidden.lr"] == 1e-2


def test_entrants_are_optimizers_without_their_grid_fastest_first() -> None:
    runs = [
        adam(1e-3, 1e-4, 50),
        adam(1e-2, 1e-4, 40),
        with_hidden(30, name="muon", lr=0.02),
        with_hidden(20, name="muon", lr=0.02, momentum=0.5),
        with_hidden(10, name="orthogonal_gradient", inner=["slow_gradients", "adamw"]),
        with_hidden(None, name="my_module:Mine"),
    ]
    assert [(e.label, len(e.settings)) for e in entrants(runs)] == [
        ("orthogonal_gradient(slow_gradients(adamw)) / adam", 1),
        ("muon / adam hidden.momentum=0.5", 1),
        ("muon / adam", 1),
        ("adam", 2),
        ("my_module:Mine / adam", 1),
    ]


def test_an_entrant_has_the_name_of_its_preset() -> None:
    section = {"name": "slow_gradients", "inner": "adam", "amplification": 2.0}
    runs = [with_hidden(10 + i, **section, filter_decay=decay, lr=0.1) for i, decay in enumerate((0.98, 0.0, 0.5))]
    assert [entrant.label for entrant in entrants(runs)] == [
        "slow_gradients", "slow_gradients_control", "slow_gradients(adam) / adam"
    ]  # fmt: skip


def test_the_shared_values_are_those_of_a_role_without_its_own() -> None:
    (entrant,) = entrants([made(9, optimizer={"lr": 0.5, "weight_decay": 0.25, "hidden": {"name": "adam", "lr": 2.0}})])
    assert entrant.best.values == {
        "hidden.lr": 2.0, "hidden.weight_decay": 0.25, "output.lr": 0.5, "output.weight_decay": 0.25,
    }  # fmt: skip


def test_the_edge_of_a_grid_is_said() -> None:
    def best(lr: float, decay: float) -> str:
        grid = [(a, b) for a in (1e-3, 1e-2, 1e-1) for b in (0.1, 0.2, 0.4)]
        (entrant,) = entrants([adam(a, b, 10 if (a, b) == (lr, decay) else 90) for a, b in grid])
        return describe_setting(entrant.best.values, entrant.edges())

    assert best(1e-2, 0.2) == "lr 0.01, λ 0.2"
    assert best(1e-1, 0.1) == "lr 0.1↑, λ 0.1↓"
    (single,) = entrants([adam(1e-3, 0.1, 5)])
    assert single.edges() == {}, "a grid of one point has no edge"
    assert describe_setting({"hidden.lr": 0.02, "output.lr": 0.001}, {"output.lr": "↓"}) == "lr 0.02 / 0.001↓, λ none"


def test_runs_of_two_tasks_are_no_race() -> None:
    with pytest.raises(InputError, match=r"these runs differ in task\.order, network\.width"):
        entrants([adam(1e-3, 0.1, 5), made(5, task={"order": 11}, network={"width": 7})])
    # How they are watched does not matter.
    (entrant,) = entrants([adam(1e-3, 0.1, 5), adam(1e-3, 0.1, 7, 1, callbacks={"gram": {"enabled": False}}, name="b")])
    assert entrant.best.steps == [5, 7]


def test_what_has_not_ended_does_not_count() -> None:
    (entrant,) = entrants([adam(1e-3, 0.1, 5), adam(1e-3, 0.1, None, 1, ended=False)])
    assert entrant.best.steps == [5]
    with pytest.raises(InputError, match="None of the runs has ended"):
        entrants([adam(1e-3, 0.1, 5, ended=False)])


def test_diversity_counts_equally_shared_irreps() -> None:
    def shares(*counts: int, impure: int = 0) -> torch.Tensor:
        columns = [torch.eye(len(counts))[k] * 0.4 + 0.6 / len(counts) for k, n in enumerate(counts) for _ in range(n)]
        return torch.stack(columns + [torch.full((len(counts),), 1 / len(counts))] * impure, dim=1)

    found = share_statistics(shares(4, 4, 4, impure=12))
    assert found == {"irreps a node": 3 / 24, "diversity": pytest.approx(3), "pure": 0.5}
    assert share_statistics(shares(9, 0, 0))["diversity"] == pytest.approx(1)
    uneven = share_statistics(shares(6, 2, 1))["diversity"]
    assert uneven == pytest.approx(math.exp(-sum(n / 9 * math.log(n / 9) for n in (6, 2, 1))))
    none = share_statistics(shares(0, 0, 0, impure=5))
    assert (none["irreps a node"], none["pure"]) == (0, 0)
    assert math.isnan(none["diversity"])


@pytest.mark.parametrize("network", [(), ("network.trainable_embedding=true",), ("network.complex_weights=true",)])
def test_nodes_of_a_checkpoint_are_those_of_the_last_row(
    tiny_run: Callable[..., Any], network: tuple[str, ...]
) -> None:
    """The features callback measures the same network by its own way."""
    result = tiny_run("max_steps=60", "optimizer.lr=0.03", *network)
    found = node_statistics(load_run(result.directory))
    assert found["irreps a node"] == result.column("features/coverage")[-1] / 16
    assert found["pure"] > 0
    assert 1 <= found["diversity"] <= 3


def test_without_nodes_there_is_nothing_to_say(tiny_run: Callable[..., Any]) -> None:
    directory = tiny_run("max_steps=2", "callbacks.checkpoint.enabled=false").directory
    assert node_statistics(load_run(directory)) == {}
    line = race_table([load_run(directory)]).iloc[0]
    assert (line["irreps a node"], line["ms a step"], line["state"]) == ("–", "–", "–")


def test_cost_is_the_median_over_all_runs_relative_to_adam(tmp_path: Path) -> None:
    runs = []
    for i, (optimizer, seconds) in enumerate((("adam", 0.002), ("adam", 0.004), ("adam", 0.003), ("sgd", 0.0045))):
        folder = tmp_path / str(i)
        folder.mkdir()
        cost = {"seconds_per_step": seconds, "seconds_per_update": seconds / 10, "parameter_bytes": 100,
                "optimizer_state_bytes": 208 if optimizer == "adam" else 0}  # fmt: skip
        (folder / "cost.json").write_text(json.dumps(cost))
        both = {"hidden": {"name": optimizer}, "output": {"name": optimizer}}
        runs.append(made(10, seed=i, folder=folder, optimizer=both))
    table = race_table(runs).set_index("optimizer")
    assert table.loc["adam", ["ms a step", "ms an update", "state"]].tolist() == ["3.00 (1.00×)", "0.30", "2.08"]
    assert table.loc["sgd", ["ms a step", "ms an update", "state"]].tolist() == ["4.50 (1.50×)", "0.45", "0.00"]


def test_the_command_prints_what_it_writes(
    tiny_run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run("max_steps=2", "callbacks.cost.enabled=true")
    tiny_run("max_steps=2", "optimizer.hidden.name=sgd")
    capsys.readouterr()
    output = tmp_path / "race.md"
    assert main([str(tmp_path), "-o", str(output), "-o", str(tmp_path / "race.csv")]) == 0
    printed = capsys.readouterr().out
    assert output.read_text() == printed
    lines = printed.splitlines()
    assert len(lines) == 4
    assert {len(line) for line in lines} == {len(lines[0])}, "the source is aligned"
    assert {line.split("|")[1].strip() for line in (lines[0], *lines[2:])} == {"optimizer", "adam", "sgd / adam"}
    kept = pd.read_csv(tmp_path / "race.csv")
    assert list(kept) == [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no directory" in capsys.readouterr().err


def test_the_columns_are_those_of_the_docstring() -> None:
    table = race_table([adam(1e-3, 0.1, 5)])
    documented = [line.split("|")[1].strip() for line in (HELP or "").splitlines() if line.startswith("| ")]
    assert documented[: len(table.columns) + 1] == ["column", *table]
    assert markdown(table).splitlines()[0].startswith("| optimizer | steps to .99")
