"""Tasks: their rows and labels, what a config may say, and the split into training and test rows."""

from __future__ import annotations

import math
import re
import shlex
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.tasks.splits import Split, build_split, split_rows
from li2_lightning.tasks.tasks import TASKS, Task, build_task, group_task
from li2_lightning.theory.sampling import critical_fraction

CONFIGS: dict[str, dict[str, Any]] = {
    "cyclic": {"order": 7},
    "product": {"factors": "2x3"},
    "symmetric": {"degree": 3},
    "alternating": {"degree": 4},
    "dihedral": {"degree": 5},
    "quaternion": {},
    "expression": {"expression": "x^2+y", "modulus": 5},
}
UNSET = ("order", "factors", "degree", "index", "modulus", "expression", "path", "num_operands")


def build(name: str, **options: Any) -> Task:
    """`build_task` of a whole task section, with None for what is not set."""
    return build_task({"name": name, **dict.fromkeys(UNSET), **options})


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_row_major(name: str) -> None:
    task = build(name, **CONFIGS[name])
    M = task.num_tokens
    assert task.operands.tolist() == [list(row) for row in product(range(M), repeat=2)]
    assert task.operands.dtype == task.labels.dtype == np.int64
    assert task.num_operands == 2
    assert task.num_classes == M


def test_every_task_is_tested() -> None:
    assert {*CONFIGS, "cayley_table"} <= set(TASKS.names())


def test_the_default_is_addition_modulo_71() -> None:
    task = build("cyclic")
    assert np.array_equal(task.labels, task.operands.sum(axis=1) % 71)
    assert task.group == groups.cyclic(71)
    assert task.name == "Z71"
    assert task.predicted_fraction == pytest.approx(2.7482 * math.log(71) / 71, rel=1e-12)


@pytest.mark.parametrize("num_operands", [1, 2, 3, 4])
def test_a_label_is_the_product_from_left_to_right(num_operands: int) -> None:
    group = groups.symmetric(3)
    task = build("symmetric", degree=3, num_operands=num_operands)
    assert task.operands.tolist() == [list(row) for row in product(range(6), repeat=num_operands)]
    for operands, label in zip(task.operands.tolist(), task.labels.tolist(), strict=True):
        # From the right, which associativity makes the same.
        value = operands[-1]
        for operand in operands[-2::-1]:
            value = group.table[operand, value]
        assert label == value
    assert (task.predicted_fraction is None) is (num_operands != 2)


def test_a_table_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "klein.npy", groups.product("2x2").table)
    assert build("cayley_table", path=str(tmp_path / "klein.npy")).group == groups.product("2x2")
    (tmp_path / "open.csv").write_text("0,1\n1,2\n")
    with pytest.raises(InputError, match="not closed: 1·1 = 2 is not among the elements"):
        build("cayley_table", path=str(tmp_path / "open.csv"))


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ([[0, 1], [1, 1]], "1 has no inverse"),  # a monoid
        ([[(2 * a + 3 * b) % 5 for b in range(5)] for a in range(5)], "it has no identity"),  # a quasigroup
        ([[a for _ in range(3)] for a in range(3)], "it has no identity"),  # a band
    ],
    ids=["monoid", "quasigroup", "band"],
)
def test_an_operation_that_is_no_group_is_learned_as_it_is(tmp_path: Path, table: list[list[int]], why: str) -> None:
    np.save(tmp_path / "op.npy", np.array(table))
    path, M = str(tmp_path / "op.npy"), len(table)
    task = build("cayley_table", path=path)
    assert task.labels.reshape(M, M).tolist() == table
    assert task.group is None
    assert task.predicted_fraction is None
    assert why in task.why_no_group()
    three = build("cayley_table", path=path, num_operands=3)
    for (a, b, c), label in zip(three.operands.tolist(), three.labels.tolist(), strict=True):
        assert label == table[table[a][b]][c]
    with pytest.raises(InputError, match=r"task\.word='ba' needs a group"):
        build("cayley_table", path=path, word="ba")


