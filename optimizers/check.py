"""The contract of an optimizer, checked.

    li2 check my_module:SignDescent --hyperparameter lr=0.01
    li2 check muon --hyperparameter orthogonalization=svd momentum=0.9

prints one line a check and exits with 0 if the contract holds, 1 if it does not, and 2, with one sentence, for an
optimizer that cannot be built. A package of your own can run the same functions in its tests:

    from optimizers.check import CHECKS, Candidate

    @pytest.mark.parametrize("name", CHECKS)
    def test_contract(name):
        CHECKS[name](Candidate("my_package:MyOptimizer"))

A check returns a remark and raises `Broken` where the contract does not hold. Only the check ``processes`` starts
processes.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import Parameter
from torch.optim import Optimizer

from li2_lightning.errors import InputError, reason
from li2_lightning.plugins import accepts
from optimizers import registry
from optimizers.problems import Loss, least_squares, network, quadratic, train, update
from optimizers.roles import ROLES, build_optimizer

# A candidate without a learning rate of its own must keep the contract with one of these.
LEARNING_RATES = (0.02, 0.1, 0.003, 0.5)
DECREASE, STEPS = 0.1, 250


class Broken(AssertionError):
    """The contract does not hold; the message says what happened instead."""


@dataclass(frozen=True)
class Candidate:
    """An optimizer as the user names it, with hyperparameters."""

    name: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, hyperparameter: str) -> bool:
        """Whether the candidate has such a hyperparameter."""
        factory, _ = registry.resolve(self.name, self.hyperparameters, {}, "hidden")
        return accepts(factory, hyperparameter, 1)

    def build(self, *weights: Tensor, **overrides: float) -> Optimizer:
        """The optimizer over ``weights``; ``overrides`` are hyperparameters that count where it takes them."""
        return registry.build(self.name, list(weights), self._with(overrides), role="hidden")

    def section(self, **overrides: float) -> dict[str, Any]:
        """The section of a config for a role with this optimizer."""
        return {"name": self.name, **self._with(overrides)}

    def _with(self, overrides: Mapping[str, float]) -> dict[str, Any]:
        return {**self.hyperparameters, **{key: value for key, value in overrides.items() if self.takes(key)}}


Check = Callable[[Candidate], str]
CHECKS: dict[str, Check] = {}


def _enter(check: Check) -> Check:
    CHECKS[check.__name__] = check
    return check


def _learning_rates(candidate: Candidate) -> list[dict[str, float]]:
    """The overrides to try in turn: none where the candidate names its learning rate or has none, else several."""
    if "lr" in candidate.hyperparameters or not candidate.takes("lr"):
        return [{}]
    return [{"lr": lr} for lr in LEARNING_RATES]


def _decreases(candidate: Candidate, problem: Callable[[torch.dtype], tuple[Parameter, Loss]]) -> str:
    remark = ""
    for dtype in (torch.float32, torch.float64):
        tried = []
        for lr in _learning_rates(candidate):
            weight, loss = problem(dtype)
            before = loss(weight).item()
            train(candidate.build(weight, weight_decay=0.0, **lr), weight, loss, STEPS)
            after = loss(weight).item()
            at = "".join(f" at lr {value:g}" for value in lr.values())
            if after < DECREASE * before:  # not so for NaN
                remark = f"loss {before:.3g} → {after:.2g} in {STEPS} steps{at}"
                break
            tried.append(f"{after:.3g}{at}")
        else:
            kind = str(dtype).removeprefix("torch.")
            raise Broken(f"from {before:.3g} the loss went to {', '.join(tried)} in {STEPS} steps ({kind})")
    return remark


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _may_refuse(what: str) -> Callable[[Check], Check]:
    """For a check in which an exception at any point means that the candidate refuses, which is a remark as well."""

    def decorate(check: Check) -> Check:
        @functools.wraps(check)
        def attempt(candidate: Candidate) -> str:
            try:
                return check(candidate)
            except Broken:
                raise
            except Exception as error:
                return f"refuses {what}: {reason(error)}"

        return attempt

    return decorate


# -- the contract --------------------------------------------------------------------------------------------


@_enter
def convex_quadratic(candidate: Candidate) -> str:
    """The loss of a diagonal quadratic falls to a tenth in 250 steps."""
    return _decreases(candidate, quadratic)


@_enter
def matrix_problem(candidate: Candidate) -> str:
    """The loss of a least-squares problem in a matrix falls to a tenth in 250 steps."""
    return _decreases(candidate, least_squares)


@_enter
def checkpoint(candidate: Candidate) -> str:
    """State survives a checkpoint bit for bit, in a file that holds plain containers and tensors."""
    weight, loss = least_squares()
    optimizer = candidate.build(weight, weight_decay=0.01)
    torch.manual_seed(0)
    train(optimizer, weight, loss, 5)
    file = io.BytesIO()
    torch.save({"weight": weight.detach(), "optimizer": optimizer.state_dict()}, file)
    torch.manual_seed(1)
    uninterrupted = train(optimizer, weight, loss, 5)
    file.seek(0)
    try:
        saved = torch.load(file, weights_only=True)
    except Exception as error:
        raise Broken(f"state_dict() holds more than plain containers and tensors: {reason(error)}") from error
    resumed = Parameter(saved["weight"])
    restored = candidate.build(resumed, weight_decay=0.01)
    restored.load_state_dict(saved["optimizer"])
    torch.manual_seed(1)
    _require(
        torch.equal(train(restored, resumed, loss, 5), uninterrupted),
        "training on from a checkpoint gives other weights than without it: state is missing from state_dict()",
    )
    return ""


@_enter
@_may_refuse("copies")
def copies(candidate: Candidate) -> str:
    """A deep copy trains on by itself, and as the original would, or is refused with an exception."""
    weight, loss = least_squares()
    optimizer = candidate.build(weight)
    train(optimizer, weight, loss, 3)
    copied, twin = deepcopy((optimizer, weight))
    torch.manual_seed(0)
    expected = train(optimizer, weight, loss, 3)
    torch.manual_seed(0)
    _require(torch.equal(train(copied, twin, loss, 3), expected), "a deep copy trains on to other weights")
    return ""


@_enter
def gradients(candidate: Candidate) -> str:
    """``p.grad`` stays the same object with the same bits; ``requires_grad`` and dtype stay."""
    for dtype in (torch.float32, torch.float64):
        weight, loss = least_squares(dtype)
        optimizer = candidate.build(weight, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(weight).backward()  # type: ignore[no-untyped-call]
            gradient = weight.grad
            assert gradient is not None
            bits = gradient.clone()
            optimizer.step()
            _require(weight.grad is gradient, "step() put another tensor in the place of p.grad")
            _require(torch.equal(gradient, bits), "step() changed p.grad")
        _require(weight.requires_grad, "step() changed p.requires_grad")
        _require(weight.dtype == dtype, f"step() changed the dtype from {dtype} to {weight.dtype}")
    return ""


@_enter
def one_role(candidate: Candidate) -> str:
    """In any role of a network the candidate trains as it does alone, and a parameter without a gradient stays."""
    for role in ROLES:
        weight, loss = least_squares()
        alone = Parameter(weight.detach().clone())
        others = {r: Parameter(torch.ones(3, 3, dtype=torch.float64)) for r in ROLES if r != role}
        composite = build_optimizer(
            {role: [("weight", weight)], **{r: [(r, p)] for r, p in others.items()}},
            {role: candidate.section(weight_decay=0.1), **{r: {"name": "sgd"} for r in others}},
        )
        torch.manual_seed(0)
        found = train(composite, weight, loss, 4)
        torch.manual_seed(0)
        expected = train(candidate.build(alone, weight_decay=0.1), alone, loss, 4)
        _require(torch.equal(found, expected), f"as optimizer.{role} it gives other weights than alone")
    bystander = Parameter(torch.ones(3, 3, dtype=torch.float64))
    weight, loss = least_squares()
    train(candidate.build(weight, bystander, weight_decay=0.1), weight, loss, 2)
    _require(bool((bystander == 1).all()), "a parameter without a gradient was changed")
    return ""


def _train_network(candidate: Candidate, roles: Mapping[str, str], steps: int = 5) -> None:
    """After some steps every weight has moved and is finite; ``roles`` gives the role of each weight."""
    weights, loss = network()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    used = {role: [(name, weights[name]) for name in roles if roles[name] == role] for role in ROLES}
    composite = build_optimizer(used, {role: candidate.section() for role, named in used.items() if named})
    for _ in range(steps):
        update(composite, loss())
    for name, weight in weights.items():
        _require(_finite(weight), f"{name} is not finite after {steps} steps")
        _require(not torch.equal(weight, before[name]), f"{name} has not moved in {steps} steps")


@_enter
def several_roles(candidate: Candidate) -> str:
    """One candidate for W and another for V, in one composite: every weight is trained."""
    _train_network(candidate, {"W": "hidden", "H1": "hidden", "H2": "hidden", "V": "output"})
    return ""


@_enter
def extra_layers(candidate: Candidate) -> str:
    """One candidate for W, two extra layers and V: matrices of several shapes in one role."""
    _train_network(candidate, dict.fromkeys(("W", "H1", "H2", "V"), "hidden"))
    return ""


@_enter
@_may_refuse("complex weights")
def complex_weights(candidate: Candidate) -> str:
    """Complex weights are trained, or refused with an exception; never silently trained wrongly."""
    for lr in _learning_rates(candidate):
        weight, loss = least_squares(torch.complex128)
        before = loss(weight).item()
        train(candidate.build(weight, weight_decay=0.0, **lr), weight, loss, STEPS)
        if loss(weight).item() < DECREASE * before:
            return ""
    raise Broken(f"complex weights are accepted and not trained: loss {before:.3g} → {loss(weight).item():.3g}")


@_enter
@_may_refuse("vectors")
def vectors(candidate: Candidate) -> str:
    """Vectors and scalars are trained, or refused with an exception; the embedding role has them."""
    for shape in ((7,), ()):
        weight = Parameter(torch.ones(shape, dtype=torch.float64))
        train(candidate.build(weight), weight, lambda w: (w + 1).square().sum(), 5)
        _require(_finite(weight) and not bool((weight == 1).all()), f"a weight of shape {shape} is not trained")
    return ""


@_enter
def schedulers(candidate: Candidate) -> str:
    """A scheduler acts on every group: at learning rate 0 from the third update on, all weights stay."""
    weights, loss = network()
    optimizer = candidate.build(weights["W"])
    for name in ("H1", "H2", "V"):
        optimizer.add_param_group({"params": [weights[name]]})
    without = [i for i, group in enumerate(optimizer.param_groups) if "lr" not in group]
    _require(not without, f"parameter group {without[:1]} has no 'lr' that a scheduler could set")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: float(t < 2))
    seen = []
    for _ in range(4):
        update(optimizer, loss())
        scheduler.step()
        seen.append({name: weight.detach().clone() for name, weight in weights.items()})
    for name in weights:
        _require(not torch.equal(seen[0][name], seen[1][name]), f"{name} did not move at a learning rate above 0")
        _require(torch.equal(seen[1][name], seen[3][name]), f"{name} moved when the scheduler had set lr to 0")
    return ""


@_enter
def learning_rate_zero(candidate: Candidate) -> str:
    """At lr 0 nothing changes and nothing becomes NaN; afterwards it trains on. A candidate may also refuse lr 0."""
    if not candidate.takes("lr"):
        return "takes no lr"
    weight, loss = least_squares()
    try:
        optimizer = candidate.build(weight, lr=0.0, weight_decay=0.1)
    except InputError as error:
        return f"refuses lr 0: {error}"
    found = train(optimizer, weight, loss, 3)
    _require(_finite(found), "the weights are not finite after three steps at lr 0")
    _require(not bool(found.any()), "the weights moved at lr 0")
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    _require(_finite(train(optimizer, weight, loss, 3)), "the weights are not finite when lr has been 0 before")
    return ""


@_enter
def gradient_zero(candidate: Candidate) -> str:
    """With a gradient of zero nothing becomes NaN, neither at the start nor after other gradients."""
    weight = Parameter(torch.ones(4, 3, dtype=torch.float64))
    optimizer = candidate.build(weight, weight_decay=0.0)
    moved = False
    for gradient in (0.0, 0.0, 0.0, 1.0, 0.0, 0.0):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        _require(_finite(weight), "the weights are not finite after a gradient of zero")
        moved = moved or (gradient == 0.0 and bool((before == 1).all()) and not torch.equal(before, weight))
    return "finite, but the weights moved at a gradient of zero" if moved else ""


@_enter
def determinism(candidate: Candidate) -> str:
    """The same seed gives the same weights, bit for bit."""
    results = []
    for _ in range(2):
        weight, loss = least_squares()
        torch.manual_seed(0)
        results.append(train(candidate.build(weight, weight_decay=0.01), weight, loss, 10))
    _require(torch.equal(*results), "twice the same seed gave two different results")
    return ""


@_enter
def processes(candidate: Candidate) -> str:
    """Distributed data parallel in two CPU processes, each with rows of its own: all end with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(  # type: ignore[no-untyped-call]
                _train_distributed, (2, folder, candidate.name, dict(candidate.hyperparameters)), nprocs=2
            )
        except Exception as error:
            raise Broken(f"a process failed: {str(error).strip().splitlines()[-1]}") from error
        first, second = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2))
    _require(_finite(first), "the weights are not finite")
    _require(torch.equal(first, second), "the processes ended with different weights")
    return ""


