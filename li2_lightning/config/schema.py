"""The configuration: its keys, their types and defaults, and what is checked before anything is built.

The dataclasses are the truth. ``configs/`` holds named variations of them for the command line, and a notebook may
pass a plain dictionary: ``train.run({"task": {"order": 31}, "max_steps": 100})``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from li2_lightning.errors import InputError, nearest, readable, unknown
from li2_lightning.networks.activations import find_activation
from li2_lightning.plugins import IDENTITIES


@dataclass
class TaskConfig:
    """What is to be learned. Each task takes some of these keys and refuses the others (`li2_lightning.tasks`)."""

    name: str = "cyclic"
    order: int | None = None  # cyclic (71 where nothing is said), quaternion, small_group
    factors: str | None = None  # product: "2x3x4"
    degree: int | None = None  # symmetric, alternating, dihedral
    index: int | None = None  # small_group, numbered as in GAP
    modulus: int | None = None  # expression
    expression: str | None = None  # expression: "x^2+y"
    path: str | None = None  # cayley_table
    num_operands: int = 2


@dataclass
class DataConfig:
    """How the table of all operand tuples is split and served."""

    train_fraction: float | None = None  # of all rows; TRAIN_FRACTION where none of the three is given
    train_size: int | None = None
    critical_ratio: float | None = None  # multiple of the fraction at which test accuracy is predicted to jump
    split_file: str | None = None  # .npz with integer arrays train and test
    batch_size: int | None = None  # null: full batch
    evaluate_every_n_steps: int | None = None  # null: once an epoch, so each step with the full batch


@dataclass
class TransformerConfig:
    """The encoder of ``network=transformer``; ``network.width`` is the model dimension."""

    heads: int = 4
    layers: int = 1
    feedforward: int = 512


@dataclass
class NetworkConfig:
    """The network (`li2_lightning.network`)."""

    name: str = "two_layer"
    width: int = 2048  # K, hidden nodes
    activation: str = "square"
    hidden_layers: int = 0  # extra residual layers F ← σ(F + F·H_l)
    complex_weights: bool = False
    trainable_embedding: bool = False
    shared_embedding: bool = False  # one W for all operands: their one-hots are summed
    batch_norm: bool = False
    inner_product: bool = False  # F = Π_i x_i W_i instead of σ(Σ_i x_i W_i)
    readout: str = "gradient"  # or ridge: V is solved, not trained
    ridge: float | None = None  # null: nλ/2
    readout_init_scale: float = 1.0
    output_scale: float = 1.0
    normalize_weights: bool = False
    initial_weights: str | None = None  # .npz with W, V (E, H1, ...), or a checkpoint
    transformer: TransformerConfig = field(default_factory=TransformerConfig)


@dataclass
class OptimizerConfig:
    """One optimizer a role; ``lr`` and ``weight_decay`` fill in for a role that does not set its own."""

    lr: float | None = None  # null: each optimizer's own default, which config.yaml spells out
    weight_decay: float | None = 2e-4  # null: as lr
    hidden: dict[str, Any] = field(default_factory=lambda: {"name": "adam"})  # W and the extra layers
    output: dict[str, Any] = field(default_factory=lambda: {"name": "adam"})  # V
    embedding: dict[str, Any] = field(default_factory=lambda: {"name": "adam"})  # token tables, vectors


@dataclass
class MultipleConfig:
    """For sweeps over optimizers, each of which has a scale of its own; config.yaml holds the products."""

    lr: float = 1.0  # multiplies every learning rate of the optimizer section
    weight_decay: float = 1.0  # multiplies every weight decay of the optimizer section


@dataclass
class LoggerConfig:
    """Weights & Biases. metrics.csv is written whatever stands here. A null leaves it to W&B's environment first."""

    mode: str = "auto"  # WANDB_MODE, else online where credentials exist, else offline
    project: str | None = None  # null: WANDB_PROJECT, else li2_lightning
    entity: str | None = None  # null: WANDB_ENTITY, else W&B's default
    group: str | None = None  # null: WANDB_RUN_GROUP, else none, in a sweep one for all its runs
    job_type: str | None = None  # null: WANDB_JOB_TYPE, else train, in a sweep sweep
    tags: list[str] | None = None  # null: WANDB_TAGS, else task and optimizer


@dataclass
class TrainerConfig:
    """Passed to Lightning's Trainer."""

    accelerator: str = "auto"
    devices: int = 1  # ranks on each node; each trains and evaluates on its share of the rows
    oversubscribe: bool = False  # more ranks on the CPU than there are cores: for tests
    num_nodes: int = 1
    precision: str = "32-true"
    compile: bool = False
    threads: int | None = None  # torch's threads; null: torch's choice