def by_word(group: groups.FiniteGroup, word: str, operands: list[int]) -> int:
    value = group.identity
    for letter in word:
        g = operands["abc".index(letter.lower())]
        value = group.table[value, g if letter.islower() else group.inverses[g]]
    return int(value)


@pytest.mark.parametrize(("word", "operands"), [("abA", 2), ("aba", 2), ("abAB", 2), ("b", 2), ("AA", 1), ("cabC", 3)])
def test_a_word_is_multiplied_from_left_to_right(word: str, operands: int) -> None:
    group = groups.symmetric(3)
    task = build("symmetric", degree=3, word=word, num_operands=operands)
    for row, label in zip(task.operands.tolist(), task.labels.tolist(), strict=True):
        assert label == by_word(group, word, row)
    assert task.group is None


def test_a_word_whose_table_is_a_group_is_the_task_of_that_group() -> None:
    """ba is the opposite group; ab is the product itself; a·b⁻¹ is a group where every element is its own inverse."""
    group = groups.symmetric(3)
    opposite = build("symmetric", degree=3, word="ba").group
    assert opposite is not None
    assert np.array_equal(opposite.table, group.table.T)
    assert build("symmetric", degree=3, word="ab").group == group
    assert build("product", factors="2x2", word="aB").group == groups.product("2x2")
    assert build("cyclic", order=5, word="aB").group is None


@pytest.mark.parametrize("word", ["", "abc", "a b", "a*b", "a1", "å", "a" * 101])
def test_another_character_in_a_word_is_one_sentence(word: str) -> None:
    with pytest.raises(InputError, match=r"task\.word=.* does not fit; it is up to 100 of the letters a, b, one"):
        build("cyclic", order=5, word=word)


def test_an_expression_that_is_a_group_is_known_as_one() -> None:
    task = build("expression", expression="x+y", modulus=11)
    assert task.group == groups.cyclic(11)
    assert task.predicted_fraction == critical_fraction(11, 1)
    # x+y+1 is a group too, with the identity −1.
    shifted = build("expression", expression="x+y+1", modulus=11).group
    assert shifted is not None
    assert shifted.identity == 10
    for text in ("x*y", "x-y", "x^2+y", "x"):
        other = build("expression", expression=text, modulus=11)
        assert other.group is None
        assert other.predicted_fraction is None


def test_undefined_rows_are_left_out() -> None:
    task = build("expression", expression="x/y", modulus=7)
    assert task.operands.tolist() == [[x, y] for x in range(7) for y in range(1, 7)]
    assert np.array_equal(task.labels * task.operands[:, 1] % 7, task.operands[:, 0])
    with pytest.raises(InputError, match="undefined everywhere"):
        build("expression", expression="x/0", modulus=7)


def test_operands_of_an_expression() -> None:
    task = build("expression", expression="x + y*z", modulus=4, num_operands=3)
    x, y, z = task.operands.T
    assert np.array_equal(task.labels, (x + y * z) % 4)
    assert build("expression", expression="x^3", modulus=5, num_operands=1).labels.tolist() == [0, 1, 3, 2, 4]
    seven = build("expression", expression="x+y+z+w+v+u+t", modulus=2, num_operands=7)
    assert np.array_equal(seven.labels, seven.operands.sum(axis=1) % 2)


