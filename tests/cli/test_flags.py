"""Hydra's flags stand anywhere among the overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from li2_lightning.cli.hydra_errors import CHOICES, GROUPS, SWITCHES, VALUED, prepare
from tests.cli.conftest import ROOT, CommandLine


@pytest.mark.parametrize(
    ("typed", "prepared"),
    [
        ("seed=1 --config-dir X task=y", ["--config-dir=X", "seed=1", "task=y"]),
        ("seed=1 --cfg job task=y", ["--cfg=job", "seed=1", "task=y"]),
        ("seed=1 task=y -c job --resolve", ["--resolve", "--cfg=job", "seed=1", "task=y"]),
        ("seed=1 -p task task=y --cfg=all", ["--cfg=all", "--package=task", "seed=1", "task=y"]),
        ("seed=1 -cn other task=y", ["--config-name=other", "seed=1", "task=y"]),
        ("seed=1 --config-path P task=y", ["--config-path=P", "seed=1", "task=y"]),
        ("seed=0,1 -m task=y", ["--multirun", "seed=0,1", "task=y"]),
        ("seed=1 --help task=y", ["--help", "seed=1", "task=y"]),
        ("seed=1 --info task=y", ["--info=all", "seed=1", "task=y"]),
        ("seed=1 -i", ["--info=all", "seed=1"]),
        ("seed=1 --info defaults task=y", ["--info=defaults", "seed=1", "task=y"]),
        ("optimizer.hidden={name:sgd,lr:1}", ["++optimizer.hidden={name:sgd,lr:1}"]),
        ("optimizer.hidden.lr=1 --run task=null", ["--run", "++optimizer.hidden.lr=1", "task='null'"]),
    ],
)
def test_a_flag_among_the_overrides_goes_before_them(typed: str, prepared: list[str]) -> None:
    assert prepare(typed.split()) == prepared


def test_the_flags_are_those_of_hydra() -> None:
    """Those that Hydra has and this project does not know would be refused."""
    theirs = {tuple(action.option_strings): action for action in get_args_parser()._actions if action.option_strings}
    ours = {(f"--{name}", *([f"-{short}"] if short else [])) for name, short in (*SWITCHES, *VALUED)}
    assert ours == set(theirs)
    for name, choices in CHOICES.items():
        assert tuple(get_args_parser()._option_string_actions[f"--{name}"].choices) == choices


def test_the_groups_are_the_folders_of_configs() -> None:
    assert {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} == {*GROUPS, "hydra"}


def test_a_folder_of_the_users_own_may_be_named_after_an_override(command_line: CommandLine, workplace: Path) -> None:
    (workplace / "mine" / "experiment").mkdir(parents=True)
    (workplace / "mine" / "experiment" / "y.yaml").write_text("# @package _global_\nmax_steps: 17\n")
    outcome = command_line("seed=5", "--config-dir", "mine", "experiment=y", "--cfg", "job", "task.order=7")
    assert outcome.code == 0, outcome
    for line in ("seed: 5", "max_steps: 17", "order: 7"):
        assert line in outcome.out
