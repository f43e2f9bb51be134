"""Whatever is fed in: it is used as it stands, or refused with one sentence; never a traceback, never something else.

Examples are drawn by hypothesis from a fixed seed, so that a failure is one everywhere. The tests marked slow draw many
more of the same.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import train
from li2_lightning.config.checks import load_config
from li2_lightning.config.identity import config_hash
from li2_lightning.config.schema import Config, keys, to_plain
from li2_lightning.errors import DivergenceError, InputError
from li2_lightning.groups.finite_group import cyclic, from_table, symmetric
from li2_lightning.runs.checkpoints import read_checkpoint
from li2_lightning.tasks.splits import split_rows
from li2_lightning.tasks.tasks import build_task
from tests.cli.conftest import CommandLine


def drawn(count: int) -> Callable[[Any], Any]:
    """So many examples, the same each time, however long one takes."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


def assert_sentence(text: str) -> None:
    assert re.fullmatch(r"[^\x00-\x1f\x7f]{10,2500}[.?…]", text), repr(text)


# -- configs ----------------------------------------------------------------------------------------------------------

KEYS = sorted({*keys(), "optimizer.hidden.name", "optimizer.hidden.lr", "optimizer.output.weight_decay",
               "scheduler.name", "scheduler.gamma", "callbacks.gram.enabled", "callbacks.gram.sampled_columns",
               "callbacks.checkpoint.keep", "callbacks.stages.rows", "callbacks.mine.name"})  # fmt: skip
WORDS = ("adam", "muon", "sgd", "none", "cosine", "cyclic", "expression", "x+y", "auto", "ridge", "gelu", "relu",
         "transformer", "two_layer", "mse", "cross_entropy", "2x3", "offline", "64-true", "..", "a/b", "latest", "~",
         "${seed}", "${oc.env:HOME}", "${nowhere}", "${", "???", "%", "é", "a b", "", "None", "nan", "1e400",
         "\n")  # fmt: skip
