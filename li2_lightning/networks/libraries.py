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

import torch
from torch import Tensor

from li2_lightning._compat import onednn_product
from li2_lightning.files import replacing

ONEDNN, TORCH = "oneDNN", "torch"
# The products of a block of 256 rows at the default size, m × k and k × n: outputs, gradient of V, gradient of F.
SIZES = ((71, 2048, 256), (71, 256, 2048), (256, 71, 2048))
ROUNDS = 8
# oneDNN must take less than this share of torch's time, so that equal libraries are not told apart by noise.
MARGIN = 0.97

_chosen: str | None = None


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
def onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """AB by oneDNN for plain float32 matrices, or None."""
    operator = onednn_product()
    if operator is None:
        return None

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        # On a slice of columns of a wider matrix oneDNN is a thousand times slower.
        plain = right if right.is_contiguous() or right.mT.is_contiguous() else right.contiguous()
        return operator(left, plain.mT, None, "none", [], "")

    return multiply


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
    return ", ".join([processor(), torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *allowed])


def _measure() -> float:
    """The sum over `SIZES` of the shortest of `ROUNDS` times, oneDNN's over torch's; it takes some 25 ms.

    One thread is timed by its own processor time, so other processes hardly change the result. No random numbers are
    drawn, since a run draws from the same sources.
    """
    multiply = onednn()
    assert multiply is not None
    times: dict[tuple[str, int, int], list[float]] = {}
    with torch.no_grad(), _one_thread():
        for m, k, n in SIZES:
            left, right = torch.ones(m, k), torch.ones(n, k).mT
            for _ in range(ROUNDS + 1):
                for name, function in ((ONEDNN, multiply), (TORCH, torch.matmul)):
                    began = time.thread_time()
                    function(left, right)
                    times.setdefault((name, m, k), []).append(time.thread_time() - began)
    # The first time of each is left out, since the libraries prepare themselves in it.
    total = {name: sum(min(found[1:]) for key, found in times.items() if key[0] == name) for name in (ONEDNN, TORCH)}
    return total[ONEDNN] / total[TORCH]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