@dataclass
class Config:
    """One run."""

    seed: int = 0
    max_steps: int = 400  # one step = one optimizer update
    output_dir: str = "outputs"
    name: str | None = None  # null: derived from task and optimizer
    force: bool = False  # run again what is finished
    resume: str | None = None  # auto, or a checkpoint
    debug: bool = False  # show tracebacks
    stop_at_test_accuracy: float | None = None
    loss: str = "mse"
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    multiple: MultipleConfig = field(default_factory=MultipleConfig)
    scheduler: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)  # what differs from their defaults
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


# Keys and sections that change where a run is kept or how it is told, not the numbers that come out.
NOT_HASHED = (
    "seed", "output_dir", "name", "logger", "resume", "force", "debug", "trainer.threads", "trainer.oversubscribe",
    "callbacks.progress", "callbacks.pictures", "callbacks.checkpoint", "callbacks.report",
)  # fmt: skip
# Counts the releases whose numbers differ. Raise it when a release trains or measures differently under an unchanged
# config by more than rounding: another default (of the schema or of a plug-in of ours), another initialization, split
# or order of mini-batches, another definition of a column. Every run then has a new directory. A new key whose default
# is the old behaviour leaves it alone.
NUMERICS = 1
# Sections with options of plug-ins, which have defaults of their own (`li2_lightning.plugins.identifies`).
PLUG_IN_SECTIONS = ("task", "optimizer", "scheduler", "callbacks")
# The share of all rows that is trained on where the data section says nothing.
TRAIN_FRACTION = 0.4
FILES = ("task.path", "data.split_file", "network.initial_weights")
# Beyond these it is a slip of the hand, and no machine of today has the memory.
AT_MOST = {
    "network.width": 2**20, "network.hidden_layers": 1000, "network.transformer.heads": 2**10,
    "network.transformer.layers": 1000, "network.transformer.feedforward": 2**20, "trainer.threads": 2**10,
    "max_steps": 2**53, "data.batch_size": 2**53, "data.evaluate_every_n_steps": 2**53,
}  # fmt: skip
# The link in output_dir that points to the newest run.
LATEST = "latest"
PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def load_config(values: Config | DictConfig | Mapping[str, Any]) -> Config:
    """Merge ``values`` into the defaults and check them.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range, keys that exclude each other.
    """
    try:
        # As plain values first: a key that was added to a typed config ("+key=…") would pass unnoticed.
        plain = OmegaConf.to_container(values if isinstance(values, DictConfig) else OmegaConf.create(_mapping(values)))
        _refuse_environment(plain)
        merged = OmegaConf.merge(OmegaConf.structured(Config), plain)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    _check(config)
    return config


def _refuse_environment(value: Any, key: str = "") -> None:
    """What is read from the environment would end in config.yaml, in checkpoints and on W&B, secrets included."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_environment(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _refuse_environment(item, key)
    elif isinstance(value, str) and re.search(r"\$\{\s*oc\.env", value):
        raise InputError(f"{key}={value!r} reads the environment, which may hold secrets; write the value itself.")


def explain(error: OmegaConfBaseException) -> InputError:
    """OmegaConf's complaint as one sentence with the key and, for an unknown key, the nearest known one."""
    key = readable(error.full_key or "")
    if re.search(r"not in|is not in struct", str(error.msg)):
        return unknown_key(key)
    lines = str(error.msg).splitlines() if error.msg else []
    reason = readable(lines[0].rstrip(".")) if lines else type(error).__name__
    if key and "is not Optional" in reason:
        return InputError(f"{key} cannot be null; write a value, or leave the key out for its default.")
    if key and re.match(r"Cannot assign \w+ to Dict", reason):
        return InputError(f"{key} is a section and takes no value itself; set its keys, as in {key}.KEY=VALUE.")
    return InputError(f"The value of {key} does not fit: {reason}." if key else f"The config does not fit: {reason}.")


def unknown_key(key: str) -> InputError:
    """The error for a key that the schema does not have."""
    known = list(keys())
    parent = key.rpartition(".")[0]
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    listed = f" {parent or 'The top level'} has {', '.join(sorted(siblings))}." if siblings else ""
    return InputError(f"Unknown key {key!r}.{listed}{nearest(key, known)}")


def keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    for item in fields(schema):
        yield prefix + item.name
        section = item.default_factory if isinstance(item.default_factory, type) else None
        if section is not None and is_dataclass(section):
            yield from keys(section, f"{prefix}{item.name}.")