scalars = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.none(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
values = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from(("name", "a", "lr")), scalars, max_size=2)
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries; a section that already has a value keeps it."""
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                break
        else:
            section[leaf] = value
    return config


def check_config(flat: dict[str, Any]) -> None:
    try:
        config = train.read_config(nested(flat))
    except InputError as error:
        assert_sentence(str(error))
        return
    # What was accepted is what was said, and is read back as it was written.
    again = train.read_config(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))))  # type: ignore[arg-type]
    assert repr(again) == repr(config)
    for key, value in flat.items():
        section, _, leaf = key.rpartition(".")
        if section == "multiple":
            assert getattr(config.multiple, leaf) == 1, "it is in the product, which is what is written"
            continue
        multiple = float(flat.get(f"multiple.{leaf}", 1)) if section.startswith("optimizer") else 1
        found = OmegaConf.select(OmegaConf.create(to_plain(config)), key, default=None)
        if isinstance(value, bool | int) and not isinstance(found, str | bool):
            assert found == pytest.approx(value * multiple) or key == "task.order", (key, value, found)
    try:
        assert config_hash(config) == config_hash(again)
    except InputError as error:
        assert_sentence(str(error))


@drawn(60)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_config(flat: dict[str, Any]) -> None:
    check_config(flat)


@pytest.mark.slow
@drawn(4000)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_many_configs(flat: dict[str, Any]) -> None:
    """Slow because there are thousands."""
    check_config(flat)


# -- override strings -------------------------------------------------------------------------------------------------

written = st.one_of(
    scalars.map(str),
    st.text(string.printable, max_size=12),
    st.sampled_from(["[1,2", "{a:1}", "'x", '"', "a=b", "1,2", "range(3)", "[1,[2]]", "{a:{b:1}}", "\\", "@",
                     "!!python"]),
)  # fmt: skip
overrides = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), written),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~", "hydra.", "task@"]), st.sampled_from(KEYS), written),
    st.builds("{}={}".format, st.text(string.ascii_lowercase + "._:@", max_size=12), written),
    st.text(string.printable, max_size=20).filter(lambda text: not text.startswith("-")),
)
# Nothing drawn above makes a long or a large run of these.
SMALL = ("task.order=5", "network.width=4", "max_steps=1", "callbacks=minimal", "logger.mode=disabled",
         "trainer.threads=1", "trainer.accelerator=cpu")  # fmt: skip


def check_overrides(command_line: CommandLine, workplace: Path, arguments: list[str]) -> None:
    # A drawn folder stays below the workplace.
    safe = [text for text in arguments if not re.match(r"[+~]*(hydra\.)?(output_dir|max_steps)\b", text)]
    outcome = command_line(*SMALL, *safe)
    assert outcome.code in (0, 2, 3), (safe, outcome)
    assert "Traceback" not in outcome.err, (safe, outcome)
    if outcome.code == 0:
        assert "Internal error" not in outcome.err
        for path in workplace.rglob("config.yaml"):
            config = load_config(OmegaConf.load(path))  # type: ignore[arg-type]
            assert path.parent.name == f"{config_hash(config)}-s{config.seed}"
    elif outcome.code == 2:
        assert outcome.err.startswith("error: "), (safe, outcome)
        assert_sentence(outcome.err.removeprefix("error: ").rstrip("\n"))
        assert list(workplace.iterdir()) == [], "something was written"
    for entry in workplace.iterdir():
        shutil.rmtree(entry)


@drawn(10)
@given(st.lists(overrides, min_size=1, max_size=2))
def test_any_overrides(command_line: CommandLine, workplace: Path, arguments: list[str]) -> None:
    check_overrides(command_line, workplace, arguments)


@pytest.mark.slow
@drawn(250)
@given(st.lists(overrides, min_size=1, max_size=2))
def test_many_overrides(command_line: CommandLine, workplace: Path, arguments: list[str]) -> None:
    """Slow because each takes Hydra a quarter of a second."""
    check_overrides(command_line, workplace, arguments)


# -- Cayley tables ----------------------------------------------------------------------------------------------------

GROUPS = [cyclic(2), cyclic(4), symmetric(3)]
cells = st.integers(-1, 6)
tables = st.one_of(
    st.integers(0, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=n, max_size=n)),
    st.lists(st.lists(cells, max_size=3), max_size=3),
    # A group, its elements renamed, and perhaps one product changed.
    st.builds(
        lambda group, seed, spoilt: _renamed(group.table, seed, spoilt),
        st.sampled_from(GROUPS), st.integers(0, 999), st.booleans(),
    ),
)  # fmt: skip


def _renamed(table: Any, seed: int, spoilt: bool) -> list[list[int]]:
    random = np.random.default_rng(seed)
    names = random.permutation(len(table))
    renamed = np.empty_like(table)
    renamed[np.ix_(names, names)] = names[table]
    if spoilt:
        renamed[tuple(random.integers(0, len(table), 2))] = random.integers(0, len(table))
    result: list[list[int]] = renamed.tolist()
    return result


def is_group(table: list[list[int]]) -> bool:
    """The axioms, one after the other, as they are written in books."""
    n = len(table)
    if n == 0 or any(len(row) != n or not all(0 <= cell < n for cell in row) for row in table):
        return False
    identities = [e for e in range(n) if all(table[e][a] == a == table[a][e] for a in range(n))]
    associative = all(
        table[table[a][b]][c] == table[a][table[b][c]] for a, b, c in itertools.product(range(n), repeat=3)
    )
    return bool(identities) and associative and all(identities[0] in row for row in table)


def check_table(folder: Path, table: list[list[int]], ending: str) -> None:
    path = folder / f"table{ending}"
    if ending == ".json":
        path.write_text(json.dumps(table))
    elif ending == ".npy":
        try:
            np.save(path, np.array(table))
        except ValueError:
            return  # ragged
    else:
        table = [row for row in table if row]  # a blank line is none
        path.write_text("\n".join(",".join(map(str, row)) for row in table))
    try:
        group = from_table(path)
    except InputError as error:
        assert_sentence(str(error))
        assert not is_group(table)
        return
    assert is_group(table)
    assert group.table.tolist() == table


@drawn(120)
@given(tables, st.sampled_from([".csv", ".json", ".npy"]))
def test_a_table_is_accepted_exactly_if_it_is_a_group(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[int]], ending: str
) -> None:
    check_table(tmp_path_factory.getbasetemp(), table, ending)


@drawn(100)
@given(st.one_of(st.binary(max_size=60), st.text("0123,; \n#ab[]{}\"", max_size=40).map(str.encode)),
       st.sampled_from([".csv", ".txt", ".json", ".npy", ".npz"]))  # fmt: skip
def test_any_bytes_as_a_table(tmp_path_factory: pytest.TempPathFactory, raw: bytes, ending: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"raw{ending}"
    path.write_bytes(raw)
    try:
        assert is_group(from_table(path).table.tolist())
    except InputError as error:
        assert_sentence(str(error))


# -- expressions ------------------------------------------------------------------------------------------------------


@drawn(200)
@given(st.text("xyz0123456789+-*/^()., _%=<>&|~'\"[]{}:;\\\nλ", max_size=20), st.integers(2, 13))
def test_any_expression(text: str, modulus: int) -> None:
    try:
        task = build_task({"name": "expression", "expression": text, "modulus": modulus, "num_operands": 3})
    except InputError as error:
        assert_sentence(str(error))
        return
    # Without a division Python computes the same; the text has passed as an expression, so this is arithmetic.
    assert re.fullmatch(r"[xyz0-9+\-*/^() _\n]*", text), text
    if "/" not in text:
        rows = np.random.default_rng(0).choice(len(task.labels), 10)
        code = re.sub(r"\b0+(?=\d)", "", text.strip().replace("^", "**"))
        for row, label in zip(task.operands[rows].tolist(), task.labels[rows].tolist(), strict=True):
            assert eval(code, {"__builtins__": {}}, dict(zip("xyz", row, strict=True))) % modulus == label, text


# -- split files ------------------------------------------------------------------------------------------------------

TASK = build_task({"name": "cyclic", "order": 5})
arrays = st.one_of(
    st.lists(st.integers(-1, 26), max_size=8).map(lambda rows: np.array(rows, dtype=np.int64)),
    st.lists(st.integers(0, 24), unique=True, min_size=1, max_size=8).map(np.array),
    st.lists(st.floats(0, 24), max_size=3).map(np.array),
    st.sampled_from([np.array(3), np.array([[1, 2]]), np.array(["1"]), np.array([2**63], dtype=np.uint64),
                     np.array([True, False]), np.array([1 + 0j]), np.zeros((0,))]),
)  # fmt: skip


@drawn(150)
@given(st.dictionaries(st.sampled_from(("train", "test", "other")), arrays, max_size=3))
def test_any_split_file(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "split.npz"
    np.savez(path, **content)
    try:
        split = split_rows(TASK, seed=0, split_file=path)
    except InputError as error:
        assert_sentence(str(error))
        return
    assert split.train.tolist() == sorted(content["train"].tolist())
    assert split.test.tolist() == sorted(content["test"].tolist())
    both = [*split.train.tolist(), *split.test.tolist()]
    assert len(set(both)) == len(both)
    assert set(both) <= set(range(25))


@drawn(100)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_split_file(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, truncated: bool
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, train=np.arange(10), test=np.arange(10, 25))
    raw = damaged(buffer.getvalue(), position, byte, truncated)
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(raw)
    try:
        split = split_rows(TASK, seed=0, split_file=path)
    except InputError as error:
        assert_sentence(str(error))
        return
    assert (split.train.tolist(), split.test.tolist()) == (list(range(10)), list(range(10, 25)))


def damaged(raw: bytes, position: int, byte: int, truncated: bool) -> bytes:
    position %= len(raw)
    return raw[:position] if truncated else raw[:position] + bytes([byte]) + raw[position + 1 :]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One of ours."""
    off = {name: {"enabled": False} for name in ("report", "pictures", "features", "interaction", "progress")}
    result = train.run(
        {
            "task": {"order": 5},
            "network": {"width": 4},
            "max_steps": 2,
            "output_dir": str(tmp_path_factory.mktemp("run")),
            "callbacks": off,
            "logger": {"mode": "disabled"},
            "trainer": {"threads": 1, "accelerator": "cpu"},
        }
    )
    return (result.directory / "checkpoints" / "last.ckpt").read_bytes()


