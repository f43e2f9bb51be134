"""Optimizers compared: tuned on one task over a grid each, then confirmed on fresh seeds and several workloads.

    li2 race DIR… [-o race.md] [-o race.csv]
    li2 race DIR… --confirm SEEDS [--workloads NAME,…] [-o confirmed.md] [-o results.csv] [-o confirmed.png]
    li2 race results.csv [-o confirmed.md] [-o confirmed.png]

The first form prints the table of the tuning.

Each line is an *entrant*: an optimizer section without learning rates and weight decays, whose values are the entrant's
grid. The runs may differ in nothing else but the seed. The **best** setting of an entrant is the one with which most
seeds reached test accuracy .99; among equals, the one with the smallest median step. The minimum over a larger grid is
smaller by chance alone, so the table gives the number of settings.

| column | meaning |
|---|---|
| optimizer | its preset; else the optimizer of W (the inner one in brackets), after a slash that of V if it differs |
| steps to .99 | median over the seeds of the best setting; a seed that never reached .99 counts as infinitely late |
| seeds | number of seeds of the best setting that reached .99, of how many |
| range | earliest and latest step among these seeds |
| settings | number of settings of the grid with which every seed reached .99, of how many |
| best setting | learning rate and weight decay of W, and of V where they differ; ↑ or ↓: at the edge of its grid |
| irreps a node | irreps in which some node has more than half of its norm (features/coverage), over K |
| diversity | exp(−Σ q_k ln q_k), q_k the share of irrep k among the pure nodes |
| pure | share of pure nodes, which have more than half of their norm in one irrep |
| ms a step | median over all runs, from cost.json; in brackets as a multiple of adam's, if adam is an entrant |
| ms an update | the optimizer's part of a step |
| state | bytes of optimizer state for each byte of trained parameters |

The columns about nodes are medians over the seeds of the best setting, from the last checkpoint of each. With
``stop_at_test_accuracy`` these are nodes that have just generalized, not nodes after equally many steps.

With ``--confirm`` the best setting of each entrant is trained on SEEDS fresh seeds and on every workload, a file of
configs/workload. Runs that have ended are not repeated. No seed of the tuning is in these numbers, so they are
unbiased. The best setting on the tuned task need not be the best on another workload.

| column | meaning |
|---|---|
| score | share of workloads within τ times the fastest entrant, averaged over τ from 1 to 4 (AlgoPerf) |
| steps over adam's | its steps over adam's with the same seed on the same workload, median over seeds and workloads |
| group | entrants with a common letter cannot be told apart |
| workloads, seeds | workloads on which more than half of the seeds reached .99; seeds that reached it; of how many |
| setting | as above; ↑ or ↓: at the edge of the tuned grid |

Brackets hold 95 % bootstrap intervals over seeds, which are drawn within each workload and are the same for all
entrants. Two entrants differ if Wilcoxon's signed-rank test on the ratios of their steps, exact and corrected by Holm
for all pairs, gives p < .05. All of this is about these workloads. The same command confirms entrants that enter later.
results.csv holds the steps of every seed, and the third form shows and draws them without any run.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from li2_lightning.analysis.collect import report_unfinished
from li2_lightning.analysis.figures.style import SUFFIXES as PICTURES
from li2_lightning.analysis.figures.style import save
from li2_lightning.analysis.race.confirm import confirm, workload_names
from li2_lightning.analysis.race.picture import draw_standings
from li2_lightning.analysis.race.results import Results
from li2_lightning.analysis.race.standings import Standings
from li2_lightning.analysis.race.table import markdown, race_table
from li2_lightning.cli.commands import add_directories, add_outputs, check_outputs
from li2_lightning.errors import InputError
from li2_lightning.files import replacing
from li2_lightning.runs.load import find_runs

TABLES = (".md", ".csv")


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 race``."""
    add_directories(parser)
    parser.add_argument("--confirm", metavar="SEEDS", type=int, help="number of fresh seeds for the best settings")
    parser.add_argument("--workloads", metavar="NAME,…",
                        help=f"what to confirm on; all by default: {', '.join(workload_names())}")  # fmt: skip
    add_outputs(parser, (*TABLES, *PICTURES), required=False)
    given = parser.parse_args(arguments)

    stored = [path for path in given.directories if path.suffix == ".csv"]
    if stored and (len(given.directories) > 1 or given.confirm is not None):
        raise InputError(f"{stored[0]} holds the results of a confirmation; give it alone, or directories of runs.")
    if given.workloads is not None and given.confirm is None:
        raise InputError(f"--workloads={given.workloads} is read only with --confirm; add that or drop it.")
    is_confirmation = bool(stored) or given.confirm is not None
    check_outputs(given.output, (*TABLES, *PICTURES) if is_confirmation else TABLES)
    if stored:
        _show(Results.read(stored[0]), given.output)
        return
    runs = find_runs(given.directories)
    report_unfinished(runs)
    if given.confirm is not None:
        names = workload_names() if given.workloads is None else given.workloads.split(",")
        _show(confirm(runs, given.confirm, names), given.output)
        return
    table = race_table(runs)
    text = markdown(table)
    print(text)
    for path in given.output:
        with replacing(path) as temporary:
            temporary.write_text(f"{text}\n" if path.suffix == ".md" else table.to_csv(index=False), encoding="utf-8")


def _show(results: Results, outputs: Sequence[Path]) -> None:
    standings = Standings(results)
    text = "\n\n".join(map(markdown, (standings.overall(), standings.by_workload(), standings.all_pairs())))
    print(text)
    for path in outputs:
        if path.suffix == ".csv":
            results.write(path)
        elif path.suffix == ".md":
            with replacing(path) as temporary:
                temporary.write_text(f"{text}\n", encoding="utf-8")
        else:
            save(draw_standings(standings), path)