def test_a_variable_too_many_says_what_to_set() -> None:
    with pytest.raises(InputError, match=r"uses w, operand number 4; raise task\.num_operands from 2 to 4"):
        build("expression", expression="x+w", modulus=5)
    with pytest.raises(InputError, match="unknown variable 'a'"):
        build("expression", expression="x+a", modulus=5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "cycllic"}, "Did you mean 'cyclic'?"),
        ({"name": "small_grup", "order": 21, "index": 1}, "Unknown task 'small_grup'"),
        (
            {"name": "symmetric", "degree": 4, "order": 24},
            "no option 'order' (from task.order); it takes degree, num_operands=2, word=None. "
            "task.order=null leaves out what a preset has set.",
        ),
        ({"name": "symmetric"}, "needs task.degree"),
        ({"name": "cyclic", "order": 0}, "order is 0; allowed is an integer from 1"),
        ({"name": "cyclic", "order": -3}, "order is -3"),
        ({"name": "cyclic", "order": 1.5}, "order is 1.5"),
        ({"name": "cyclic", "num_operands": 0}, "num_operands is 0; allowed is an integer from 1"),
        ({"name": "cyclic", "num_operands": 2.0}, "num_operands is 2.0"),
        ({"name": "cyclic", "num_operands": True}, "task.num_operands=True must be a finite number, like 2"),
        ({"name": "cyclic", "num_operands": 4}, "4 operands of 71 tokens make 25411681 rows; allowed"),
        ({"name": "cyclic", "num_operands": 10**9}, "num_operands is 1000000000"),
        ({"name": "product", "factors": "2x"}, "joined by x"),
        ({"name": "expression", "expression": "x+y"}, "needs task.modulus"),
        ({"name": "expression", "modulus": 5}, "needs task.expression"),
        ({"name": "expression", "expression": "f(x)", "modulus": 5}, "a call"),
        ({"name": "expression", "expression": "x", "modulus": 0}, "modulus is 0"),
        (
            {"name": "expression", "expression": "x", "modulus": 3000},
            "2 operands of 3000 tokens make 9000000 rows",
        ),
        ({"name": "expression", "expression": "x", "modulus": 5, "num_operands": 0}, "num_operands is 0"),
        ({"name": "cayley_table", "path": "nowhere.csv"}, "nowhere.csv cannot be read"),
        ({"name": "math:sqrt"}, "needs task.x"),
    ],
)
def test_a_bad_config_is_one_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        build(**config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def not_a_task(order: int = 3) -> int:
    """A plug-in that does not keep the contract."""
    return order


def test_a_plug_in_must_return_a_task() -> None:
    with pytest.raises(InputError, match=r"gave a int, not a li2_lightning\.tasks\.tasks\.Task"):
        build(f"{__name__}:not_a_task")


@pytest.mark.parametrize(
    ("operands", "labels", "words"),
    [
        (np.zeros((4, 2), int), np.zeros(3, int), "(N, k) and (N,)"),
        (np.zeros((0, 2), int), np.zeros(0, int), "not empty"),
        (np.zeros(4, int), np.zeros(4, int), "(N, k)"),
        (np.full((4, 2), 3), np.zeros(4, int), "operands of the task odd must be int64 from 0 to 2"),
        (np.full((4, 2), -1), np.zeros(4, int), "operands"),
        (np.zeros((4, 2), int), np.full(4, 2), "labels of the task odd must be int64 from 0 to 1"),
        (np.zeros((4, 2)), np.zeros(4, int), "int64"),
    ],
)
def test_a_task_is_checked(operands: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(InputError) as error:
        Task("odd", operands, labels, 3, 2)
    assert words in str(error.value)


# ---- critical fraction


def test_the_critical_fraction() -> None:
    # M = 71 of the source: p = .165, n = 832 of 5041 rows.
    assert critical_fraction(71, 1) == critical_fraction(71, 2) == pytest.approx(0.16500, abs=5e-6)
    assert critical_fraction(120, 6) == pytest.approx(3 * critical_fraction(120, 1), rel=1e-12)
    fractions = [critical_fraction(order, 1) for order in range(3, 1000)]
    assert fractions == sorted(fractions, reverse=True)


def test_the_prediction_knows_the_largest_irrep() -> None:
    assert build("symmetric", degree=5).predicted_fraction == critical_fraction(120, 6)
    assert build("alternating", degree=5).predicted_fraction == critical_fraction(60, 5)
    assert build("dihedral", degree=5).predicted_fraction == critical_fraction(10, 2)
    assert build("cyclic", order=2).predicted_fraction is None


# ---- splits

Z7 = group_task(groups.cyclic(7))
GOLDEN = [2, 3, 11, 13, 20, 48]


def split(task: Task = Z7, seed: int = 0, **options: Any) -> Split:
    return split_rows(task, seed=seed, **options)


@settings(deadline=None)
@given(seed=st.integers(0, 2**63), size=st.integers(1, 48))
def test_a_split_is_a_partition(seed: int, size: int) -> None:
    parts = split(seed=seed, train_size=size)
    assert len(parts.train) == size
    assert parts.train.dtype == parts.test.dtype == np.int64
    assert sorted([*parts.train, *parts.test]) == list(range(49))
    for rows in (parts.train, parts.test):
        assert np.all(np.diff(rows) > 0)


def test_the_split_is_fixed_by_the_seed_alone() -> None:
    # Written down, because a stored run must find the same rows again after any upgrade.
    assert split(train_size=6).train.tolist() == GOLDEN
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert split(train_size=6).train.tolist() == GOLDEN
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert split(seed=1, train_size=6).train.tolist() != GOLDEN


def test_a_larger_training_set_contains_a_smaller_one() -> None:
    assert set(split(train_fraction=0.2).train) < set(split(train_fraction=0.3).train)


def test_every_row_is_drawn_equally_often() -> None:
    counts = np.zeros(49)
    for seed in range(2000):
        counts[split(seed=seed, train_size=10).train] += 1
    # Binomial with n = 2000, p = 10/49: mean 408, deviation 18.
    assert np.abs(counts - 2000 * 10 / 49).max() < 4.5 * 18


@pytest.mark.parametrize(
    ("fraction", "rows"),
    [(0.4, 2016), (0.1, 504), (1 / 5041, 1), (29 / 5041, 29), (0.99999, 5040), (np.float32(0.5), 2520)],
)
def test_rows_of_a_fraction(fraction: float, rows: int) -> None:
    assert len(split(group_task(groups.cyclic(71)), train_fraction=fraction).train) == rows


def test_the_default_fraction() -> None:
    default, explicit = split(), split(train_fraction=0.4)
    assert np.array_equal(default.train, explicit.train)
    assert len(default.train) == 19


def test_rows_of_a_critical_ratio() -> None:
    task = group_task(groups.cyclic(71))
    assert len(split(task, critical_ratio=1.0).train) == math.floor(2.7482 * math.log(71) / 71 * 5041)
    assert len(split(task, critical_ratio=2).train) == math.floor(2 * 2.7482 * math.log(71) / 71 * 5041)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_fraction": 0.0}, "data.train_fraction = 0.0 is no fraction"),
        ({"train_fraction": 1}, "between 0 and 1"),
        ({"train_fraction": 1.5}, "between 0 and 1"),
        ({"train_fraction": -0.1}, "between 0 and 1"),
        ({"train_fraction": math.nan}, "data.train_fraction is nan; it must be a number"),
        ({"train_fraction": "half"}, "must be a number"),
        ({"train_fraction": True}, "must be a number"),
        ({"train_fraction": 0.001}, "leaves no training row of the 49"),
        ({"train_fraction": 1 - 1e-12}, "leaves no test row of the 49"),
        ({"train_size": 0}, "data.train_size is 0; allowed is an integer from 1 to 48"),
        ({"train_size": 49}, "integer from 1 to 48"),
        ({"train_size": 10.0}, "integer from 1 to 48"),
        ({"critical_ratio": 0}, "between 0 and 1"),
        ({"critical_ratio": 1.5}, "data.critical_ratio = 1.5, the fraction 1.146, is no fraction"),
        ({"critical_ratio": "x"}, "data.critical_ratio is 'x'; it must be a number"),
        ({"train_fraction": 0.5, "train_size": 5}, "data.train_fraction and data.train_size are set"),
        ({"train_fraction": 0.5, "critical_ratio": 1}, "data.train_fraction and data.critical_ratio are set"),
        ({"train_size": 5, "split_file": "s.npz"}, "data.train_size and data.split_file are set"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"split_file": "nowhere.npz"}, "split file nowhere.npz cannot be read: No such file"),
    ],
)
def test_a_bad_split_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        split(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def pairs(operands: list[tuple[int, int]], tokens: int) -> Task:
    return Task("pairs", np.array(operands), np.zeros(len(operands), np.int64), tokens, 1)


GRID = [(a, b) for a in range(5) for b in range(5)]
PAIRED = {
    "a commutative group": Z7,
    "S3": group_task(groups.symmetric(3)),
    "rows without a mirror image": pairs([(a, b) for a, b in GRID if b], 5),
    "no row (a, a)": pairs([(a, b) for a, b in GRID if a != b], 5),
    "only rows (a, a) and one pair": pairs([(0, 0), (1, 2), (2, 1), (3, 3)], 4),
    "no pair": pairs([(a, b) for a, b in GRID if a <= b], 5),
}


@settings(deadline=None)
@given(name=st.sampled_from(sorted(PAIRED)), seed=st.integers(0, 2**63), data=st.data())
def test_a_pair_and_its_mirror_image_are_on_one_side(name: str, seed: int, data: st.DataObject) -> None:
    task = PAIRED[name]
    rows = len(task.labels)
    size = data.draw(st.integers(1, rows - 1))
    if name == "no row (a, a)" and size % 2:
        with pytest.raises(InputError, match=f"every row has a mirror image.* an even number .* not {size};"):
            split(task, seed, train_size=size, keep_pairs_together=True)
        return
    parts = split(task, seed, train_size=size, keep_pairs_together=True)
    assert len(parts.train) == size
    assert sorted([*parts.train, *parts.test]) == list(range(rows))
    for side in (parts.train, parts.test):
        assert side.dtype == np.int64
        assert np.all(np.diff(side) > 0)
    train, test = ({tuple(row) for row in task.operands[side].tolist()} for side in (parts.train, parts.test))
    assert not {(b, a) for a, b in train} & test


def test_pairs_together_keep_the_size_of_a_fraction_up_to_parity() -> None:
    for fraction in (0.3, 0.31, 0.5):
        assert len(split(train_fraction=fraction, keep_pairs_together=True).train) == math.floor(49 * fraction)
    odd = PAIRED["no row (a, a)"]
    assert [len(split(odd, train_fraction=f, keep_pairs_together=True).train) for f in (0.5, 0.55, 0.95)] == [
        10,
        10,
        18,
    ]
    with pytest.raises(InputError, match="at least 2 and not 1"):
        split(odd, train_fraction=0.05, keep_pairs_together=True)
    assert len(split(critical_ratio=0.5, keep_pairs_together=True).train) == len(split(critical_ratio=0.5).train)


def test_pairs_together_are_fixed_by_the_seed_and_a_larger_set_contains_all_but_a_row_of_a_smaller_one() -> None:
    together = [split(train_size=size, keep_pairs_together=True) for size in range(1, 49)]
    assert together[19].train.tolist() == split(train_size=20, keep_pairs_together=True).train.tolist()
    assert together[19].train.tolist() != split(seed=1, train_size=20, keep_pairs_together=True).train.tolist()
    for smaller, larger in pairwise(together):
        assert len(set(smaller.train) - set(larger.train)) <= 1


def test_every_pair_is_drawn_equally_often() -> None:
    counts = np.zeros((7, 7))
    for seed in range(2000):
        counts.flat[split(seed=seed, train_size=10, keep_pairs_together=True).train] += 1
    assert np.array_equal(counts, counts.T)
    upper = counts[np.triu_indices(7, 1)]
    # Binomial with n = 2000, p = .2 up to the choice at the end: deviation 18.
    assert np.abs(upper - upper.mean()).max() < 4.5 * 18
    assert upper.mean() == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (build("cyclic", order=5, num_operands=3), {}, "needs task.num_operands=2, and the task Z5 has 3."),
        (build("expression", expression="x^2", modulus=5, num_operands=1), {}, "has 1."),
        (Z7, {"split_file": "s.npz"}, "data.split_file brings its own; set one of the two."),
        (pairs([(0, 1), (1, 0), (0, 1)], 2), {}, "the task pairs repeats one."),
        (pairs([(0, 1), (0, 1), (1, 1)], 2), {}, "the task pairs repeats one."),
        (pairs([(1, 1), (1, 1), (0, 1)], 2), {}, "the task pairs repeats one."),
    ],
)
def test_pairs_that_cannot_be_kept_together_are_one_sentence(task: Task, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        split(task, keep_pairs_together=True, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_split_of_a_data_section_has_the_seed_of_the_section_or_of_the_run() -> None:
    """A config.yaml from before these keys has neither."""
    section = {"train_size": 6, "train_fraction": None}
    for data, seed in (({}, 0), ({"seed": None}, 0), ({"seed": 0}, 5)):
        assert build_split(Z7, section | data, seed).train.tolist() == GOLDEN
    assert build_split(Z7, section | {"seed": 1}, 0).train.tolist() == split(seed=1, train_size=6).train.tolist()
    together = build_split(Z7, section | {"keep_pairs_together": True}, 0)
    assert together.train.tolist() == split(train_size=6, keep_pairs_together=True).train.tolist() != GOLDEN


def test_why_there_is_no_prediction() -> None:
    for task, why in (
        (build("expression", expression="x^2+y", modulus=5), "it is no group"),
        (build("cyclic", order=5, num_operands=3), "it has 3 operands, not 2"),
        (build("cyclic", order=2), "fewer than 3 elements, 2"),
    ):
        with pytest.raises(InputError, match=f"{why}; set data.train_fraction instead"):
            split(task, critical_ratio=1.0)
    with pytest.raises(InputError, match="single row"):
        split(build("cyclic", order=1))


def test_a_split_file(tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    np.savez(path, train=np.array([5, 0, 48], dtype=np.uint8), test=np.array([7, 3]))
    parts = split(split_file=path)
    assert parts.train.tolist() == [0, 5, 48]
    assert parts.test.tolist() == [3, 7]
    assert parts.train.dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train": [0, 1]}, "cannot be read: it has no array called 'test', only ['train']"),
        ({"train": [], "test": [1]}, "the array 'train' must be a list of at least one integer"),
        ({"train": list(range(1, 26)), "test": list(range(26, 50))}, "the rows 0 to 48; does it count from 1?"),
        ({"train": [49, 1], "test": [2, 3]}, "the rows 0 to 48; does it count from 1?"),
        ({"train": [49, 1], "test": [np.nan]}, "the rows 0 to 48; does it count from 1?"),
        ({"train": [0, 49], "test": [1]}, "the rows 0 to 48."),
        ({"train": np.zeros(0, int), "test": [1]}, "'train' must be a list of at least one integer"),
        ({"train": [1], "test": np.zeros(0, int)}, "'test' must be a list of at least one integer"),
        ({"train": [0.0, 1.0], "test": [2]}, "it is float64 of shape (2,)"),
        ({"train": [True, False], "test": [2]}, "it is bool"),
        ({"train": [[0, 1]], "test": [2]}, "shape (1, 2)"),
        ({"train": [0, 49], "test": [2]}, "'train' holds the row 49; the task Z7 has the rows 0 to 48"),
        ({"train": [0], "test": [2, -1]}, "'test' holds the row -1"),
        ({"train": np.array([2**63], np.uint64), "test": [2]}, "holds the row 9223372036854775808"),
        ({"train": [0, 4, 4], "test": [2]}, "lists the row 4 twice"),
        ({"train": [0, 4], "test": [2, 4]}, "lists the row 4 twice"),
        ({"train": np.array([0, None]), "test": [2]}, "allow_pickle"),
    ],
)
def test_a_bad_split_file_is_one_sentence(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = tmp_path / "split.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as error:
        split(split_file=path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "split.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"split\.npz cannot be read") as error:
        split(split_file=path)
    # NumPy's advice to unpickle the file would run code in it.
    assert "allow_pickle" not in str(error.value)


def test_every_task_of_the_docs_is_one(tmp_path: Path) -> None:
    """The line says whether the task has a group."""
    np.save(tmp_path / "table.npy", groups.symmetric(3).table)
    lines = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8").splitlines()
    found = [(command, line) for line in lines for command in re.findall(r"`(task=[^`]+)`", line)]
    assert len(found) > 12
    for command, line in found:
        words = [word.partition("=") for word in shlex.split(command)]
        config: dict[str, Any] = {
            key.removeprefix("task.").replace("task", "name"): v.strip("'") for key, _, v in words
        }
        config |= {key: int(config[key]) for key in ("order", "degree", "index", "modulus") if key in config}
        if "path" in config:
            config["path"] = str(tmp_path / "table.npy")
        assert (build_task(config).group is None) == ("| none" in line), line
