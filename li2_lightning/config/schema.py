"""The keys of a config: type, default, help, and the allowed values.

These dataclasses are the only place where a key is declared. ``configs/`` holds named variations of them for the
command line; ``li2_lightning.config.checks`` applies the ranges and choices, and ``--help`` prints them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from li2_lightning.cadence import ALLOWED, is_cadence

TRAIN_FRACTION = 0.4
"""The share of all rows to train on where the data section sets none of its three sizes."""

PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
"""The precisions of Lightning's Trainer that `li2_lightning.module.Li2Module` supports."""


@dataclass(frozen=True)
class Bound:
    """A condition on a value.

    Attributes:
        words: the condition as the end of a sentence that begins with "it must be".
        holds: whether a value fulfils the condition; false for NaN.
    """

    words: str
    holds: Callable[[Any], bool]


def between(least: int, most: int | None = None) -> tuple[Bound, ...]:
    """The integers from ``least`` to ``most``, both included; without an upper end where ``most`` is None."""
    lower = Bound(f"at least {least}", lambda value: value >= least)
    return (lower,) if most is None else (lower, Bound(f"at most {most}", lambda value: value <= most))


POSITIVE = (Bound("positive and finite", lambda value: 0 < value < math.inf),)
NOT_NEGATIVE = (Bound("finite and not negative", lambda value: 0 <= value < math.inf),)
FRACTION = (Bound("in [0, 1]", lambda value: 0 <= value <= 1),)
ACCURACY = (Bound("in (0, 1]", lambda value: 0 < value <= 1),)
# Floats count exactly up to 2⁵³, and no machine has the memory for a larger width.
STEPS, WIDTH = between(1, 2**53), between(1, 2**20)
CADENCE = (Bound(ALLOWED, is_cadence),)


