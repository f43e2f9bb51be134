"""The confirmation of a race: statistics on data whose answer is known, the small file, and the command."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import train
from li2_lightning.analysis.race import entrants
from li2_lightning.analysis.race.confirm import fresh_seeds, read_workloads, workload_names
from li2_lightning.analysis.race.picture import draw_standings
from li2_lightning.analysis.race.results import Results
from li2_lightning.analysis.race.standings import Standings
from li2_lightning.analysis.race.statistics import groups, holm, interval, ratio, scores, signed_rank, to_fastest
from li2_lightning.cli import main as li2
from li2_lightning.config.checks import load_config
from li2_lightning.errors import InputError
from li2_lightning.runs.load import find_runs
from tests.analysis.test_race import adam

INF = np.inf
NOISE = np.random.default_rng(0)


def main(*arguments: object) -> int:
    """``li2 race ARGUMENTS``."""
    return li2.main(["race", *map(str, arguments)])


def results(steps: Sequence[object], names: Sequence[str] | None = None) -> Results:
    values = np.array(steps, dtype=float)
    count = list(map(str, range(values.shape[1])))
    names = names or [f"o{i}" for i in range(len(values))]
    return Results(
        names, ["lr 1"] * len(names), count, [900] * len(count), list(range(100, 100 + values.shape[2])), values
    )


# -- statistics ----------------------------------------------------------------------------------------------


def by_enumeration(differences: Sequence[float]) -> float:
    """Every assignment of signs to the ranks, one by one."""
    left = [d for d in differences if d]
    sizes = np.abs(left)
    ranks = np.array([(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes])
    observed = ranks[np.array(left) > 0].sum()
    sums = np.array([(ranks * signs).sum() for signs in itertools.product((0, 1), repeat=len(left))])
    return float(min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean())))


@pytest.mark.parametrize(
    "differences",
    [[1, 2, 3, 4, 5], [1, -2, 3, -4, 5, 6], [1, 1, -1, 2, 2, 0, 0], [INF, -1, INF, 2, -INF], [-0.5, 3, 3, 3, -7, 8, 9]],
)
def test_the_signed_rank_test_is_exact_with_ties_and_infinities(differences: list[float]) -> None:
    assert signed_rank(np.array(differences, dtype=float)) == pytest.approx(by_enumeration(differences), abs=1e-12)


def test_the_signed_rank_test_keeps_its_level() -> None:
    """Of 2,000 samples without an effect at most 5 % are significant, but for the chance of such a count."""
    found = [signed_rank(NOISE.standard_normal(12)) < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(found) < 0.065
    assert signed_rank(np.zeros(5)) == 1
    assert signed_rank(np.arange(1.0, 21.0)) == pytest.approx(2 / 2**20)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_groups_of_a_chain_and_of_none_and_of_all() -> None:
    def differing(*pairs: tuple[int, int], count: int = 4) -> list[str]:
        differ = np.zeros((count, count), dtype=bool)
        for pair in pairs:
            differ[pair] = True
        return groups(differ)

    # Only the ends of the chain differ: the middle belongs to both.
    assert differing((0, 3)) == ["a", "ab", "ab", "b"]
    assert differing((0, 2), (0, 3), (1, 3)) == ["a", "ab", "bc", "c"]
    assert differing() == ["a"] * 4
    assert differing(*itertools.combinations(range(4), 2)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("seed", range(20))
def test_letters_say_exactly_which_pairs_differ(seed: int) -> None:
    differ = np.triu(np.random.default_rng(seed).random((7, 7)) < 0.4, 1)
    letters = groups(differ)
    for i, j in itertools.combinations(range(7), 2):
        assert differ[i, j] == (not set(letters[i]) & set(letters[j]))


def test_ratios_and_scores_by_hand() -> None:
    assert ratio(np.array([2.0, INF, 3.0, INF]), np.array([4.0, INF, INF, 1.0])).tolist() == [0.5, 1, 0, INF]
    times = np.array([[10.0, 40, INF], [20, 20, INF], [INF, 80, INF]])
    assert to_fastest(times).tolist() == [[1, 2, INF], [2, 1, INF], [INF, 4, INF]]
    assert scores(to_fastest(times)).tolist() == pytest.approx([(1 + 2 / 3) / 3, (2 / 3 + 1) / 3, 0])


def test_an_interval_takes_values_that_there_are() -> None:
    low, high = interval(np.array([INF] * 60 + [7.0] * 940))
    assert (low, high) == (7, INF)


# -- standings -----------------------------------------------------------------------------------------------


def test_a_known_winner_and_two_that_are_tied() -> None:
    """Twins differ by noise alone; the winner takes three quarters of their steps."""
    base = np.exp(0.2 * NOISE.standard_normal((3, 4, 20))) * np.array([50, 80, 120, 300])[:, None]
    standings = Standings(results([base[0], 0.75 * base[1], base[2]], ["adam", "winner", "twin"]))
    assert standings.optimizers[0] == "winner"
    pairs = {(standings.optimizers[p.first], standings.optimizers[p.second]): p for p in standings.pairs}
    tied = next(p for names, p in pairs.items() if "winner" not in names)
    assert not tied.differs
    assert tied.low < 1 < tied.high
    for names, pair in pairs.items():
        if names[0] == "winner":
            assert pair.differs
            assert pair.low < 0.75 < pair.high < 0.9
    assert standings.groups == ["a", "b", "b"]
    low, high = standings.score_interval
    assert (low <= standings.scores).all()
    assert (standings.scores <= high).all()
    assert low[0] > high[1:].max()


def test_the_interval_of_a_median_contains_it_as_often_as_it_says() -> None:
    samples = NOISE.exponential(size=(60, 5, 20))
    covered = 0
    for sample in samples:
        low, high = interval(Standings(results([sample])).resampled)
        covered += int(((low <= np.log(2)) & (np.log(2) <= high)).sum())
    assert 0.88 < covered / 300 <= 0.99


def test_an_entrant_that_never_arrives_is_last_and_said_so() -> None:
    steps = np.array([[[INF] * 6, [INF] * 6], [[10.0] * 6, [20] * 4 + [INF] * 2]])
    standings = Standings(results(steps, ["late", "adam"]))
    overall = standings.overall().set_index("optimizer")
    assert list(overall.index) == ["adam", "late"]
    assert overall.loc["late", ["score", "steps over adam's", "workloads", "seeds"]].tolist() == [
        "0.00 (0.00–0.00)", "never", "0 of 2", "0 of 12"
    ]  # fmt: skip
    assert overall.loc["adam", "seeds"] == "10 of 12"
    assert standings.by_workload().set_index("optimizer").loc["adam", "0"] == "10"
    assert standings.by_workload().set_index("optimizer").loc["adam", "1"] == "20 (20–never)"
    assert standings.all_pairs()["differ"].tolist() == ["yes"]


def test_what_is_drawn_is_what_was_found() -> None:
    steps = np.array([[[10.0] * 4, [30] * 4], [[20.0] * 4, [15] * 4], [[INF] * 4, [60] * 4]])
    figure = draw_standings(Standings(results(steps)))
    left, middle, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["o0", "o1", "o2"]
    assert [line.get_xdata().tolist() for line in middle.lines] == [[1, 2, 8], [2, 1, 4]], "8: never, twice the largest"
    # On half of the workloads o0 is the fastest; twice as slow on the other half.
    assert right.lines[0].get_xdata().tolist() == [1, 1, 2, 4]
    assert right.lines[0].get_ydata().tolist() == [0, 0.5, 1, 1]


# -- file and command ----------------------------------------------------------------------------------------


def test_the_small_file_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = results([[[10, 20, INF], [1, 2, 3]], [[7, INF, INF], [4, 5, 6]]], ["a", "b"])
    written.write(tmp_path / "results.csv")
    read = Results.read(tmp_path / "results.csv")
    assert (read.optimizers, read.workloads, read.seeds, read.limits) == (
        ["a", "b"],
        ["0", "1"],
        [100, 101, 102],
        [900] * 2,
    )
    assert np.array_equal(read.steps, written.steps)
    assert (
        main(tmp_path / "results.csv", "-o", tmp_path / "a.md", "-o", tmp_path / "b.csv", "-o", tmp_path / "c.png") == 0
    )
    assert (tmp_path / "a.md").read_text() == capsys.readouterr().out
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "results.csv").read_text()
    assert (tmp_path / "c.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{runs}", "--confirm", "1"], "--confirm=1 are too few seeds for an interval; give at least 2."),
        (["{runs}", "--confirm", "2", "--workloads", "cyclc"], "Unknown workload 'cyclc'"),
        (["{runs}", "--workloads", "cyclic"], "is read only with --confirm; add that or drop it."),
        (["{runs}", "-o", "race.png"], "Unknown suffix of race.png"),
        (["{runs}", "--confirm", "2"], "No run reached test accuracy 0.99, so no setting is the best."),
        (["{csv}", "--confirm", "2"], "holds the results of a confirmation; give it alone"),
        (["{csv}"], "holds no results of li2 race --confirm"),
        (["nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, small_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("workload,optimizer\na,b\n")
    assert main(*(word.format(runs=small_sweep, csv=tmp_path / "x.csv") for word in arguments)) == 2
    message = capsys.readouterr().err.strip()
    assert sentence in message
    assert message.count("\n") == 0


def test_fresh_seeds_are_none_of_the_tuning() -> None:
    assert fresh_seeds([adam(1e-3, 0.1, 5, seed) for seed in (0, 2)], 3) == range(100, 103)
    assert fresh_seeds([adam(1e-3, 0.1, 5, seed) for seed in (100, 7)], 2) == range(200, 202)


@pytest.mark.parametrize("name", workload_names())
def test_a_workload_names_all_in_which_it_may_differ_from_the_tuning(name: str) -> None:
    (settings,) = read_workloads([name]).values()
    assert {"task", "data", "network", "loss", "max_steps"} == settings.keys()
    assert load_config(settings).network.width <= 128


def test_help_names_the_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main("--help")
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--confirm SEEDS" in told
    assert "mini_batches" in told


# -- the whole way -------------------------------------------------------------------------------------------

PLUG_IN = """
import torch


