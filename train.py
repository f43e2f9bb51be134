"""Train one network and watch its features emerge.

    li2 train                                       modular addition groks, about a minute on two cores
    li2 train experiment=fig03_no_weight_decay seed=3
    li2 train task=symmetric task.degree=4 network.width=512 optimizer=muon optimizer.hidden.lr=0.02
    li2 train -m seed=0,1,2                         a sweep

``python train.py`` is the same command, for a checkout that is not installed.
From Python: ``train.run({"task": {"order": 31}, "max_steps": 100})``.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys

from li2_lightning.clock import clock
from li2_lightning.errors import Interrupted, leave

# Where SIGINT is ignored (nohup), it stays so.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from callbacks import CALLBACKS, build_callbacks
from li2_lightning._compat import config_groups, is_first_rank
from li2_lightning.cli.commands import print_in_any_encoding
from li2_lightning.cli.hydra_errors import explain_groups, explain_keys, prepare, show_error
from li2_lightning.config import CONFIGS
from li2_lightning.config.checks import read_config
from li2_lightning.config.schema import Config
from li2_lightning.data import TableDataModule
from li2_lightning.distributed.launcher import is_follower, run_as_follower
from li2_lightning.distributed.machine import use_threads
from li2_lightning.distributed.rank_group import RankGroup
from li2_lightning.losses import LOSSES
from li2_lightning.module import Li2Module
from li2_lightning.networks.activations import ACTIVATIONS
from li2_lightning.networks.base import NETWORKS
from li2_lightning.runs.checkpoints import Start
from li2_lightning.runs.directory import RunDirectory, RunResult
from li2_lightning.runs.terminal import print_summary
from li2_lightning.runs.wandb import logging_to, reporting_to_agent, wandb_mode
from li2_lightning.sweeps.lead import Sweep, new_folder
from li2_lightning.sweeps.plan import Launching, plan
from li2_lightning.sweeps.together import Outcome, Together
from li2_lightning.sweeps.worker import run_in_sweep
from li2_lightning.tasks.tasks import TASKS
from li2_lightning.trainer import (
    build_trainer,
    flushing_tiny_numbers,
    join_process_group,
    keep_freed_memory,
    quiet_lightning,
    stopping_on_signals,
)
from optimizers import (
    OPTIMIZERS,
    ROLES,
    SCHEDULES,
    JointStep,
    describe,
    knows_length,
)

Assembled = tuple[lightning.Trainer, Li2Module, TableDataModule]


def run(values: Config | DictConfig | Mapping[str, Any]) -> RunResult:
    """One run: config → task → network → module → callbacks → fit → summary.

    A finished run is not repeated; its stored result is returned (``force: true`` runs it again).

    Raises:
        InputError: the config asks for something impossible; nothing has been written.
        DivergenceError: the training loss is not finite; the last good checkpoint is kept.
        Interrupted: SIGINT or SIGTERM; a checkpoint holds the state.
        OtherRankError: another rank of the run failed.
    """
    clock.begin()
    config = read_config(values)
    command = [sys.executable, str(Path(__file__).resolve())]
    with flushing_tiny_numbers(), RankGroup(config, command, join_process_group, plugin_modules(config)) as ranks:
        return lead(config, ranks) if ranks.is_first else follow(config, ranks)


def lead(config: Config, ranks: RankGroup) -> RunResult:
    """The run of the first rank, or of a single process. This rank decides, writes, logs and prints."""
    directory = RunDirectory.of(config)
    with reporting_to_agent(config, directory):
        decision = directory.decide(config)
    summary = decision.stored
    if summary is None:
        # Every refusal comes from these two lines, before anything is written.
        assembled = assemble(config, directory.path, ranks)
        mode = wandb_mode(config)
        with directory.locked(config, decision) as decision, reporting_to_agent(config, directory):
            summary = decision.stored or fit(config, directory, decision.start, assembled, mode, ranks)
    ranks.finish(summary)
    return RunResult(directory.path, summary, stored=decision.stored is not None)


def fit(
    config: Config, directory: RunDirectory, start: Start | None, assembled: Assembled, mode: str, ranks: RankGroup
) -> dict[str, Any]:
    """Train from ``start``, or from the initial weights; returns the summary."""
    trainer, module, data = assembled
    checkpoint = None if start is None else start.checkpoint
    with (
        logging_to(trainer, config, directory.path, mode, start),
        stopping_on_signals(module),
        ranks.training_from(checkpoint),
        directory.summarizing(config, 0 if start is None else start.row),
        quiet_lightning(),
    ):
        rows = f"{len(data.train)} training and {len(data.test)} test rows"
        print(f"{data.task.name}: {rows}, {data.task.num_classes} classes{ranks}")
        print(describe(module.optimizer))  # type: ignore[arg-type]  # `assemble` built it
        if start is not None and start.max_steps != config.max_steps and knows_length(config.scheduler):
            ends = f"{config.scheduler['name']} now ends at row {config.max_steps}, not {start.max_steps}"
            print(f"{ends}; from row {start.row} on learning rates are those of the new length")
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return directory.close()


def follow(config: Config, ranks: RankGroup) -> RunResult:
    """The run of every other rank. It trains and measures its share of the rows, and prints nothing."""
    directory = RunDirectory.of(config)
    with ranks.in_silence():
        to_do, checkpoint = ranks.decision()
        if to_do:
            trainer, module, data = assemble(config, directory.path, ranks)
            with stopping_on_signals(module), quiet_lightning():
                trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return RunResult(directory.path, ranks.result(), stored=not to_do)


def run_stack(configs: Sequence[Config], ended: Callable[[int, Outcome], None] | None = None) -> list[Outcome]:
    """Several runs of one kind, trained together: every run has what `run` would give it.

    Args:
        configs: the checked config of each run, all of one `li2_lightning.sweeps.stacking.kind`.
        ended: called with the place of a run in ``configs`` and its outcome as soon as the run has ended.

    Returns:
        For each run its result, or the error by which it ended.

    Raises:
        Interrupted: SIGINT or SIGTERM; the checkpoints of all runs hold their state.
    """
    plugins = plugin_modules(configs[0])
    with flushing_tiny_numbers(), RankGroup(configs[0], [], join_process_group, plugins) as ranks:
        build = partial(assemble, ranks=ranks, shows_progress=False)
        return Together(lambda config, directory: build(config, directory.path), JointStep, ended).train(configs)


def sweep(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Train several runs as ``-m`` does, in this process: in stacks, and without those that are finished.

    Args:
        runs: the values of each run by a label for messages.

    Returns:
        The directory of each run by its label, also of a run that failed; the sweep prints the reason.

    Raises:
        InputError: a run asks for several devices, or all runs are refused for one reason.
        SystemExit: a signal stopped the sweep; the same call continues it.
    """
    jobs = plan([[label] for label in runs], lambda own: OmegaConf.create(dict(runs[own[0]])), read_config)
    configs = {job.overrides[0]: job.config for job in jobs}
    folders = (config.output_dir for config in configs.values() if config is not None)
    folder = new_folder(next(folders, Config.output_dir))

    def start(chosen: Sequence[Sequence[str]]) -> None:
        for (label,) in chosen:
            run_in_sweep(run, run_stack, lambda label=label: configs[label], folder)

    try:
        with Sweep(jobs, folder, Launching()) as leading:
            leading.launch(start)
    except SystemExit as end:
        # Code 1 says that runs have failed.
        if end.code != 1:
            raise
    return {job.overrides[0]: job.directory for job in jobs}


