"""The small groups: each is a group, with the classes and irreps that GAP says, and no two are the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import FiniteGroup
from li2_lightning.groups.representations import character_table
from li2_lightning.groups.small_groups import SmallGroup, catalogue, small_group
from li2_lightning.tasks.tasks import build_task
from tests.conftest import LI2, li2_command

main = li2_command("groups")


EVERY = [entry for members in catalogue().values() for entry in members]


def check(entry: SmallGroup) -> None:
    """The table, which satisfies the axioms once there is a group, and our characters, against GAP's numbers."""
    group = entry.group()
    irreps = character_table(group)
    assert group.order == entry.order
    assert group.identity == 0
    assert group.is_abelian is entry.is_abelian
    assert len(group.conjugacy_classes) == len(irreps) == entry.num_classes
    assert sum(irrep.dimension**2 for irrep in irreps) == entry.order
    assert Counter(irrep.dimension for irrep in irreps) == entry.degrees
    assert Counter(f"{irrep.kind}{irrep.dimension}" for irrep in irreps) == entry.irreps
    assert entry.max_irrep_dimension == irreps[-1].dimension


def fingerprint(group: FiniteGroup) -> int:
    """A number that isomorphic groups share.

    Elements are coloured by their order; an element's next colour is made of its own, its square's, and of those of
    y, xy and [x, y] over all y, until no colour splits any more.
    """
    T, n = group.table, group.order
    x = np.arange(n)
    orders, power = np.ones(n, dtype=np.int64), x
    while (power != group.identity).any():
        orders += power != group.identity
        power = np.where(power == group.identity, power, T[power, x])
    commutator = T[T, group.inverses[T.T]]  # xy(yx)⁻¹
    colours = np.unique(orders, return_inverse=True)[1]
    history: list[bytes] = [np.sort(orders).tobytes()]
    while True:
        count = colours.max() + 1
        over_y = np.sort((colours * count + colours[T]) * count + colours[commutator], axis=1)
        rows = np.column_stack([colours, colours[np.diagonal(T)], over_y])
        found, finer, sizes = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
        history += [found.tobytes(), sizes.tobytes()]
        if len(found) == count:
            return hash(tuple(history))
        colours = finer.ravel()


def test_how_many_there_are() -> None:
    assert list(catalogue()) == list(range(1, 128))
    assert all([e.index for e in members] == list(range(1, len(members) + 1)) for members in catalogue().values())
    assert sum(not entry.is_abelian for entry in EVERY) == 1036
    # The numbers of groups of these orders, from the literature.
    known = {8: 5, 16: 14, 32: 51, 64: 267, 81: 15, 96: 231, 97: 1, 120: 47, 125: 5}
    assert {order: len(catalogue()[order]) for order in known} == known


def test_the_data_are_small() -> None:
    data = files("li2_lightning") / "resources" / "small_groups.json.gz"
    assert len(data.read_bytes()) < 200_000


def test_first_and_last_group_of_each_order_and_some_more() -> None:
    ends = {(members[i].order, members[i].index) for members in catalogue().values() for i in (0, -1)}
    drawn = np.random.default_rng(0).choice(len(EVERY), 100, replace=False).tolist()
    for place, entry in enumerate(EVERY):
        if (entry.order, entry.index) in ends or place in drawn:
            check(entry)


@pytest.mark.slow
@pytest.mark.parametrize("order", catalogue())
def test_every_group(order: int) -> None:
    for entry in catalogue()[order]:
        check(entry)


# Groups that the fingerprint takes for one another: how many it tells apart at these orders. Elsewhere, all of them.
TOLD_APART = {16: 13, 32: 42, 48: 49, 64: 200, 80: 49, 81: 14, 96: 197, 100: 15, 112: 40}


@pytest.mark.parametrize("order", [8, 12, 18, 24, 27, 36, 54, 60])
def test_no_two_groups_are_the_same(order: int) -> None:
    members = catalogue()[order]
    assert len({fingerprint(entry.group()) for entry in members}) == len(members)


