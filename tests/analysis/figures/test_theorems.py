"""Theorems 4 and 8 drawn from run directories of energy ascent."""

from __future__ import annotations

import pytest
import torch

import train
from li2_lightning.analysis.figures import find_figure
from li2_lightning.analysis.figures.phase_diagram import half_crossing
from li2_lightning.analysis.figures.theorems import complete_shares, covered_share, found_blocks
from li2_lightning.errors import InputError
from li2_lightning.runs.load import Run, find_runs

ASCENT = {
    "loss": "projected_mse",
    "task": {"order": 5},
    "network": {"width": 24, "readout": "ridge", "ridge": 1e6},
    "optimizer": {"lr": 0.25, "weight_decay": 0.0, "hidden": {"name": "optimizers.sphere_ascent:SphereAscent"}},
    "max_steps": 60,
    "logger": {"mode": "disabled"},
    "trainer": {"threads": 1},
}
QUIET = ("gradient", "gram", "interaction", "updates", "stages", "progress", "pictures", "report")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("ascent")
    for size in (8, 24):
        callbacks = {name: {"enabled": False} for name in QUIET}
        data = {"train_size": size, "evaluate_every_n_steps": 60}
        train.run({**ASCENT, "data": data, "callbacks": callbacks, "output_dir": str(folder)})
    return find_runs([folder])


def test_on_all_but_one_pair_every_node_ends_in_an_irrep_and_all_are_covered(runs: list[Run]) -> None:
    run = next(run for run in runs if run["data.train_size"] == 24)
    assert covered_share(run) == 1
    blocks, count = found_blocks([run])
    assert count == 2
    assert torch.bincount(blocks, minlength=2).min() > 3
    torch.testing.assert_close(run.weights()["W"].norm(dim=0), torch.ones(24))


def test_a_panel_for_the_irreps_and_one_for_the_nodes(runs: list[Run]) -> None:
    left, right = find_figure("thm04_boundary_quick")(runs).axes
    assert left.lines[0].get_ydata()[-1] == 1
    assert right.lines[0].get_xdata().tolist() == [8 / 25, 24 / 25]


def test_collections_are_drawn_with_their_mean(runs: list[Run]) -> None:
    left, right = find_figure("thm08_collectors")(runs).axes
    assert "48 nodes, 2 irreps" in left.get_title(loc="left")
    assert any("collections" in text.get_text() for text in right.get_legend().get_texts())


def test_nodes_that_are_dealt_to_the_seeds_forget_what_they_had_to_do_with_each_other(runs: list[Run]) -> None:
    """By construction: one node in each of the two irreps of Z5, and two nodes in one irrep."""

    def made(*frequencies: int) -> Run:
        run = Run(runs[0].directory, runs[0].config, runs[0].summary, None)
        angles = 2 * torch.pi * torch.arange(5)[:, None] * torch.tensor(frequencies) / 5
        vars(run)["weights"] = lambda: {"W": torch.cat([angles.cos(), angles.sin()])}
        return run

    found, dealt = complete_shares([made(1, 2), made(2, 1), made(1, 2)])
    assert found.tolist() == [True, True, True]
    # Of 6 nodes, 3 in each irrep, a pair has both irreps with probability 3/5.
    assert dealt == pytest.approx(0.6, abs=0.05)
    assert complete_shares([made(1, 1), made(2, 2)])[0].tolist() == [False, False]


def test_a_panel_has_the_shares_of_each_optimizer_its_control_and_the_models(runs: list[Run]) -> None:
    whole = [run for run in runs if run["data.train_size"] == 24]
    (axes, *_) = find_figure("thm08_muon_quick")(whole).axes
    assert axes.get_title(loc="left") == "Z5: 2 irreps"
    lines = {text.get_text() for text in axes.get_legend().get_texts()}
    assert lines == {
        "SphereAscent", "SphereAscent, its nodes dealt to the seeds", "independent draws", "orthogonal gradients (urn)"
    }  # fmt: skip


def test_runs_without_coverage_are_refused(runs: list[Run]) -> None:
    for run in runs:
        run.__dict__["metrics"] = run.metrics.drop(columns="features/coverage")
    with pytest.raises(InputError, match="features/coverage"):
        find_figure("thm04_boundary")(runs)


@pytest.mark.parametrize(
    ("y", "expected"), [([0, 0.25, 0.75], 1.5), ([0, 1], 0.5), ([0.6, 0.9], None), ([0.1, 0.2], None)]
)
def test_where_a_curve_crosses_one_half(y: list[float], expected: float | None) -> None:
    assert half_crossing(range(len(y)), y) == expected