def setting(default: Any, help: str, *, range: tuple[Bound, ...] = (), choices: tuple[str, ...] = ()) -> Any:
    """A key of a section, with its help, its range and its choices as metadata.

    Args:
        default: the value where the user gives none. A dataclass makes the key a section of its own.
        help: the meaning of the key, and of null where null is allowed.
        range: the allowed numbers; null is always allowed where the type allows it.
        choices: the allowed words, or the allowed entries of a list.
    """
    metadata = {"help": help, "range": range, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, dict | list):
        return field(default_factory=partial(copy.deepcopy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TaskConfig:
    """The ``task`` section. Each task takes some of these keys and refuses the others (`li2_lightning.tasks`)."""

    name: str = setting("cyclic", "a registered task, or the import path of one")
    order: int | None = setting(None, "number of elements: cyclic (null: 71), quaternion (null: 8), small_group")
    factors: str | None = setting(
        None, 'product: orders of cyclic factors, or S3, A4, D5, Q8, …, as in "2x3x4" and "S3x2"'
    )
    degree: int | None = setting(None, "symmetric, alternating: number of points; dihedral: number of corners")
    index: int | None = setting(None, "small_group: the number of the group in GAP's library")
    modulus: int | None = setting(None, "expression: operands and labels are the integers modulo this number")
    expression: str | None = setting(None, 'expression: for example "x^2+y"')
    word: str | None = setting(
        None, 'groups: a word in the operands a, b, … and their inverses A, B, …, as in "abA"; null: their product'
    )
    path: str | None = setting(None, "cayley_table: a .csv, .txt, .json, .npy or .npz file")
    num_operands: int = setting(2, "number of operands in a row")


SEED = between(0, 2**32 - 1)


@dataclass
class DataConfig:
    """The ``data`` section: the split of the rows, and the mini-batches."""

    seed: int | None = setting(None, "determines the split and the mini-batches; null: the seed of the run", range=SEED)
    train_fraction: float | None = setting(
        None, f"share of all rows to train on; {TRAIN_FRACTION} where this and the next two keys are null"
    )
    train_size: int | None = setting(None, "number of rows to train on")
    critical_ratio: float | None = setting(
        None, "training fraction as a multiple of the one at which test accuracy is predicted to jump"
    )
    split_file: str | None = setting(None, ".npz with the integer arrays train and test, which hold row numbers")
    keep_pairs_together: bool = setting(False, "two operands: the rows (a, b) and (b, a) are on the same side")
    label_noise: float = setting(
        0.0, "share of the training rows with a wrong label, drawn for each seed by itself", range=FRACTION
    )
    batch_size: int | None = setting(None, "rows in one update; null: all training rows", range=STEPS)
    evaluate_every_n_steps: int | str | None = setting(
        None,
        "steps between two rows of metrics.csv, or rows on a log scale; null: one epoch, which is one step without "
        "mini-batches",
        range=CADENCE,
    )


@dataclass
class TransformerConfig:
    """The ``network.transformer`` section."""

    heads: int = setting(4, "attention heads; network.width must be a multiple", range=between(1, 2**10))
    layers: int = setting(1, "encoder layers", range=between(1, 1000))
    feedforward: int = setting(512, "width of the feedforward blocks", range=WIDTH)


@dataclass
class NetworkConfig:
    """The ``network`` section (`li2_lightning.networks`)."""

    name: str = setting("two_layer", "a registered network: two_layer, transformer, or the import path of one")
    width: int = setting(2048, "number of hidden nodes K; the model dimension of the transformer", range=WIDTH)
    activation: str = setting("square", "σ, a name of li2_lightning.networks.activations; transformer: relu or gelu")
    hidden_layers: int = setting(0, "extra hidden layers, F ← σ(F + F·H_l)", range=between(0, 1000))
    residual: bool = setting(True, "extra layers have a residual link; false: F ← σ(F·H_l)")
    complex_weights: bool = setting(False, "weights are complex numbers; the loss takes the real part of the outputs")
    trainable_embedding: bool = setting(False, "put a trained M × M matrix between the one-hots and W")
    shared_embedding: bool = setting(False, "one W for all operands: their one-hots are summed")
    batch_norm: bool = setting(False, "normalize each pre-activation over the training rows")
    inner_product: bool = setting(False, "F = Π_i x_i W_i instead of σ(Σ_i x_i W_i)")
    readout: str = setting(
        "gradient", "V is trained, or solved for each row by ridge regression", choices=("gradient", "ridge")
    )
    ridge: float | None = setting(None, "η of the ridge readout; null: nλ/2", range=NOT_NEGATIVE)
    init_scale: float = setting(1.0, "multiplies every initial weight matrix", range=POSITIVE)
    hidden_init_scale: float = setting(1.0, "multiplies the initial W", range=POSITIVE)
    readout_init_scale: float = setting(1.0, "multiplies the initial V", range=NOT_NEGATIVE)
    output_scale: float = setting(1.0, "β in the outputs βFV", range=POSITIVE)
    normalize_weights: bool = setting(
        False, "after each update, center every node's weights (inner product: cap norms)"
    )
    initial_weights: str | None = setting(None, ".npz with W, V (E, H1, …), or a checkpoint of this project")
    transformer: TransformerConfig = setting(TransformerConfig, "the encoder of network=transformer")


@dataclass
class OptimizerConfig:
    """The ``optimizer`` section. ``lr`` and ``weight_decay`` hold for every role that does not set its own."""

    lr: float | None = setting(None, "learning rate; null: the default of each optimizer, which config.yaml then shows")
    weight_decay: float | None = setting(2e-4, "weight decay λ; null: the default of each optimizer")
    hidden: dict[str, Any] = setting({"name": "adam"}, "optimizer of W and the extra layers")
    output: dict[str, Any] = setting({"name": "adam"}, "optimizer of V")
    embedding: dict[str, Any] = setting({"name": "adam"}, "optimizer of token tables and of every vector")


@dataclass
class MultipleConfig:
    """The ``multiple`` section; config.yaml holds the products.

    A sweep over optimizers varies a multiple, because each optimizer has a learning rate of its own scale.
    """

    lr: float = setting(1.0, "multiplies every learning rate of the optimizer section", range=POSITIVE)
    weight_decay: float = setting(1.0, "multiplies every weight decay of the optimizer section", range=POSITIVE)


@dataclass
class LoggerConfig:
    """The ``logger`` section. Where a key is null, the environment variable of W&B is read first.

    Keys other than ``name``, ``options`` and ``mode=disabled`` belong to W&B.
    """

    name: str = setting("wandb", "a registered logger: wandb, tensorboard, mlflow, csv, or the import path of one")
    options: dict[str, Any] = setting({}, "options of a logger other than wandb")
    mode: str = setting(
        "auto",
        "auto: WANDB_MODE, else online where credentials exist, else offline",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str | None = setting(None, "null: WANDB_PROJECT, else li2_lightning")
    entity: str | None = setting(None, "null: WANDB_ENTITY, else the default of the W&B account")
    group: str | None = setting(None, "null: WANDB_RUN_GROUP, else none; the runs of a sweep share one")
    job_type: str | None = setting(None, "null: WANDB_JOB_TYPE, else train, and sweep for a run of a sweep")
    tags: list[str] | None = setting(None, "null: WANDB_TAGS, else task and optimizer")
    artifacts: list[str] = setting(
        [], "what W&B keeps as artifacts when the run ends, as in [best,last]", choices=("best", "last", "features")
    )
    alerts: bool = setting(False, "W&B sends an alert when the run diverges and when the network generalizes")


@dataclass
class TrainerConfig:
    """The ``trainer`` section: arguments of Lightning's Trainer, ranks, and threads."""

    accelerator: str = setting("auto", "the kind of device", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: int = setting(
        1, "ranks on each node; each trains and evaluates on its share of the rows", range=between(1)
    )
    oversubscribe: bool = setting(False, "allow more ranks on the CPU than there are cores, for tests")
    num_nodes: int = setting(1, "number of nodes", range=between(1))
    precision: str = setting("32-true", "number format", choices=PRECISIONS)
    compile: bool = setting(False, "compile the network with torch.compile")
    extra: dict[str, Any] = setting(
        {}, "further arguments of Lightning's Trainer: profiler, gradient_clip_val, detect_anomaly, max_time …"
    )
    threads: int | None = setting(None, "threads of torch; null: the choice of torch", range=between(1, 2**10))


@dataclass
class Config:
    """The settings of one run."""

    seed: int = setting(
        0, "determines the initial weights and, where data.seed is null, the split and the mini-batches", range=SEED
    )
    max_steps: int = setting(400, "length of the run; one step = one optimizer update", range=STEPS)
    output_dir: str = setting("outputs", "the folder in which every run has a directory")
    name: str | None = setting(None, "a folder in output_dir; null: derived from task and optimizer")
    force: bool = setting(False, "repeat a finished run, and start an unfinished run over")
    resume: str | None = setting(None, "continue an unfinished run: auto, or the path of a checkpoint")
    debug: bool = setting(False, "show the traceback of an error")
    stack: str = setting(
        "auto", "in a sweep, the number of runs that are trained together; auto: by memory and size; 1: one by one"
    )
    stop_at_test_accuracy: float | None = setting(None, "end the run once test accuracy reaches this", range=ACCURACY)
    loss: str = setting(
        "mse",
        "a registered loss: mse, projected_mse, cross_entropy, cross_entropy_float64, stablemax, or an import path",
    )
    task: TaskConfig = setting(TaskConfig, "the task to learn; each task takes some of these keys")
    data: DataConfig = setting(DataConfig, "the rows to train on and to test on")
    network: NetworkConfig = setting(NetworkConfig, "the network")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "one optimizer for each role of the parameters")
    multiple: MultipleConfig = setting(MultipleConfig, "factors for sweeps over optimizers")
    scheduler: dict[str, Any] = setting({"name": "none"}, "the learning rate over the steps")
    callbacks: dict[str, dict[str, Any]] = setting({}, "options that differ from the defaults of a callback")
    logger: LoggerConfig = setting(LoggerConfig, "where rows and pictures go; metrics.csv is written in any case")
    trainer: TrainerConfig = setting(TrainerConfig, "device, number format, ranks and threads")


def declared(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every dotted key of the schema with its declaration; a section comes before its keys."""
    for item in fields(schema):
        key = prefix + item.name
        yield key, item
        if section := section_of(item):
            yield from declared(section, f"{key}.")


def section_of(item: Field[Any]) -> type | None:
    """The dataclass of a key that is a section; None for a key that holds a value."""
    made = item.default_factory
    return made if isinstance(made, type) and is_dataclass(made) else None


def keys(schema: type = Config) -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    return (key for key, _ in declared(schema))


def leaves(schema: type = Config) -> list[str]:
    """The dotted keys that hold a value, or the options of a plug-in, and are no section."""
    return [key for key, item in declared(schema) if section_of(item) is None]


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested plain containers: the form of config.yaml and of the config on W&B."""
    return asdict(config)
