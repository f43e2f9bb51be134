"""Groups: the constructors, the axioms, and reading a Cayley table."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from li2_lightning import groups
from li2_lightning.errors import InputError
from li2_lightning.groups.finite_group import FiniteGroup

# name: (group, order, number of conjugacy classes, Abelian), the numbers from the literature.
KNOWN = {
    "Z1": (groups.cyclic(1), 1, 1, True),
    "Z2": (groups.cyclic(2), 2, 2, True),
    "Z71": (groups.cyclic(71), 71, 71, True),
    "Z2×Z3×Z4": (groups.product("2x3x4"), 24, 24, True),
    "S3×Z2×Q8": (groups.product("S3x2xQ8"), 96, 30, False),
    "S1": (groups.symmetric(1), 1, 1, True),
    "S3": (groups.symmetric(3), 6, 3, False),
    "S4": (groups.symmetric(4), 24, 5, False),
    "S5": (groups.symmetric(5), 120, 7, False),
    "S6": (groups.symmetric(6), 720, 11, False),
    "A3": (groups.alternating(3), 3, 3, True),
    "A4": (groups.alternating(4), 12, 4, False),
    "A5": (groups.alternating(5), 60, 5, False),
    "D1": (groups.dihedral(1), 2, 2, True),
    "D2": (groups.dihedral(2), 4, 4, True),
    "D5": (groups.dihedral(5), 10, 4, False),
    "D8": (groups.dihedral(8), 16, 7, False),
    "Q8": (groups.quaternion(), 8, 5, False),
    "Dic3": (groups.quaternion(12), 12, 6, False),
    "Q16": (groups.quaternion(16), 16, 7, False),
}


def violations(table: np.ndarray) -> set[str]:
    """Which axioms a table breaks, each by its definition."""
    everything = range(len(table))
    if any(table[a, b] not in everything for a, b in product(everything, repeat=2)):
        return {"closure"}
    found = set()
    if any(table[table[a, b], c] != table[a, table[b, c]] for a, b, c in product(everything, repeat=3)):
        found.add("associative")
    units = [e for e in everything if all(table[e, a] == a == table[a, e] for a in everything)]
    if not units:
        found.add("identity")
    elif any(all(table[a, b] != units[0] or table[b, a] != units[0] for b in everything) for a in everything):
        found.add("inverse")
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_order_classes_and_commutativity(name: str) -> None:
    group, order, classes, abelian = KNOWN[name]
    assert group.name == name
    assert group.order == order
    assert len(group.conjugacy_classes) == classes
    assert group.is_abelian is abelian
    assert sorted(np.concatenate(group.conjugacy_classes)) == list(range(order))
    assert np.all(group.table[np.arange(order), group.inverses] == group.identity)
    assert len({group.label(g) for g in range(order)}) == order


def test_orders_of_the_elements() -> None:
    def element_orders(group: FiniteGroup) -> list[int]:
        found = []
        for g in range(group.order):
            power, k = g, 1
            while power != group.identity:
                power, k = group.table[power, g], k + 1
            found.append(k)
        return sorted(found)

    assert element_orders(groups.quaternion()) == [1, 2, 4, 4, 4, 4, 4, 4]
    assert element_orders(groups.dihedral(4)) == [1, 2, 2, 2, 2, 2, 4, 4]
    assert element_orders(groups.product("2x4")) == [1, 2, 2, 2, 4, 4, 4, 4]
    assert element_orders(groups.alternating(4)) == [1] + [2] * 3 + [3] * 8


def test_conventions_of_the_indices() -> None:
    s3 = groups.symmetric(3)
    assert s3.elements == ("012", "021", "102", "120", "201", "210")
    # (ab)(i) = a(b(i)): first exchange 1 and 2, then 0 and 1.
    assert s3.table[2, 1] == s3.elements.index("120")
    # The last factor varies fastest: (1,2) + (0,1) = (1,0).
    assert groups.product("2x3").table[5, 1] == 3
    s3x2 = groups.product("S3x2")
    assert s3x2.elements == tuple(f"({p},{k})" for p in s3.elements for k in (0, 1))
    assert (s3x2.table // 2 == s3.table[np.ix_(*[np.repeat(np.arange(6), 2)] * 2)]).all()
    d5 = groups.dihedral(5)
    s, r = 5, 1
    assert d5.table[s, r] == d5.table[d5.inverses[r], s]
    q8 = groups.quaternion()
    assert q8.table[4, 4] == 2


def test_a_group_is_known_by_its_table() -> None:
    assert groups.cyclic(6) == FiniteGroup("other name", groups.cyclic(6).table)
    assert hash(groups.cyclic(6)) == hash(FiniteGroup("other name", groups.cyclic(6).table))
    assert groups.cyclic(6) != groups.symmetric(3)
    assert groups.cyclic(6) != "Z6"
    with pytest.raises(ValueError, match="read-only"):
        groups.cyclic(6).table[0, 0] = 1


def test_the_caller_keeps_the_table() -> None:
    table = np.array([[0, 1], [1, 0]], dtype=np.int32)
    group = FiniteGroup("Z2", table)
    table[:] = 0
    assert group.table.tolist() == [[0, 1], [1, 0]]
    assert group.table.dtype == np.int64


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["Z71", "S4", "Q8", "Z2×Z3×Z4", "D5"]))
def test_the_identity_may_be_any_element(seed: int, name: str) -> None:
    group = KNOWN[name][0]
    new = np.random.default_rng(seed).permutation(group.order)
    table = np.empty_like(group.table)
    table[np.ix_(new, new)] = new[group.table]
    renamed = FiniteGroup("renamed", table)
    assert renamed.identity == new[group.identity]
    assert np.array_equal(renamed.inverses[new], new[group.inverses])
    assert sorted(map(len, renamed.conjugacy_classes)) == sorted(map(len, group.conjugacy_classes))


@settings(deadline=None)
@given(data=st.data())
def test_any_tampered_cell_is_found(data: st.DataObject) -> None:
    group, order, _, _ = KNOWN[data.draw(st.sampled_from(["Z2×Z3×Z4", "S4", "A4", "Q16", "Z71", "D5"]))]
    a, b, value = (data.draw(st.integers(0, order - 1)) for _ in range(3))
    table = group.table.copy()
    table[a, b] = value
    if value == group.table[a, b]:
        FiniteGroup("untouched", table)
    else:
        with pytest.raises(InputError, match="is no group"):
            FiniteGroup("tampered", table)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), order=st.integers(1, 4))
def test_axioms_against_their_definitions(data: st.DataObject, order: int) -> None:
    table = np.array(data.draw(st.lists(st.integers(-1, order), min_size=order**2, max_size=order**2)))
    # A unit and a row of inverses by construction, or random tables would fail at the first axiom.
    table = table.reshape(order, order)
    if data.draw(st.booleans()):
        table[0], table[:, 0] = np.arange(order), np.arange(order)
        table[np.arange(order), -np.arange(order) % order] = 0
    broken = violations(table)
    if broken:
        with pytest.raises(InputError) as error:
            FiniteGroup("random", table)
        words = {
            "closure": "not among",
            "identity": "identity",
            "inverse": "inverse",
            "associative": "associative",
        }
        assert any(words[axiom] in str(error.value) for axiom in broken)
    else:
        FiniteGroup("random", table)


def test_a_loop_that_is_no_group_is_refused() -> None:
    # Identity and inverses hold and every row and column is a permutation: only associativity fails.
    loop = np.array(
        [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]],
    )
    assert violations(loop) == {"associative"}
    with pytest.raises(InputError, match=r"not associative, \((\d)·(\d)\)·(\d) = (\d) but \1·\(\2·\3\) = (\d)"):
        FiniteGroup("loop", loop)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([[0, 1, 2], [1, 2, 0]], "shape (2, 3)"),
        ([0, 1], "shape (2,)"),
        (np.zeros((0, 0), int), "shape (0, 0)"),
        ([[0.0, 1.0], [1.0, 0.0]], "integers from 0 to 1"),
        ([[0, 1], [1, 2]], "1·1 = 2 is not among the elements 0 to 1"),
        ([[0, 1], [-1, 0]], "1·0 = -1"),
        ([[0, 0], [1, 1]], "no identity"),
        ([[0, 1], [1, 1]], "1 has no inverse"),
        (np.zeros((1025, 1025), int), "up to 1024"),
    ],
)
def test_what_is_wrong_is_named(table: object, words: str) -> None:
    with pytest.raises(InputError) as error:
        FiniteGroup("bad", np.asarray(table))
    assert words in str(error.value)


def test_the_sentence_uses_the_labels() -> None:
    with pytest.raises(InputError, match="a has no inverse"):
        FiniteGroup("bad", np.array([[0, 1], [1, 1]]), ("e", "a"))
    with pytest.raises(InputError, match="2 elements but 3 labels"):
        FiniteGroup("bad", np.array([[0, 1], [1, 0]]), ("e", "a", "b"))


@pytest.mark.parametrize("value", [0, -3, 1.5, 2.0, True, "7", None, math.inf, math.nan, 10**9, [3]])
@pytest.mark.parametrize("make", [groups.cyclic, groups.symmetric, groups.alternating, groups.dihedral])
def test_an_order_or_degree_is_a_positive_integer(make: object, value: object) -> None:
    with pytest.raises(InputError, match="allowed is an integer from 1 to"):
        make(value)  # type: ignore[operator]


@pytest.mark.parametrize("value", [0, 4, 9, 10, -8, 8.0, True, "8", 1028])
def test_the_order_of_a_quaternion_group(value: object) -> None:
    with pytest.raises(InputError, match=r"order is .*; allowed"):
        groups.quaternion(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "factors",
    ["2x", "axb", "0x3", "", "x", "2xx3", "-2x3", "2x3 ", "2.5x2", "1025", "32x33", "9" * 50, 6, None,
     "S7", "Q9x2", "Sx2", "s3", "S6x2"],
)  # fmt: skip
def test_factors_are_integers_and_groups_joined_by_x(factors: object) -> None:
    with pytest.raises(InputError, match="joined by x"):
        groups.product(factors)  # type: ignore[arg-type]


def test_the_largest_orders() -> None:
    assert groups.cyclic(1024).order == groups.product("2x512").order == groups.dihedral(512).order == 1024


KLEIN = groups.product("2x2").table


def write(path: Path, table: np.ndarray) -> Path:
    rows = table.tolist()
    match path.suffix:
        case ".csv":
            path.write_text("# Klein\n" + "\n".join(", ".join(map(str, row)) for row in rows) + "\n\n")
        case ".txt":
            path.write_text("\ufeff" + "\r\n".join("  ".join(map(str, row)) for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".npy":
            np.save(path, table.astype(np.uint8))
        case ".npz":
            np.savez_compressed(path, table=table, unrelated=np.zeros(3))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".json", ".npy", ".npz"])
def test_a_table_from_a_file(tmp_path: Path, suffix: str) -> None:
    group = groups.from_table(write(tmp_path / f"klein{suffix}", KLEIN))
    assert group == groups.product("2x2")
    assert group.name == "klein"
    with pytest.raises(InputError, match=f"bad{suffix}: .*is no group: .* not associative"):
        groups.from_table(write(tmp_path / f"bad{suffix}", np.array([[0, 1, 2], [1, 0, 0], [2, 0, 0]])))


@pytest.mark.parametrize("name", ["v.csv", "v.txt", "v.json"])
def test_a_table_of_labels(tmp_path: Path, name: str) -> None:
    rows = [list("eabc"), list("aecb"), list("bcea"), list("cbae")]
    separator = "," if name.endswith("csv") else " "
    lines = "\n".join(separator.join(row) for row in rows)
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith("json") else lines)
    group = groups.from_table(tmp_path / name)
    assert group == groups.product("2x2")
    assert group.elements == ("e", "a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "shape (0,)"),
        ("t.csv", b"0,1\n1", "Row 1 of the Cayley table has 1 cells"),
        ("t.csv", b"0,1\n1,2", "1·1 = 2 is not among"),
        ("t.csv", b"1,2\n2,1", "not among the elements 0 to 1"),
        ("t.csv", b"e,a\na,q", "a·a = 'q' is not among the elements"),
        ("t.csv", b"a,b\nb,x", "'x'"),
        ("t.csv", b"e,a\nb,e", "first row and column"),
        ("t.csv", b"e,e\ne,e", "first row and column"),
        ("t.csv", b"\xff\xfe\x00", "cannot be read"),
        ("t.txt", b"0 1\n1 99999999999999999999", "is not among"),
        ("t.json", b"[[0, 1], [1", "cannot be read"),
        ("t.json", b'{"table": []}', "list of lists"),
        ("t.json", b"[[0, 1], 3]", "list of lists"),
        ("t.json", b"[" * 100_000, "cannot be read"),
        ("t.json", b"[[0, 1], [1, null]]", "'None' is not among"),
        ("t.npy", b"nonsense", "cannot be read"),
        ("t.npz", b"PK\x03\x04 cut off", "cannot be read"),
        ("t.npz", b"nonsense", "cannot be read"),
        ("t.xlsx", b"", "none of the known endings .csv, .txt, .json, .npy, .npz"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        groups.from_table(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"1,2\n2,1"),
        ("t.txt", b"1 2 3\n2 3 1\n3 1 2"),
        ("t.json", b"[[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]"),
        ("t.json", b"[[1]]"),
        # No group either, but this is what is wrong first.
        ("t.csv", b"1,2\n2,2"),
    ],
)
def test_a_table_that_counts_from_1_is_told_so(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the table counts from 1, as GAP does, so subtract 1 from every entry\.$"):
        groups.from_table(path)


@pytest.mark.parametrize("content", [b"0,1\n1,2", b"1,3\n3,1", b"-1,1\n1,2"])
def test_a_table_that_is_wrong_otherwise_is_not(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not among") as error:
        groups.from_table(path)
    assert "counts from 1" not in str(error.value)


def test_a_missing_file_a_folder_and_a_pickle(tmp_path: Path) -> None:
    for suffix in (".csv", ".json", ".npy", ".npz"):
        with pytest.raises(InputError, match=r"absent.* cannot be read: No such file"):
            groups.from_table(tmp_path / f"absent{suffix}")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder\.csv cannot be read: Is a directory"):
        groups.from_table(tmp_path / "folder.csv")
    pickled = np.array([[0, 1], [1, None]], dtype=object)
    np.save(tmp_path / "p.npy", pickled)
    np.savez(tmp_path / "p.npz", table=pickled)
    np.savez(tmp_path / "other.npz", tables=KLEIN)
    with pytest.raises(InputError, match=r"p\.npy cannot be read: .*pickled objects"):
        groups.from_table(tmp_path / "p.npy")
    with pytest.raises(InputError, match=r"p\.npz cannot be read: .*allow_pickle"):
        groups.from_table(tmp_path / "p.npz")
    with pytest.raises(InputError, match="no array called 'table'"):
        groups.from_table(tmp_path / "other.npz")
    # Each under the other's ending.
    (tmp_path / "other.npz").rename(tmp_path / "swapped.npy")
    np.save(tmp_path / "table.npy", KLEIN)
    (tmp_path / "table.npy").rename(tmp_path / "swapped.npz")
    for suffix in (".npy", ".npz"):
        with pytest.raises(InputError, match="cannot be read"):
            groups.from_table(tmp_path / f"swapped{suffix}")
