"""What is found out about an optimizer before the run, by a step on copies of the weights and a checkpoint."""

from __future__ import annotations

import enum
import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

import train
from li2_lightning.seeds import keeping_random_state
from optimizers import OPTIMIZERS, OptimizerError, build_optimizer, build_scheduler, describe, rehearse
from optimizers.registry import build


class Norm(enum.Enum):
    SPECTRAL = 1


class Counted(enum.IntEnum):
    ONE = 1


class Projector:
    rank = 4


def keeping(value: Any, where: str = "state") -> type[Optimizer]:
    """An optimizer that keeps ``value`` in the state of each parameter, or in its groups."""

    class Keeping(SGD):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, lr)
            if where == "group":
                self.param_groups[0]["kept"] = value

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            if where == "state":
                for p in self.param_groups[0]["params"]:
                    self.state[p]["kept"] = value

    return Keeping


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """``named("mine", factory)`` makes a factory known for one test."""
    return lambda name, factory: monkeypatch.setitem(OPTIMIZERS._entries, name, factory)


def roles() -> dict[str, list[tuple[str, Parameter]]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": [("W", Parameter(torch.randn(6, 4, generator=generator)))],
        "output": [("V", Parameter(torch.randn(4, 3, generator=generator)))],
    }


def builder(name: str) -> Callable[..., Any]:
    return partial(build_optimizer, config={"hidden": {"name": "sgd"}, "output": {"name": name}})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Norm.SPECTRAL, "Norm"),
        (Counted.ONE, "Counted"),
        (np.float64(1), "numpy.float64"),
        (np.int32(1), "numpy.int32"),
        (np.zeros(2), "numpy.ndarray"),
        (len, "builtins.builtin_function_or_method"),
        (lambda: 1, "builtins.function"),
        (deque([1.0]), "collections.deque"),
        (defaultdict(list), "collections.defaultdict"),
        (Projector(), "Projector"),
        (Path("a"), "Path"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("where", ["state", "group"])
def test_a_value_that_no_checkpoint_gives_back_is_named_with_its_role_and_entry(
    named: Callable[[str, Any], None], value: Any, kind: str, where: str
) -> None:
    named("keeping", keeping(value, where))
    entry = {"state": r"state\.0\.kept", "group": r"param_groups\.0\.kept"}[where]
    message = (
        rf"^optimizer\.output: keeping cannot be continued from a checkpoint: {entry} is a \S*{kind}\S*, and .*[^.]\.$"
    )
    with pytest.raises(OptimizerError, match=message):
        rehearse(builder("keeping"), roles())


@pytest.mark.parametrize(
    ("value", "entry"),
    [({"of": [1, {"deep": Norm.SPECTRAL}]}, r"kept\.of\.1\.deep"), ({Counted.ONE: 2}, r"kept\.1")],
)
def test_the_innermost_value_is_named_also_where_it_is_a_key(
    named: Callable[[str, Any], None], value: Any, entry: str
) -> None:
    named("keeping", keeping(value))
    with pytest.raises(OptimizerError, match=rf": state\.0\.{entry} is a \S*(Norm|Counted), "):
        rehearse(builder("keeping"), roles())


@pytest.mark.parametrize(
    "value", [None, True, 3, 2.5, 1j, "word", b"raw", [1], (1, 2), {"a": [torch.zeros(2)]}, {1, 2}, torch.float32]
)
def test_plain_values_pass(named: Callable[[str, Any], None], value: Any) -> None:
    named("keeping", keeping(value))
    rehearse(builder("keeping"), roles())


@pytest.mark.parametrize("role", ["hidden", "output"])
def test_a_run_with_such_an_optimizer_writes_nothing(
    named: Callable[[str, Any], None], tmp_path: Path, role: str
) -> None:
    named("keeping", keeping(np.float32(1)))
    values = {"task": {"order": 5}, "network": {"width": 4}, "optimizer": {role: {"name": "keeping"}}}
    with pytest.raises(OptimizerError, match=rf"^optimizer\.{role}: keeping cannot be continued"):
        train.run({**values, "output_dir": str(tmp_path / "out"), "logger": {"mode": "disabled"}})
    assert not (tmp_path / "out").exists()


class Failing(SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise RuntimeError("no\nsuch kernel.")


class Forgetful(SGD):
    def load_state_dict(self, state_dict: Any) -> None:
        raise KeyError("momentum")


class Frail(SGD):
    """Keeps a list, and takes a tensor for granted once it has been loaded."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.loaded = True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if hasattr(self, "loaded"):
            raise AttributeError("'list' object has no attribute 'mul_'")


class SecondOrder(SGD):
    """The curvature along the gradient, by a second backward pass."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (p,) = self.param_groups[0]["params"]
        torch.autograd.grad(p.grad.square().sum(), p)


class TakesCurvature(SGD):
    """Asks for the curvature at the tenth step only."""

    def step(self, closure: Any = None, hessian: Any = None) -> None:  # type: ignore[override]
        super().step()


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (Failing, "cannot step on these weights: RuntimeError: no such kernel"),
        (Forgetful, "cannot be continued from a checkpoint: KeyError: 'momentum'; choose another optimizer"),
        (Frail, "cannot step after a checkpoint on these weights: AttributeError: .*"),
        (SecondOrder, r"needs second derivatives of the loss .*create_graph=True.*; choose another optimizer, .*"),
        (TakesCurvature, r"needs second derivatives of the loss .*create_graph=True.*; choose another optimizer, .*"),
    ],
)
def test_an_optimizer_that_fails_later_is_refused_before_with_the_reason(
    named: Callable[[str, Any], None], factory: Any, reason: str
) -> None:
    named("failing", factory)
    with pytest.raises(OptimizerError, match=rf"^optimizer\.output: failing {reason}\.$"):
        rehearse(builder("failing"), roles())


