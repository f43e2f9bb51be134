"""Whatever is wrong with what the user typed: exit code 2, one readable sentence, nothing written."""

from __future__ import annotations

import pickle
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from tests.cli.conftest import CommandLine, Outcome, StartProcess

# Small, in case that something is accepted after all.
SMALL = "network.width=8 max_steps=3 logger.mode=disabled callbacks=minimal trainer.threads=1"

# What is typed (FILES is the folder of broken files), and what the sentence must mention.
TYPED = [
    # keys
    ("task.oder=7", "Did you mean 'task.order'"),
    ("foo=1", "Unknown key 'foo'"),
    ("+foo=1", "Unknown key 'foo'"),
    ("task.order", "key=value"),
    ("=3", "key=value"),
    ("task={a:1}", "task.a"),
    # no name of a variation
    ("logger=null", "Unknown logger 'null'; known are csv, disabled, mlflow, offline, tensorboard, wandb."),
    ("callbacks=", "Unknown callbacks ''; known are default, full, minimal."),
    ("task=71", "Unknown task '71'"),
    ("optimizer.hidden=null", "optimizer.hidden cannot be null"),
    ("optimizer.output=sgd", "optimizer.output is a section"),
    # a sweep without a run
    ("-m seed=glob(*)", "seed=glob(*) names no value"),
    ("-m seed=0,1 task=glob(nothing*)", "task=glob(nothing*) names no value"),
    ("-m max_steps=range(5,5)", "max_steps=range(5,5) names no value"),
    ("-m optimizer.lr=interval(0,1)", "optimizer.lr=interval(0,1) is no list of values"),
    ("~scheduler.name", "set it instead"),
    ("~task", "set it instead"),
    ("scheduler=step ~scheduler.name=step", "set it instead"),
    ("~callbacks.checkpoint", "set it instead"),
    ("callbacks.my_module:Mine.power=2", "callbacks.Mine.name=my_module:Mine callbacks.Mine.power=2"),
    # groups and names
    ("task=cycl", "Did you mean 'cyclic'"),
    ("optimizer=adm", "Did you mean 'adam'"),
    ("optimizer.hidden.name=adm", "Did you mean 'adam'"),
    ("optimizer.hidden.name=lbfgs", "closure"),
    ("network=resnet", "two_layer"),
    ("network.activation=rel", "Did you mean 'relu'"),
    ("loss=msee", "Did you mean 'mse'"),
    ("scheduler.name=cosin", "Did you mean 'cosine'"),
    ("experiment=fig03_weight_decy", "Did you mean 'fig03_weight_decay'"),
    ("callbacks.gradeint.enabled=true", "Did you mean 'gradient'"),
    ("logger.mode=offlin", "Did you mean 'offline'"),
    ("trainer.precision=32-tru", "Did you mean '32-true'"),
    ("trainer.accelerator=tpu", "cuda"),
    # hyperparameters and options of plug-ins
    ("optimizer.hidden.momentun=0.9", "momentun"),
    ("scheduler=step scheduler.gama=0.5", "Did you mean 'gamma'"),
    ("callbacks=default callbacks.gradient.pair=1", "Did you mean 'pairs'"),
    ("callbacks.gradient.pair=1", "Did you mean 'pairs'"),
    ("callbacks.gradient.enabled=maybe", "true or false"),
    ("callbacks=default callbacks.stages.rows=abc", "callbacks.stages.rows"),
    ("callbacks=default callbacks.stages.independence=abc", "callbacks.stages.independence"),
    ("callbacks.checkpoint.keep=0", "at least 1"),
    # values
    ("task.order=0", "task.order is 0"),
    ("task.order=-3", "task.order is -3"),
    ("task.order=1.5", "task.order"),
    ("task.order=abc", "task.order"),
    ("task=product task.factors=2x", "2x3x4"),
    ("task=cayley_table", "task.path"),
    ("data.train_fraction=0", "between 0 and 1"),
    ("data.train_fraction=1", "between 0 and 1"),
    ("data.train_fraction=1.5", "between 0 and 1"),
    ("data.train_fraction=-.1", "between 0 and 1"),
    ("data.train_fraction=nan", "must be a number"),
    ("data.train_fraction=.3 data.train_size=10", "at most one"),
    ("task=expression task.modulus=7 data.critical_ratio=1", "no group"),
    ("data.batch_size=0", "at least 1"),
    ("network.width=0", "network.width=0"),
    ("network.output_scale=nan", "network.output_scale"),
    ("network.readout=ridge loss=cross_entropy", "mse or projected_mse"),
    ("network=transformer network.width=10", "heads"),
    ("optimizer.lr=-1", "lr"),
    ("optimizer.lr=nan", "finite"),
    ("max_steps=0", "max_steps=0"),
    ("seed=-1", "seed=-1"),
    ("task.order=7 trainer.devices=20 trainer.oversubscribe=true", "training rows, 19"),
    ("trainer.devices=0", "trainer.devices=0"),
    ("trainer.num_nodes=2", "MASTER_PORT"),
    ("logger.mode=online", "wandb login"),
    ("logger.mode=offline logger.project=a/b", "logger.project"),
    ("logger.mode=offline 'logger.tags=[\"\"]'", "logger.tags"),
    ("name=../x", "plain folder name"),
    ("name=latest", "name"),
    ("output_dir=/dev/null/x", "output_dir"),
    # a value for a sweep, and what Hydra's grammar does not take
    ("seed=0,1", "-m"),
    ("-m seed=0,abc", "seed"),
    ("""name="'a" """, "needs quotes"),
    ("task=expression task.expression=x^2+y", """task.expression="'x^2+y'" """.strip()),
    ("optimizer.hidden.betas=(1,2)", """optimizer.hidden.betas="'(1,2)'" """.strip()),
    # expressions
    ("""task=expression task.expression="'foo(x)'" """, "a call"),
    ("""task=expression task.expression="'x.real'" """, "an attribute"),
    ("""task=expression task.expression="'x^99999999'" """, "exponent"),
    ("""task=expression task.expression="'x+'" """, "not well formed"),
    ("task=expression task.modulus=0", "task.modulus"),
    # files
    ("data.split_file=FILES/missing.npz", "data.split_file"),
    ("data.split_file=FILES/truncated.npz", "truncated.npz"),
    ("data.split_file=FILES/corrupt.npz", "corrupt.npz"),
    ("data.split_file=FILES/pickled.npz", "pickled.npz"),
    ("data.split_file=FILES/split_overlaps.npz", "twice"),
    ("network.initial_weights=FILES/corrupt.npz", "corrupt.npz"),
    ("network.initial_weights=FILES/pickled.npz", "pickled.npz"),
    ("network.initial_weights=FILES/weights_shape.npz", "(142, 8)"),
    ("network.initial_weights=FILES/weights_nan.npz", "not finite"),
    ("network.initial_weights=FILES/other.ckpt", "not a checkpoint of this project"),
    ("task=cayley_table task.path=FILES/missing.csv", "task.path"),
    ("task=cayley_table task.path=FILES/pickled.npy", "pickled.npy"),
    ("task=cayley_table task.path=FILES/ragged.csv", "Row 1"),
    ("task=cayley_table task.path=FILES/loop.csv task.word=ba", "not associative"),
    ("task.word=abc", "the letters a, b"),
    ("resume=FILES/missing.ckpt", "resume"),
    ("resume=FILES/text.ckpt", "text.ckpt"),
    ("resume=FILES/other.ckpt", "not a checkpoint of this project"),
    ("resume=FILES/truncated.ckpt", "truncated.ckpt"),
    # a checkpoint of ours, of another run: only max_steps may differ
    ("task.order=7 resume=FILES/good.ckpt", "max_steps"),
    ("task.order=7 max_steps=9 network.width=9 resume=FILES/good.ckpt", "good.ckpt"),
    ("task.order=7 max_steps=9 loss=cross_entropy resume=FILES/good.ckpt", "loss"),
    ("task.order=7 max_steps=9 seed=1 resume=FILES/good.ckpt", "seed"),
]

