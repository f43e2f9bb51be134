"""A grid sweeper like Hydra's own that launches only the unfinished runs (`li2_lightning.sweeps`).

Hydra finds sweepers only in the namespace package ``hydra_plugins``.
"""

import itertools
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class Sweeper(HydraSweeper):
    """The grid of ``hydra.sweeper.params`` and the command line, as of Hydra's own sweeper.

    Args:
        max_batch_size: the number of runs that are launched at once; None for all.
        params: the values of the grid by key, written as on the command line.
        grids: several grids, each with its own values in addition to ``params`` or instead of them; the sweep has the
            runs of all of them. The command line goes before each.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        grids: list[dict[str, str]] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.grids = [{**(params or {}), **grid} for grid in grids or [{}]]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from li2_lightning.sweeps.lead import new_folder

        self.folder = new_folder(config.output_dir)
        # Launchers write their own files there; they read the path when they are built.
        config.hydra.sweep.dir = str(self.folder)
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from li2_lightning._compat import end_joblib_workers, job_error
        from li2_lightning.cli.hydra_errors import quoted, to_hydra
        from li2_lightning.config.checks import read_config
        from li2_lightning.config.identity import files_read
        from li2_lightning.distributed.machine import search_path
        from li2_lightning.errors import InputError
        from li2_lightning.sweeps.lead import Sweep
        from li2_lightning.sweeps.plan import plan

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        loader, master, launcher = self.hydra_context.config_loader, self.config, self.launcher
        parser = OverridesParser.create(config_loader=loader)

        def product(grid: dict[str, str]) -> Iterator[list[str]]:
            written = [*(to_hydra(f"{key}={value}") for key, value in grid.items()), *arguments]
            axes: dict[str, list[str]] = {}
            for override in parser.parse_overrides(written):
                key = override.get_key_element()
                if not override.is_sweep_override():
                    axes[key] = [f"{key}={override.get_value_element_as_str()}"]
                elif override.is_discrete_sweep():
                    axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                else:
                    raise InputError(f"{override.input_line} is no list of values; give values as in {key}=1,2,3.")
                if not axes[key]:
                    raise InputError(f"{override.input_line} names no value, so the sweep has no run.")
            return map(list, itertools.product(*axes.values()))

        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise InputError(
                f"hydra.sweeper.max_batch_size={self.max_batch_size} is out of range; it must be at least 1, the "
                "number of runs that are launched at once, or null for all."
            )
        overrides = [own for grid in self.grids for own in product(grid)]

        planned = plan(overrides, Composer(loader, master), read_config)
        # A worker reads the config again, when the first run may have pointed outputs/latest to itself.
        files = {
            tuple(job.overrides): [f"{key}={quoted(path)}" for key, path in files_read(job.config).items()]
            for job in planned
            if job.config is not None
        }

        def start(jobs: list[list[str]]) -> None:
            where = f"hydra.sweep.dir={quoted(str(self.folder))}"
            for result in launcher.launch([[*own, *files[tuple(own)], where] for own in jobs], initial_job_idx=0):
                if result.status is JobStatus.FAILED:
                    # A run writes its own failure as its outcome, so this error arose outside every run.
                    raise job_error(result)

        launching = self._launching(len(overrides))
        if not launching.in_this_process:
            # Other processes then find the modules of train.py's folder and of the current folder.
            os.environ["PYTHONPATH"] = search_path()
            # submitit starts its jobs with `python -m`, which would otherwise put the current folder first again.
            os.environ["PYTHONSAFEPATH"] = "1"
        with Sweep(planned, self.folder, launching) as sweep:
            sweep.launch(start, self.max_batch_size)
            end_joblib_workers()

    def _launching(self, runs: int) -> Any:
        """How the chosen launcher starts runs."""
        from li2_lightning.errors import InputError
        from li2_lightning.sweeps.plan import Launching

        assert self.config is not None
        launcher = self.config.hydra.launcher
        match launcher._target_.rpartition(".")[2]:
            case "BasicLauncher":
                return Launching()
            case "JoblibLauncher":
                from joblib import effective_n_jobs

                if launcher.n_jobs == 0:
                    raise InputError(
                        "hydra.launcher.n_jobs=0 starts no process; write the number of processes, or -1: one a core."
                    )
                return Launching(parallel=effective_n_jobs(launcher.n_jobs), in_this_process=False)
            case "LocalLauncher":
                return Launching(parallel=self.max_batch_size or runs, in_this_process=False, reuses_workers=False)
        return Launching(parallel=None, in_this_process=False, on_this_machine=False, reuses_workers=False)


class Composer:
    """Composes the config of each run of a sweep.

    Hydra reads and merges all files for each config, which takes as long as the training of a small run. Here runs that
    choose the same files share that work, and only the overrides of values are applied to each of them.

    Args:
        loader: Hydra's.
        master: the config of the sweep.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parse = cache(OverridesParser.create(config_loader=loader).parse_override)
        self._has_files = cache(lambda name: bool(loader.get_group_options(name)))
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: list[str]) -> DictConfig:
        """The values of the run with these overrides, without Hydra's own section."""
        from li2_lightning._compat import apply_overrides

        values = [self._parse(text) for text in overrides]
        values = [value for value in values if not (value.is_hydra_override() or self._chooses_files(value))]
        of_values = {value.input_line for value in values}
        choices = tuple(text for text in overrides if text not in of_values)
        if choices not in self._composed:
            config = self._loader.load_sweep_config(self._master, list(choices))
            with open_dict(config):
                del config["hydra"]
            self._composed[choices] = config
        config = deepcopy(self._composed[choices])
        apply_overrides(config, values)
        return config

    def _chooses_files(self, override: Override) -> bool:
        return override.package is not None or self._has_files(override.key_or_group)


@dataclass
class SweeperConf:
    """The arguments of `Sweeper`."""

    _target_: str = f"{Sweeper.__module__}.{Sweeper.__qualname__}"
    max_batch_size: int | None = None
    # OmegaConf cannot merge {KEY: VALUES} into null.
    params: dict[str, str] | None = field(default_factory=dict)
    grids: list[dict[str, str]] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="unfinished", node=SweeperConf, provider="li2_lightning")