class Drawing(SGD):
    """Draws from every global source of random numbers, when it is built and in every step."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.draw()

    def draw(self) -> float:
        return random.random() + float(np.random.rand()) + torch.rand(()).item()  # noqa: NPY002

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.add_(self.draw())


def test_neither_the_weights_nor_the_random_streams_of_the_run_move(named: Callable[[str, Any], None]) -> None:
    named("drawing", Drawing)

    def draws(is_rehearsed: bool) -> list[float]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        parameters = roles()
        before = {name: p.detach().clone() for members in parameters.values() for name, p in members}
        if is_rehearsed:
            with keeping_random_state():
                rehearse(builder("drawing"), parameters)
        for members in parameters.values():
            for name, p in members:
                assert torch.equal(p, before[name])
                assert p.grad is None
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]  # noqa: NPY002

    assert draws(is_rehearsed=True) == draws(is_rehearsed=False)


# -- groups that say what is a matrix ---------------------------------------------------------------------------------


class AsksInConstructor(SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        for group in params:
            assert "use_muon" in group
        super().__init__(params, lr)


class AsksByKey(SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        self.is_muon = [group["use_muon"] for group in params]
        super().__init__(params, lr)


def asks_in_a_function(params: Any, lr: float = 0.1) -> Optimizer:
    return AsksByKey(params, lr)


def weights() -> list[Tensor]:
    return [Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2), ())]


@pytest.mark.parametrize("factory", [AsksInConstructor, AsksByKey, asks_in_a_function])
def test_an_optimizer_that_needs_use_muon_is_told_which_parameters_are_matrices(
    named: Callable[[str, Any], None], factory: Any
) -> None:
    named("asking", factory)
    given = weights()
    groups = build("asking", given, {}, role="embedding").param_groups
    assert [group["use_muon"] for group in groups] == [True, False]
    assert [[p.ndim for p in group["params"]] for group in groups] == [[2, 2], [1, 0]]
    (only,) = build("asking", [given[0]], {}, role="hidden").param_groups
    assert only["use_muon"] is True


class RefusesVectors(SGD):
    """Looks at what it can see: in groups, which it takes, nothing."""

    def __init__(self, params: Sequence[Any], lr: float = 0.1) -> None:
        if any(isinstance(p, Tensor) and p.ndim < 2 for p in params):
            raise ValueError("vectors are not supported")
        super().__init__(params, lr)


class AsksAndChecks(AsksByKey):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        raise ValueError("momentum is missing")


@pytest.mark.parametrize(
    ("factory", "why"), [(RefusesVectors, "vectors are not supported"), (AsksAndChecks, "momentum is missing")]
)
def test_use_muon_is_no_way_around_a_refusal(named: Callable[[str, Any], None], factory: Any, why: str) -> None:
    named("asking", factory)
    with pytest.raises(OptimizerError, match=f"ValueError: {why}"):
        build("asking", weights(), {}, role="embedding")


# -- groups without a learning rate -----------------------------------------------------------------------------------


class NoRate(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.sub_(0.01 * p.grad)


class NullRate(NoRate):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.param_groups[0]["lr"] = None


@pytest.mark.parametrize("factory", [NoRate, NullRate])
def test_groups_without_lr_are_trained_described_and_have_no_column(
    named: Callable[[str, Any], None], factory: Any, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    named("rateless", factory)
    run = tiny_run("optimizer.hidden={name: rateless}", "max_steps=3")
    assert run.rows[-1]["train/loss"] < run.rows[0]["train/loss"]
    assert "optimizer/output_lr" in run.rows[0]
    assert "optimizer/hidden_lr" not in run.rows[0]
    assert "hidden     rateless  lr none" in capsys.readouterr().out


@pytest.mark.parametrize("factory", [NoRate, NullRate])
@pytest.mark.parametrize("schedule", [{"name": "cosine"}, {"name": "step", "step_size": 2}])
def test_a_schedule_of_no_learning_rate_is_refused(
    named: Callable[[str, Any], None], factory: Any, schedule: Mapping[str, Any]
) -> None:
    named("rateless", factory)
    composite = builder("rateless")(roles())
    assert "lr none" in describe(composite)
    message = rf"^scheduler\.name={schedule['name']} sets learning rates, and the output optimizer has none; "
    with pytest.raises(OptimizerError, match=message):
        build_scheduler(composite, schedule, 10)