@drawn(150)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), truncated=st.booleans())
def test_a_damaged_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: bytes, position: int, byte: int, truncated: bool
) -> None:
    """One byte is enough, also where it is a weight's: torch does not look at the checksums that it writes."""
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(damaged(checkpoint, position, byte, truncated))
    try:
        read = read_checkpoint(path, "resume='damaged.ckpt'")
    except InputError as error:
        assert_sentence(str(error))
        return
    whole = torch.load(io.BytesIO(checkpoint), weights_only=True)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(read["state_dict"][name], tensor)  # type: ignore[index]
    assert read["li2_lightning"]["config"] == whole["li2_lightning"]["config"]  # type: ignore[index]


# -- a whole run ------------------------------------------------------------------------------------------------------

CHOICES: dict[str, Any] = {
    "loss": st.sampled_from(["mse", "projected_mse", "cross_entropy"]),
    "task.order": st.integers(1, 7),
    "task.num_operands": st.integers(1, 3),
    "data.train_size": st.integers(0, 60),
    "data.batch_size": st.integers(1, 20),
    "data.seed": st.integers(0, 3),
    "data.keep_pairs_together": st.booleans(),
    "data.evaluate_every_n_steps": st.integers(1, 5),
    "network.activation": st.sampled_from(["square", "relu", "silu", "identity", "linear+quadratic"]),
    "network.hidden_layers": st.integers(0, 2),
    "network.complex_weights": st.booleans(),
    "network.trainable_embedding": st.booleans(),
    "network.shared_embedding": st.booleans(),
    "network.batch_norm": st.booleans(),
    "network.inner_product": st.booleans(),
    "network.readout": st.sampled_from(["gradient", "ridge"]),
    "network.init_scale": st.sampled_from([1e-30, 0.1, 1e30]),
    "network.hidden_init_scale": st.sampled_from([0.1, 10.0]),
    "network.readout_init_scale": st.sampled_from([0.0, 1.0, 1e30]),
    "network.normalize_weights": st.booleans(),
    "optimizer.lr": st.sampled_from([0.0, 1e-3, 1.0, 1e20, 1e38]),
    "optimizer.weight_decay": st.sampled_from([0.0, 1e-3, 1e10]),
    "optimizer.hidden.name": st.sampled_from(["adam", "adamw", "sgd", "muon"]),
    "scheduler.name": st.sampled_from(["none", "cosine", "linear_warmup"]),
    "trainer.precision": st.sampled_from(["32-true", "64-true", "bf16-mixed"]),
    "callbacks.checkpoint.every_n_steps": st.integers(1, 3),
    "stop_at_test_accuracy": st.sampled_from([0.1, 1.0]),
}
runs = st.lists(st.sampled_from(sorted(CHOICES)), unique=True, max_size=7).flatmap(
    lambda names: st.fixed_dictionaries({name: CHOICES[name] for name in names})
)