def _train_distributed(rank: int, size: int, folder: str, name: str, hyperparameters: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{Path(folder) / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    try:
        torch.manual_seed(0)
        linear = torch.nn.Linear(6, 9, bias=False, dtype=torch.float64)
        X, Y = torch.randn(32, 6, dtype=torch.float64), torch.randn(32, 9, dtype=torch.float64)
        model = torch.nn.parallel.DistributedDataParallel(linear)
        optimizer = Candidate(name, hyperparameters).build(*model.parameters())
        torch.manual_seed(0)
        for _ in range(5):
            update(optimizer, (model(X[rank::size]) - Y[rank::size]).square().mean())
        torch.save(linear.weight.detach(), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


# -- command line --------------------------------------------------------------------------------------------


def run(candidate: Candidate, show: Callable[[str], None] = print) -> bool:
    """Every check, one line each: ``ok``, ``no`` (the optimizer refuses something optional) or ``FAIL``.

    Returns:
        Whether the contract holds.

    Raises:
        InputError: the candidate cannot be built over a matrix.
    """
    candidate.build(Parameter(torch.zeros(6, 9)))
    holds = True
    for name, check in CHECKS.items():
        try:
            remark = check(candidate)
            verdict = "no" if remark.startswith("refuses") else "ok"
        # A candidate is foreign code and may raise anything.
        except Exception as error:
            remark = str(error) if isinstance(error, Broken) else reason(error)
            verdict, holds = "FAIL", False
        show(f"{verdict:<4}  {name.replace('_', ' '):<18}  {remark}".rstrip())
    return holds


def main(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """The command ``li2 check``."""
    parser.add_argument("optimizer", help="package.module:Class, or a name that optimizer.hidden.name would take")
    parser.add_argument("--hyperparameter", metavar="name=value", nargs="+", action="extend", default=[])
    given = parser.parse_args(arguments)
    return 0 if run(Candidate(given.optimizer, dict(map(_read, given.hyperparameter)))) else 1


def _read(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"A hyperparameter is name=value, for example lr=0.01, not {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:  # a word, as in scale=rms
        return name, value
