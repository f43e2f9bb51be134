"""What is installed and in use, as plain text for a bug report.

    li2 doctor

Each line is found independently: a missing or broken part is named in its own line and does not affect the others. Keys
and passwords are never printed, only whether they exist.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pkgutil
import platform
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

import li2_lightning
from li2_lightning.errors import readable

REQUIRED = ("torch", "lightning", "torchmetrics", "wandb", "omegaconf", "hydra-core", "PyYAML", "numpy", "filelock",
            "pandas", "matplotlib", "pillow", "rich")  # fmt: skip
EXTRAS = {
    "optimizers": ("pytorch-optimizer",),
    "docs": ("mkdocs", "mkdocs-material", "mkdocstrings-python"),
    "report": ("Jinja2", "imageio-ffmpeg", "plotly", "pyarrow"),
    "wandb": ("wandb-workspaces",),
    "loggers": ("tensorboard", "mlflow-skinny", "SQLAlchemy", "alembic"),
    "sweep": ("hydra-joblib-launcher", "hydra-submitit-launcher", "joblib", "submitit"),
    "notebooks": ("nbclient", "ipykernel"),
}
"""The packages of each optional extra of setup.cfg."""


def main(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """The command ``li2 doctor``."""
    parser.parse_args(arguments)
    for label, value in findings():
        print(f"{label:<23} {value}", flush=True)


def findings() -> Iterator[tuple[str, str]]:
    """The label and the text of each line of the report."""
    yield "li2_lightning", f"{li2_lightning.__version__} in {Path(li2_lightning.__file__).parent}"
    yield "train.py", _or_why_not(lambda: _origin("train"))
    yield "configs", _or_why_not(_configs)
    yield "python", f"{platform.python_version()} in {sys.prefix}"
    yield "system", platform.platform()
    for package in REQUIRED:
        yield package, _version(package, "li2-lightning")
    for extra, packages in EXTRAS.items():
        for package in packages:
            yield package, _version(package, f"li2-lightning[{extra}]")
    yield "processor", _or_why_not(_processor)
    yield "usable cores", _or_why_not(_cores)
    yield "devices", _or_why_not(_devices)
    yield "torch threads", _or_why_not(_threads)
    yield "product of matrices", _or_why_not(_product)
    yield "W&B credentials", _or_why_not(_credentials)
    yield "W&B mode", _or_why_not(_wandb_mode)
    yield "free disk", _or_why_not(_free_disk)
    broken = list(_broken_plug_ins())
    yield from broken or [("plug-ins", "all can be imported")]


def _or_why_not(find: Callable[[], str]) -> str:
    """The result of ``find``, or the error that it raised."""
    try:
        return find()
    # SystemExit: a third-party plug-in may end the program when it is imported.
    except (Exception, SystemExit) as error:
        return f"cannot be told: {_reason(error)}"


def _reason(error: BaseException) -> str:
    # The settings of W&B append the refused value in brackets, and the value may be a key.
    text = str(error).partition(" [type=")[0]
    return readable(" ".join(f"{type(error).__name__}: {text}".split()))


def _origin(module: str) -> str:
    spec = find_spec(module)
    return "not found" if spec is None else str(spec.origin)


def _configs() -> str:
    from li2_lightning.config import CONFIGS

    return str(CONFIGS) if (CONFIGS / "config.yaml").is_file() else f"not found in {CONFIGS}"


def _version(package: str, requirement: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed; pip install '{requirement}'"


def _processor() -> str:
    import torch

    from li2_lightning.networks.libraries import processor

    return f"{processor()}; torch sees {torch.backends.cpu.get_cpu_capability()}"


def _cores() -> str:
    from li2_lightning.distributed.machine import usable_cores

    return f"{usable_cores()} of {os.cpu_count()}"


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join(["cpu", *names])


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"


def _product() -> str:
    from li2_lightning.networks.libraries import explain_library

    return explain_library()


def _credentials() -> str:
    from li2_lightning.runs.wandb import has_credentials

    return "present" if has_credentials() else "not present; wandb login adds them"


def _wandb_mode() -> str:
    from li2_lightning.config.schema import Config
    from li2_lightning.runs.wandb import wandb_mode

    return f"{wandb_mode(Config())}, WANDB_MODE {os.environ.get('WANDB_MODE', 'not set')}"


def _free_disk() -> str:
    from li2_lightning.config.schema import Config

    folder = Path(Config().output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB for {folder}"


def _broken_plug_ins() -> Iterator[tuple[str, str]]:
    """A line for every plug-in that cannot be imported: modules of our folders, and entry points of packages."""
    for package in ("optimizers", "callbacks"):
        spec = find_spec(package)
        if spec is None:
            yield package, "not found"
            continue
        modules = pkgutil.walk_packages(spec.submodule_search_locations, f"{package}.", onerror=lambda name: None)
        for name in itertools.chain([package], (module.name for module in modules)):
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:
                yield name, f"cannot be imported: {_reason(error)}"
                if name == package:
                    # Every module of the package would fail with the same error.
                    break
    for group in sorted(entry_points().groups):
        for point in entry_points(group=group) if group.startswith("li2_lightning.") else ():
            try:
                point.load()
            except (Exception, SystemExit) as error:
                yield point.value, f"cannot be imported: {_reason(error)}"
