"""Which library multiplies large float32 matrices on the CPU: the one that is faster on this machine.

torch multiplies with MKL, which uses AVX-512 on Intel's processors only, and it also contains oneDNN. Which of them is
faster depends on the processor, so it is measured, once for a machine. The results of both differ in the last bit.
Therefore a checkpoint names the library of its run, and a run that continues from it keeps that library.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from li2_lightning._compat import onednn_product
from li2_lightning.files import replacing

ONEDNN, TORCH = "oneDNN", "torch"
# Rows, width and classes of a block at the default size.
ROWS, WIDTH, CLASSES = 256, 2048, 71
ROUNDS = 8
# oneDNN must take less than this share of torch's time, so that equal libraries are not told apart by noise.
MARGIN = 0.97

_chosen: str | None = None


class Products(Protocol):
    """The products AB of a library, of matrices A (m × k) and B (k × n); torch's library also takes batches."""

    def product(self, left: Tensor, right: Tensor, space: Tensor | None = None) -> Tensor:
        """AB, perhaps in ``space`` (m × n)."""

    def write(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Replace ``out`` by AB."""

    def add(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add AB to ``total``."""


class OfTorch:
    """`Products` of torch's own library."""

    def product(self, left: Tensor, right: Tensor, space: Tensor | None = None) -> Tensor:
        return torch.matmul(left, right, out=space)

    def write(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        torch.matmul(left, right, out=out)

    def add(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        # A product that starts at the total takes a tenth less time than a product and a sum.
        (total.addmm_ if total.ndim == 2 else total.baddbmm_)(left, right)


class OfOneDNN:
    """`Products` of oneDNN, which writes every result to new memory; it is fastest where A is contiguous.

    Args:
        operator: xAᵀ for a matrix A, see `li2_lightning._compat.onednn_product`.
    """

    def __init__(self, operator: Callable[..., Tensor]) -> None:
        self._operator = operator

    def product(self, left: Tensor, right: Tensor, space: Tensor | None = None) -> Tensor:
        # On a slice of columns of a wider matrix oneDNN is a thousand times slower.
        plain = right if right.is_contiguous() or right.mT.is_contiguous() else right.contiguous()
        return self._operator(left, plain.mT, None, "none", [], "")

    def write(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        # A product whose long side is contiguous in the result takes a third less time where the short side is no
        # multiple of the vector length.
        if len(left) > right.shape[1]:
            out.copy_(self.product(right.mT, left.mT).mT)
        else:
            out.copy_(self.product(left, right))

    def add(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        total.add_(self.product(left, right))


def use_library(name: str | None) -> None:
    """Multiply by ``name``, `ONEDNN` or `TORCH`, from now on; None: by the faster one."""
    global _chosen
    _chosen = name


def library() -> str:
    """The library that `product` uses for large float32 matrices on the CPU."""
    if onednn() is None:
        return TORCH
    if _chosen is not None:
        return _chosen
    return ONEDNN if ratio() < MARGIN else TORCH


def explain_library() -> str:
    """`library`, and why, in one line."""
    if onednn() is None:
        return "torch's own, because this torch has no operator for oneDNN's product"
    name = {ONEDNN: "oneDNN", TORCH: "torch's own"}[library()]
    return f"{name}, because oneDNN takes {ratio():.2f} of the time of torch's own here (kept in {_cache()})"


@functools.cache
def onednn() -> Products | None:
    """The products of oneDNN for plain float32 matrices; None where this torch cannot call it."""
    operator = onednn_product()
    return None if operator is None else OfOneDNN(operator)


@functools.cache
def ratio() -> float:
    """The time of oneDNN's products over that of torch's own; an earlier process may have measured it."""
    path, key = _cache(), _machine()
    known: dict[str, float] = {}
    # The file may be missing or broken, and its folder may not be writable. Then every process measures.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        known = {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    if key not in known:
        known[key] = _measure()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return known[key]


def processor() -> str:
    """The name of the processor."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "li2_lightning" / "products.json"


def _machine() -> str:
    """What a ratio depends on: processor, torch, and the instructions that the environment allows."""
    allowed = [os.environ.get(name, "") for name in ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")]
    capability, version = torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}"
    return ", ".join([processor(), capability, version, "products in given memory", *allowed])


def _measure() -> float:
    """oneDNN's time over torch's for the products of a block of rows; it takes some 25 ms.

    The time of a product is the shortest of `ROUNDS`. One thread is timed by its own processor time, so other processes
    hardly change the result. No random numbers are drawn, since a run draws from the same sources.
    """
    libraries = {ONEDNN: onednn(), TORCH: OfTorch()}
    times: dict[tuple[str, str], list[float]] = {}
    features, readout = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, CLASSES)
    outputs, by_row, sums = torch.ones(ROWS, CLASSES), torch.ones(CLASSES, ROWS), torch.zeros(CLASSES, WIDTH)
    with torch.no_grad(), _one_thread():
        for name, products in [*libraries.items()] * (ROUNDS + 1):
            assert products is not None
            right = readout if name == TORCH else readout.mT.contiguous().mT
            for step, compute in (
                ("outputs", functools.partial(products.write, outputs, features, right)),
                ("gradient of V", functools.partial(products.add, sums, by_row, features)),
                ("gradient of F", functools.partial(products.product, outputs, right.mT, features)),
            ):
                began = time.thread_time()
                compute()
                times.setdefault((name, step), []).append(time.thread_time() - began)
    # The first time of each is left out, since the libraries prepare themselves in it.
    total = {name: sum(min(found[1:]) for key, found in times.items() if key[0] == name) for name in libraries}
    return total[ONEDNN] / total[TORCH]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