def check_run(folder: Path, flat: dict[str, Any]) -> None:
    base = {"task.order": 5, "network.width": 4, "max_steps": 3, "output_dir": str(folder), "logger.mode": "disabled",
            "trainer.threads": 1, "trainer.accelerator": "cpu", "callbacks.report.enabled": False,
            "callbacks.pictures.enabled": False, "callbacks.progress.enabled": False}  # fmt: skip
    try:
        result = train.run(nested(base | flat))
    except InputError as error:
        assert_sentence(str(error))
        if folder.exists():
            pytest.fail(f"{flat} was refused, and yet something was written")
    except DivergenceError as error:
        assert_sentence(str(error))
    else:
        final = result.summary["final"]
        assert final["step"] == 3 or "stop_at_test_accuracy" in flat
        assert math.isfinite(final["train/loss"])
    shutil.rmtree(folder, ignore_errors=True)


@drawn(8)
@given(runs)
def test_any_run(tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]) -> None:
    check_run(tmp_path_factory.getbasetemp() / "run", flat)


@pytest.mark.slow
@drawn(400)
@given(runs)
def test_many_runs(tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]) -> None:
    """Slow because each trains three steps."""
    check_run(tmp_path_factory.getbasetemp() / "run", flat)


def test_the_schema_is_drawn_from() -> None:
    assert {"task.order", "network.width", "seed"} <= set(KEYS)
    assert isinstance(load_config({}), Config)