class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
"""


@pytest.mark.slow
def test_from_the_tuning_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two optimizers tuned on two seeds, one of them a file beside us, then three fresh seeds on two workloads."""
    (tmp_path / "race_plug_in.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    tuned = tmp_path / "outputs" / "tuned"
    for name, lr in itertools.product(("adam", "race_plug_in:SignDescent"), (0.03, 1e-4)):
        for seed in (0, 1):
            train.run(
                {
                    **read_workloads(["cyclic"])["cyclic"],
                    "seed": seed,
                    "name": "tuned",
                    "output_dir": str(tuned.parent),
                    "stop_at_test_accuracy": 0.99,
                    "optimizer": {"lr": lr, "weight_decay": 2e-3, "hidden": {"name": name}},
                    "logger": {"mode": "disabled"},
                    "trainer": {"accelerator": "cpu", "threads": 1},
                    "callbacks": {key: {"enabled": False} for key in ("report", "pictures", "progress")},
                }
            )
    command = (tuned, "--confirm", "3", "--workloads", "cyclic,product")
    outputs = ("-o", tmp_path / "r.csv", "-o", tmp_path / "r.md", "-o", tmp_path / "r.png")
    capsys.readouterr()
    assert main(*command, *outputs) == 0
    first = capsys.readouterr().out
    assert "Sweep: 12 runs, 0 finished already, 12 to go.\n12 runs in 4 stacks." in first
    found = Results.read(tmp_path / "r.csv")
    assert sorted(found.optimizers) == ["adam", "race_plug_in:SignDescent / adam"]
    assert (found.workloads, found.seeds) == (["cyclic", "product"], [100, 101, 102])
    assert all(setting.startswith("lr 0.03↑") for setting in found.settings)
    assert np.isfinite(found.steps[:, 0]).all()
    # Again with one more seed: what has ended is not run again, and its numbers are the same.
    assert main(tuned, "--confirm", "4", "--workloads", "cyclic,product", "-o", tmp_path / "again.csv") == 0
    assert "Sweep: 16 runs, 12 finished already, 4 to go." in capsys.readouterr().out
    assert np.array_equal(Results.read(tmp_path / "again.csv").steps[..., :3], found.steps)
    with pytest.raises(InputError, match="these runs differ in"):
        # The runs of a confirmation are no tuning.
        entrants(find_runs([tuned.parent]))