def leaves(schema: type = Config) -> list[str]:
    """The dotted keys that hold a value (or a plug-in's options) and not a section."""
    known = list(keys(schema))
    return [key for key in known if not any(other.startswith(f"{key}.") for other in known)]


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested plain containers, as `config.yaml` and W&B get it."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_hash(config: Config) -> str:
    """Ten hexadecimal digits that change with everything that changes the numbers, but not with the seed.

    What is as it is by default does not count, written or not, so a new key with a default moves no run. Input files
    count by content, so that an edited table is another run and a moved one is the same.

    Raises:
        InputError: an input file cannot be read, or a callback is none.
    """
    default, values = _identity(type(config)()), _identity(config)
    counted = {key: value for key, value in values.items() if value != default.get(key)}
    counted |= {key: digest for key, digest in input_digests(config).items() if key in counted}
    told = json.dumps({"numerics": NUMERICS, **counted}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:10]


def _identity(config: Config) -> dict[str, Any]:
    """Everything that may change the numbers, by its dotted key; None is what nobody said."""
    plain = asdict(config)
    if missing := set(PLUG_IN_SECTIONS) - set(IDENTITIES):
        sections = ", ".join(sorted(missing))
        raise RuntimeError(f"The packages that own the plug-ins of {sections} are not imported; import train first.")
    for section in PLUG_IN_SECTIONS:
        plain[section] = IDENTITIES[section](plain[section])
    if plain["data"]["train_fraction"] == TRAIN_FRACTION:
        plain["data"]["train_fraction"] = None
    # The shared values count as what they make of each role; η of a ridge readout is not of any role.
    if config.network.readout == "ridge" and config.network.ridge is None:
        plain["optimizer"] = {**plain["optimizer"], "weight_decay": config.optimizer.weight_decay}
    values = {key: _look_up(plain, key) for key in leaves(type(config))}
    values |= {f"callbacks.{label}": options for label, options in values.pop("callbacks").items()}
    return {key: value for key, value in values.items() if not is_within(key, NOT_HASHED)}