@pytest.mark.slow
@pytest.mark.parametrize("order", catalogue())
def test_no_two_groups_are_the_same_as_far_as_the_fingerprint_sees(order: int) -> None:
    members = catalogue()[order]
    found = {fingerprint(entry.group()) for entry in members}
    assert len(found) == TOLD_APART.get(order, len(members))


@pytest.mark.parametrize(
    ("order", "index", "structure", "known"),
    [
        (6, 1, "S3", groups.symmetric(3)),
        (8, 4, "Q8", groups.quaternion(8)),
        (10, 1, "D10", groups.dihedral(5)),
        (12, 1, "C3 : C4", groups.quaternion(12)),
        (24, 12, "S4", groups.symmetric(4)),
        (60, 5, "A5", groups.alternating(5)),
        (71, 1, "C71", groups.cyclic(71)),
        (120, 34, "S5", groups.symmetric(5)),
    ],
)
def test_the_numbering_is_that_of_the_literature(order: int, index: int, structure: str, known: FiniteGroup) -> None:
    group = small_group(order, index)
    assert group.name == f"{structure} ({order},{index})"
    assert fingerprint(group) == fingerprint(known)
    others = (e.group() for e in catalogue()[order] if e.index != index)
    assert all(fingerprint(other) != fingerprint(known) for other in others)


def test_a_table_is_the_same_each_time() -> None:
    assert small_group(96, 100) == small_group(96, 100)


def test_the_task_and_its_config() -> None:
    section: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "configs/task/small_group.yaml"))
    assert section == {"name": "small_group", "order": 21, "index": 1}
    task = build_task(section)
    assert task.name == "C7 : C3 (21,1)"
    assert task.group == small_group(21, 1)
    assert task.labels.reshape(21, 21).tolist() == task.group.table.tolist()
    assert Counter(irrep.dimension for irrep in character_table(task.group)) == {1: 3, 3: 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 21, "index": 3}, r"^task\.index is 3, but there are 2 groups of order 21; .* 1 to 2\.$"),
        ({"order": 15, "index": 0}, r"^task\.index is 0, but there is 1 group of order 15; allowed is 1\.$"),
        ({"order": 128, "index": 1}, r"^task\.order is 128; allowed is an integer from 1 to 127\.$"),
        ({"order": 0, "index": 1}, r"^task\.order is 0; allowed is an integer from 1 to 127\.$"),
        ({"order": 21}, r"^The task 'small_group' needs task\.index; it takes order, index, num_operands=2, word=None"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_task({"name": "small_group", **options})


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "--order", "21") == [
        "order  index  structure  irreps",
        "   21      1  C7 : C3    R1 2C1 2C3",
        "   21      2  C21        R1 20C1",
        "2 groups",
    ]
    assert listed(capsys, "--order", "8", "--non-abelian")[1:] == [
        "    8      3  D8         4R1 R2",
        "    8      4  Q8         4R1 H2",
        "2 groups",
    ]
    assert listed(capsys)[-1] == f"{len(EVERY)} groups"
    assert listed(capsys, "--non-abelian")[-1] == "1036 groups"
    of_dimension_2 = listed(capsys, "--max-irrep-dimension", "2", "--non-abelian")
    assert len(of_dimension_2) - 2 == sum(entry.max_irrep_dimension == 2 for entry in EVERY)


@pytest.mark.parametrize("arguments", [["--order", "128"], ["--max-irrep-dimension", "0"]])
def test_the_listing_refuses_in_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {arguments[0]} is {arguments[1]}; allowed is an integer from 1 to 127.\n"


def test_the_listing_is_a_command_and_may_be_cut_short() -> None:
    command = f"{sys.executable} -c '{LI2}' groups | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["order", "index", "structure", "irreps"]
    assert (done.returncode, done.stderr) == (0, "")