def assemble(config: Config, directory: Path, ranks: RankGroup, shows_progress: bool = True) -> Assembled:
    """Config → data → module → callbacks → trainer, the same on every rank; writes nothing."""
    if config.trainer.threads is not None:
        use_threads(config.trainer.threads, ranks.processes_here)
    keep_freed_memory()
    lightning.seed_everything(config.seed, verbose=False)

    data = TableDataModule.from_config(config)
    ranks.check_rows(len(data.train))
    module = Li2Module.from_config(config, data)
    sections = config.callbacks if shows_progress else {**config.callbacks, "progress": {"enabled": False}}
    trainer = build_trainer(config, directory, build_callbacks(sections), ranks.environment)
    return trainer, module, data


def plugin_modules(config: Config) -> list[tuple[str, str]]:
    """Each key that names a plug-in, with the module whose import registers that plug-in in another process."""
    found = [
        ("task.name", TASKS.module_of(config.task.name)),
        ("network.name", NETWORKS.module_of(config.network.name)),
        ("network.activation", ACTIVATIONS.module_of(config.network.activation)),
        ("loss", LOSSES.module_of(config.loss)),
        ("scheduler.name", SCHEDULES.module_of(str(config.scheduler.get("name")))),
    ]
    for label, options in config.callbacks.items():
        found.append((f"callbacks.{label}.name", CALLBACKS.module_of(options.get("name", label))))
    for role in ROLES:
        for key in ("name", "inner"):
            named = getattr(config.optimizer, role).get(key) or []
            names = [named] if isinstance(named, str) else named
            found += [(f"optimizer.{role}.{key}", OPTIMIZERS.module_of(str(name))) for name in names]
    return [(key, module) for key, module in found if module is not None]


ConfigStore.instance().store(name="schema", node=Config)
# The text of --help. Where this file is __main__ and a plug-in imports train, these lines run twice.
OmegaConf.register_new_resolver("explain_keys", explain_keys, replace=True)
OmegaConf.register_new_resolver("explain_groups", lambda: explain_groups(config_groups()), replace=True)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def train(config: DictConfig) -> None:
    """One run of the command line, or one run of a sweep in a process of the sweep's launcher."""
    shell = HydraConfig.get()
    if shell.mode is RunMode.MULTIRUN:
        run_in_sweep(run, run_stack, lambda: read_config(config), Path(shell.sweep.dir))
        return
    try:
        result = run(config)
    except Exception as error:
        sys.exit(show_error(error, config.debug))
    if not is_first_rank():
        return
    if result.stored:
        print("This run was finished before; force=true repeats it.")
    print_summary(result.summary, result.directory)


def main() -> int:
    """Run the command line and return its exit code."""
    clock.starts_command()
    print_in_any_encoding()
    if is_follower():
        return run_as_follower(run)
    # Hydra then raises errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra logs the text of --info. A reader that closes the pipe early is no reason for a traceback.
    logging.raiseExceptions = False
    try:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv[1:] = prepare(sys.argv[1:])
        try:
            train()
        finally:
            # A closed pipe raises here, where it is handled. When Python exits, it would print a message.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return show_error(Interrupted(signal.SIGINT, "Stopped before training began."), debug=False)
    # Hydra and OmegaConf raise many kinds of errors while they compose a config, all about the user's input.
    except Exception as error:
        return show_error(error, debug="debug=true" in sys.argv, composing=True)
    return 0


if __name__ == "__main__":
    # A plug-in may lie in the current folder.
    sys.path.append(os.getcwd())
    # When Python exits, it searches all objects for garbage; without those of the imports that takes a second less.
    gc.freeze()
    sys.exit(main())