# The same in other places; a quarter of a second each, most of it Hydra's.
MORE = [
    ("++task.foo=1", "Unknown key 'task.foo'"),
    ("hydra.foo=1", "hydra.foo"),
    ("optimizer=null", "Unknown optimizer 'null'"),
    ("scheduler=true", "Unknown scheduler 'true'"),
    ("trainer=", "Unknown trainer ''"),
    ("experiment=null", "Unknown experiment 'null'"),
    ("hydra/launcher=null", "Unknown hydra/launcher 'null'"),
    ("-m network=two_layer,null", "Unknown network 'null'"),
    ("data=null", "data cannot be null"),
    ("seed=null", "seed cannot be null"),
    ("output_dir=", "names no folder"),
    ("output_dir=\udcff", "is no text in this terminal's encoding"),
    ("-m seed=0,1 hydra.sweeper.max_batch_size=0", "at least 1"),
    ("-m seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0"),
    ("-m hydra.sweeper.params={seed:[1,2]}", "hydra.sweeper.params.seed"),
    ("callbacks.energy=3", "callbacks.energy is a section"),
    ("task.name=cycl", "Did you mean 'cyclic'"),
    ("optimizer.embedding.name=adm", "Did you mean 'adam'"),
    ("optimizer.hidden.name=nosuch.module:Class", "could not be imported"),
    ("optimizer.hidden.name=null", "optimizer.hidden needs a name"),
    ("network.name=two_layers", "Did you mean 'two_layer'"),
    ("scheduler=cosin", "Did you mean 'cosine'"),
    ("callbacks=defalt", "Did you mean 'default'"),
    ("logger=wandbb", "Did you mean 'wandb'"),
    ("trainer=float46", "Did you mean 'float64'"),
    ("trainer.accelerator=cpuu", "Did you mean 'cpu'"),
    ("optimizer.hidden.betas=3", "optimizer.hidden.betas"),
    ("scheduler.step_size=3", "scheduler.name"),
    ("callbacks=default callbacks.gram.every_n_steps=0", "at least 1"),
    ("callbacks=default callbacks.gram.exact=maybe", "true or false"),
    ("callbacks=default callbacks.stages.rows=0", "callbacks.stages.rows"),
    ("callbacks=default callbacks.stages.independence=nan", "callbacks.stages.independence"),
    ("callbacks=default callbacks.stages.train_accuracy=null", "callbacks.stages.train_accuracy"),
    ("callbacks.progress.lines=abc", "must be a number"),
    ("callbacks.progress.lines=0", "at least 1"),
    ("task.order=1", "at least two"),
    ("task.order=1000000", "1024"),
    ("task.degree=3", "degree"),
    ("task.num_operands=0", "task.num_operands"),
    ("task=symmetric task.degree=9", "task.degree"),
    ("task=quaternion task.order=9", "multiples of 4"),
    ("data.train_size=0", "data.train_size"),
    ("data.train_size=5041", "data.train_size"),
    ("data.train_size=10 data.critical_ratio=1", "at most one"),
    ("data.train_fraction=.3 data.critical_ratio=1", "at most one"),
    ("data.critical_ratio=100", "data.critical_ratio"),
    ("network.width=1.5", "network.width"),
    ("network.readout=ridge optimizer.weight_decay=0", "network.ridge"),
    ("network=transformer network.batch_norm=true", "network.batch_norm"),
    ("network.inner_product=true network.activation=relu", "no activation"),
    ("optimizer.weight_decay=-1", "weight_decay"),
    ("max_steps=1e3", "max_steps"),
    ("seed=abc", "seed"),
    ("stop_at_test_accuracy=2", "(0, 1]"),
    ("trainer.threads=0", "trainer.threads"),
    ("trainer.precision=16-mixed trainer.accelerator=cpu", "trainer.precision"),
    ("logger.tags=abc", "logger.tags"),
    ("optimizer.hidden.lr=0.1,0.2", "-m"),
    ("-m task=cyclic,foo", "Unknown task 'foo'"),
    ("""task=expression task.expression="'9^9^9^9'" """, "exponent"),
    ("""task=expression task.expression="'x+z'" """, "task.num_operands"),
    ("""task=expression task.expression="'x+q'" """, "unknown variable 'q'"),
    ("data.split_file=FILES", "data.split_file"),
    ("data.split_file=FILES/text.npz", "text.npz"),
    ("data.split_file=FILES/split_outside.npz", "row 9999"),
    ("data.split_file=FILES/split_without_test.npz", "'test'"),
    ("network.initial_weights=FILES/missing.npz", "network.initial_weights"),
    ("network.initial_weights=FILES/text.npz", "text.npz"),
    ("network.initial_weights=FILES/truncated.npz", "truncated.npz"),
    ("network.initial_weights=FILES/weights_longdouble.npz", "W"),
    ("network.initial_weights=FILES/weights_huge.npz", "W"),
    ("network.initial_weights=FILES/text.ckpt", "text.ckpt"),
    ("network.initial_weights=FILES/hollow.ckpt", "not a checkpoint of this project"),
    ("task=cayley_table task.path=FILES/text.npz", "text.npz"),
    ("task=cayley_table task.path=FILES/truncated.npy", "truncated.npy"),
    ("task=cayley_table task.path=FILES/open.csv", "not among the elements"),
    ("task=cayley_table task.path=FILES/no_inverse.csv data.critical_ratio=1", "no group"),
    ("task=cayley_table task.path=FILES/text.unknown", "endings"),
    ("resume=FILES", "resume"),
    ("resume=FILES/code.ckpt", "code.ckpt"),
    ("resume=FILES/hollow.ckpt", "not a checkpoint of this project"),
    ("task.order=8 max_steps=9 resume=FILES/good.ckpt", "good.ckpt"),
    ("task.order=7 max_steps=9 optimizer=muon resume=FILES/good.ckpt", "adam"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of broken files, and good.ckpt: row 3 of a cyclic task of order 7, width 8."""
    folder = tmp_path_factory.mktemp("files")
    W, V = np.ones((142, 8), dtype=np.float32), np.ones((8, 71), dtype=np.float32)
    everything: dict[str, Any] = {"train": np.arange(20), "test": np.arange(20, 49), "W": W, "V": V}
    np.savez_compressed(folder / "good.npz", **everything)
    good = (folder / "good.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(good[: len(good) // 2])
    (folder / "corrupt.npz").write_bytes(_corrupted(folder / "good.npz"))
    np.savez(folder / "pickled.npz", **{name: np.array([1, {}], dtype=object) for name in everything})
    np.savez(folder / "split_overlaps.npz", train=np.arange(20), test=np.arange(10, 30))
    np.savez(folder / "split_outside.npz", train=np.arange(20), test=np.array([9999]))
    np.savez(folder / "split_without_test.npz", train=np.arange(20))
    np.savez(folder / "weights_shape.npz", W=W.T, V=V)
    np.savez(folder / "weights_nan.npz", W=W * np.nan, V=V)
    np.savez(folder / "weights_longdouble.npz", W=W.astype(np.longdouble), V=V)
    np.savez(folder / "weights_huge.npz", W=W.astype(np.float64) * 1e300, V=V)
    np.save(folder / "good.npy", np.arange(3))
    (folder / "truncated.npy").write_bytes((folder / "good.npy").read_bytes()[:100])
    (folder / "pickled.npy").write_bytes(pickle.dumps([[0, 1], [1, 0]]))
    (folder / "ragged.csv").write_text("0,1\n1\n")
    (folder / "open.csv").write_text("0,1\n1,2\n")
    (folder / "no_inverse.csv").write_text("0,1\n1,1\n")
    (folder / "loop.csv").write_text("0,1,2,3,4\n1,0,3,4,2\n2,4,0,1,3\n3,2,4,0,1\n4,3,1,2,0\n")
    for name in ("text.npz", "text.ckpt", "text.unknown"):
        (folder / name).write_text("Lorem ipsum")
    torch.save({"weights": torch.zeros(3)}, folder / "other.ckpt")
    torch.save({"state_dict": 3, "li2_lightning": 4}, folder / "hollow.ckpt")
    torch.save({"state_dict": print}, folder / "code.ckpt")
    result = train.run(
        {
            "task": {"order": 7},
            "network": {"width": 8},
            "max_steps": 3,
            "output_dir": str(folder / "outputs"),
            "callbacks": {name: {"enabled": False} for name in ("report", "features", "progress")},
            "logger": {"mode": "disabled"},
            "trainer": {"threads": 1},
        }
    )
    shutil.copy(result.directory / "checkpoints" / "last.ckpt", folder / "good.ckpt")
    raw = (folder / "good.ckpt").read_bytes()
    (folder / "truncated.ckpt").write_bytes(raw[: len(raw) // 2])
    return folder


def _corrupted(path: Path) -> bytes:
    """The archive with the first member's data overwritten."""
    raw = bytearray(path.read_bytes())
    raw[60:90] = b"\xff" * 30
    return bytes(raw)


def arguments(typed: str, files: Path) -> list[str]:
    """What the shell makes of it. Flags come first, then what keeps an accepted run small, then the case."""
    words = shlex.split(typed.replace("FILES", str(files)))
    flags = [word for word in words if word.startswith("-")]
    return [*flags, *SMALL.split(), *(word for word in words if word not in flags)]


def assert_one_sentence(outcome: Outcome, mentions: str, workplace: Path) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert mentions in lines[0]
    assert re.fullmatch(r"[^\x00-\x1f\x7f]{15,2500}[.?]", lines[0]), "no sentence, or not for reading"
    assert list(workplace.iterdir()) == [], "something was written"


@pytest.mark.parametrize(("typed", "mentions"), TYPED, ids=[typed.strip() for typed, _ in TYPED])
def test_bad_input_is_refused_with_one_sentence(
    typed: str, mentions: str, files: Path, command_line: CommandLine, workplace: Path
) -> None:
    assert_one_sentence(command_line(*arguments(typed, files)), mentions, workplace)


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "mentions"), MORE, ids=[typed.strip() for typed, _ in MORE])
def test_more_bad_input_is_refused_with_one_sentence(
    typed: str, mentions: str, files: Path, command_line: CommandLine, workplace: Path
) -> None:
    """Slow because there are so many: 20 s."""
    assert_one_sentence(command_line(*arguments(typed, files)), mentions, workplace)