def _look_up(section: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        section = section.get(part) if isinstance(section, Mapping) else None
    return section


def is_within(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``sections`` (keys and sections), or lies in one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def input_digests(config: Config) -> dict[str, str]:
    """SHA-256 of each input file that is given, by its key."""
    paths = {key: OmegaConf.select(OmegaConf.structured(config), key) for key in FILES}
    return {key: hashlib.sha256(read_input(path, key)).hexdigest() for key, path in paths.items() if path is not None}


def read_input(path: str, key: str) -> bytes:
    """The bytes of an input file; one that cannot be read is an `InputError` that names the key."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{key}={path!r} cannot be read: {error.strerror or error}.") from error


def run_name(config: Config) -> str:
    """The folder under ``output_dir``: ``name``, or task and hidden optimizer.

    Raises:
        InputError: a name that is no plain folder name, so that a run cannot land outside ``output_dir``.
    """
    if config.name is None:
        derived = f"{config.task.name}-{config.optimizer.hidden.get('name', '')}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", derived).strip(".-")
    if config.name == LATEST:
        raise InputError(f"name={LATEST!r} is taken by the link to the newest run; choose another.")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", config.name):
        raise InputError(
            f"name={config.name!r} is not a plain folder name; use up to 100 letters, digits, '.', '_' and '-'."
        )
    return config.name


def role_value(optimizer: Mapping[str, Any], role: str, key: str) -> Any:
    """``lr`` or ``weight_decay`` of one role of an optimizer section: its own, else the shared one."""
    # null leaves it to the shared one, as `optimizers` has it.
    own = optimizer[role].get(key)
    return optimizer[key] if own is None else own


def ridge_strength(config: Config, n: int) -> float | None:
    """η of the ridge readout for n training rows: ``network.ridge``, else nλ/2 with the decay of the output role.

    None where V is trained by its gradient.

    Raises:
        InputError: η is zero.
    """
    if config.network.readout != "ridge":
        return None
    decay = role_value(vars(config.optimizer), "output", "weight_decay") or 0.0
    ridge = config.network.ridge if config.network.ridge is not None else n * float(decay) / 2
    if ridge <= 0:
        raise InputError("network.readout=ridge needs network.ridge or optimizer.weight_decay to be positive.")
    return ridge


def _mapping(values: Config | Mapping[str, Any]) -> dict[str, Any]:
    return to_plain(values) if isinstance(values, Config) else dict(values)


def _check(config: Config) -> None:
    """Ranges and combinations that need nothing but the config itself."""
    network, data, trainer = config.network, config.data, config.trainer
    if config.task.name == "cyclic" and config.task.order is None:
        config.task.order = 71
    for key, value, least in (
        ("max_steps", config.max_steps, 1),
        ("network.width", network.width, 1),
        ("network.hidden_layers", network.hidden_layers, 0),
        ("network.transformer.heads", network.transformer.heads, 1),
        ("network.transformer.layers", network.transformer.layers, 1),
        ("network.transformer.feedforward", network.transformer.feedforward, 1),
        ("data.batch_size", data.batch_size, 1),
        ("data.evaluate_every_n_steps", data.evaluate_every_n_steps, 1),
        ("trainer.threads", trainer.threads, 1),
        ("trainer.devices", trainer.devices, 1),
        ("trainer.num_nodes", trainer.num_nodes, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{key}={value} is out of range; it must be at least {least}.")
        most = AT_MOST.get(key)
        if value is not None and most is not None and value > most:
            raise InputError(f"{key}={value} is out of range; it must be at most {most}.")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed={config.seed} is out of range; it must lie in 0 … 2³²−1.")
    target = config.stop_at_test_accuracy
    if target is not None and not 0 < target <= 1:
        raise InputError(f"stop_at_test_accuracy={target} is out of range; it must lie in (0, 1].")
    for key, choice, options in (
        ("logger.mode", config.logger.mode, ("auto", "online", "offline", "disabled")),
        ("network.readout", network.readout, ("gradient", "ridge")),
        ("trainer.precision", trainer.precision, PRECISIONS),
        ("trainer.accelerator", trainer.accelerator, ACCELERATORS),
    ):
        if choice not in options:
            raise unknown(f"value of {key}:", choice, options)
    find_activation(network.activation)
    for key, multiple in vars(config.multiple).items():
        if not 0 < multiple < float("inf"):
            raise InputError(f"multiple.{key}={multiple} is out of range; it must be positive and finite.")
    for role in ("hidden", "output", "embedding"):
        if "name" not in getattr(config.optimizer, role):
            raise InputError(f"optimizer.{role} has no name; say for example optimizer.{role}.name=adam.")
    _check_network(network, config.loss)
    run_name(config)


def multiply(config: Config) -> None:
    """Replace every learning rate and weight decay by its multiple, and the multiples by 1.

    Raises:
        InputError: there is nothing to multiply.
    """
    optimizer = config.optimizer
    for key in multiplied(config):
        multiple = getattr(config.multiple, key)
        shared = getattr(optimizer, key)
        written = [
            role for role in (optimizer.hidden, optimizer.output, optimizer.embedding) if _is_number(role.get(key))
        ]
        if shared is None and not written:
            raise InputError(f"multiple.{key}={multiple} has nothing to multiply; set optimizer.{key}, too.")
        if shared is not None:
            setattr(optimizer, key, _product(shared, multiple))
        for role in written:
            role[key] = _product(role[key], multiple)
        setattr(config.multiple, key, 1.0)


def multiplied(config: Config) -> list[str]:
    """What `multiply` multiplies by something else than 1: lr, weight_decay."""
    return [key for key, multiple in vars(config.multiple).items() if multiple != 1]


def _is_number(value: Any) -> bool:
    try:
        float(value)  # in YAML 1.1, 1e-3 is a string
    except (TypeError, ValueError):
        return False
    return True


def _product(value: float | str, multiple: float) -> float:
    """Without the last digits of rounding: 3 · 2e-4 is the 6e-4 that a user would write, and has its hash."""
    return float(f"{float(value) * multiple:.12g}")


def _check_network(network: NetworkConfig, loss: str) -> None:
    for key in ("readout_init_scale", "output_scale", "ridge"):
        value = getattr(network, key)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"network.{key}={value} is out of range; it must be finite and not negative.")
    if network.output_scale == 0:
        raise InputError("network.output_scale=0 would make every output zero; it must be positive.")
    if network.readout == "ridge" and loss == "cross_entropy":
        raise InputError("network.readout=ridge has no solution for loss=cross_entropy; use mse or projected_mse.")
    if network.readout == "gradient" and network.ridge is not None:
        raise InputError(f"network.ridge={network.ridge} is read only with network.readout=ridge; add that or drop it.")
    if network.name == "transformer":
        default = NetworkConfig()
        for key in ("hidden_layers", "complex_weights", "trainable_embedding", "shared_embedding", "batch_norm",
                    "inner_product", "normalize_weights", "initial_weights"):  # fmt: skip
            if getattr(network, key) != getattr(default, key):
                raise InputError(f"network.{key} belongs to network=two_layer; the transformer does not take it.")
        if network.activation not in ("relu", "gelu"):
            raise InputError(
                f"network.activation={network.activation!r} is not one the transformer takes; use relu or gelu."
            )
        if network.width % network.transformer.heads:
            raise InputError(
                f"network.width={network.width} is no multiple of network.transformer.heads="
                f"{network.transformer.heads}; each head takes an equal part."
            )
    if network.inner_product and network.hidden_layers == 0 and network.activation not in ("square", "identity"):
        raise InputError(
            f"network.inner_product=true applies no activation, so network.activation={network.activation!r} would "
            "have no effect; leave it at its default."
        )