@pytest.mark.parametrize(
    ("typed", "mentions"),
    [
        ("--sed=3", "Unknown flag '--sed'"),
        ("seed=3 --confg-dir x", "Did you mean '--config-dir'"),
        ("--cfg jop", "'job', 'hydra', 'all'"),
        ("seed=3 --package", "expected one argument"),
    ],
)
def test_a_flag_that_is_none_is_refused_with_one_sentence(
    typed: str, mentions: str, command_line: CommandLine, workplace: Path
) -> None:
    assert_one_sentence(command_line(*typed.split()), mentions, workplace)


def test_debug_shows_the_traceback_too(command_line: CommandLine) -> None:
    composed = command_line("task.oder=7", "debug=true")
    ran = command_line("task.order=0", "debug=true")
    for outcome in (composed, ran):
        assert outcome.code == 2
        assert outcome.err.startswith("Traceback")
        assert outcome.err.splitlines()[-1].startswith("error: ")


def test_the_message_shows_what_was_typed_not_what_we_made_of_it(command_line: CommandLine) -> None:
    outcome = command_line("optimizer.hidden.betas=(1,2)")
    assert "++" not in outcome.err


def test_as_a_process(start_process: StartProcess, workplace: Path) -> None:
    process = start_process("task=cyclic", "task.order=abc")
    assert_one_sentence(process.wait(), "task.order", workplace)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "mentions"),
    [
        ("task.oder=7", "task.order"),
        ("task=cycl", "cyclic"),
        ("optimizer.hidden.momentun=0.9", "momentun"),
        ("task.order=-3", "task.order"),
        ("data.train_fraction=1.5", "between 0 and 1"),
        ("data.train_size=10 data.critical_ratio=1", "at most one"),
        ("data.split_file=FILES/corrupt.npz", "corrupt.npz"),
        ("task=cayley_table task.path=FILES/open.csv", "not among the elements"),
        ("""task=expression task.expression="'foo(x)'" """, "a call"),
        ("resume=FILES/truncated.ckpt", "truncated.ckpt"),
        ("logger.mode=online", "wandb login"),
        ("seed=0,1", "-m"),
    ],
)
def test_a_dozen_as_processes(
    typed: str, mentions: str, files: Path, start_process: StartProcess, workplace: Path
) -> None:
    """Slow because each starts Python and torch anew: 5 s."""
    assert_one_sentence(start_process(*arguments(typed, files)).wait(), mentions, workplace)
