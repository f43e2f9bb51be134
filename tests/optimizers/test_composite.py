"""The composite is an ordinary optimizer to all who hold it: schedulers, Lightning, checkpoints, copies."""

import io
import pickle
from copy import deepcopy
from pathlib import Path

import lightning
import pytest
import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from optimizers import CompositeOptimizer, Muon, OptimizerError, build_optimizer, build_scheduler


def network(seed: int = 0) -> tuple[Parameter, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    W, V = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (6, 3)))
    return Parameter(W), Parameter(V)


def loss_of(W: Tensor, V: Tensor) -> Tensor:
    return ((torch.ones(4, dtype=torch.float64) @ W).square() @ V - 1).square().sum() + V.square().sum()


def make(W: Parameter, V: Parameter, hidden: str = "muon", output: str = "adam") -> CompositeOptimizer:
    config = {"lr": 0.1, "weight_decay": 0.01, "hidden": {"name": hidden}, "output": {"name": output}}
    return build_optimizer({"hidden": [("W", W)], "output": [("V", V)]}, config)


def train(optimizer: torch.optim.Optimizer, W: Parameter, V: Parameter, steps: int = 3) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(W, V).backward()
        optimizer.step()
    return [W.detach().clone(), V.detach().clone()]


def through_a_file(state: object) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- an ordinary optimizer -----------------------------------------------------------------------------------


def test_it_trains_like_its_children_one_after_the_other() -> None:
    W, V = network()
    W2, V2 = network()
    joined = train(make(W, V), W, V)
    children = [Muon([W2], lr=0.1, weight_decay=0.01), Adam([V2], lr=0.1, weight_decay=0.01)]
    for _ in range(3):
        for child in children:
            child.zero_grad()
        loss_of(W2, V2).backward()
        for child in children:
            child.step()
    assert same(joined, [W2.detach(), V2.detach()])


def test_groups_are_the_childrens_own() -> None:
    optimizer = make(*network())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [group["role"] for group in optimizer.param_groups] == ["hidden", "output"]
    for group, child in zip(optimizer.param_groups, optimizer.children.values(), strict=True):
        assert group is child.param_groups[0]
    assert "role: hidden" in repr(optimizer)


def test_the_closure_is_evaluated_once_and_before_any_step() -> None:
    W, V = network()
    before, calls = [W.detach().clone(), V.detach().clone()], []

    def closure() -> Tensor:
        assert same(before, [W.detach(), V.detach()])
        calls.append(torch.is_grad_enabled())
        loss = loss_of(W, V)
        loss.backward()
        return loss

    expected = loss_of(*network()).item()
    with torch.no_grad():
        assert make(W, V).step(closure).item() == expected
    assert calls == [True]
    assert not torch.equal(before[0], W.detach())
    assert not torch.equal(before[1], V.detach())


def test_zero_grad_reaches_every_role() -> None:
    W, V = network()
    optimizer = make(W, V)
    loss_of(W, V).backward()
    optimizer.zero_grad(set_to_none=False)
    assert W.grad is not None
    assert not W.grad.any()
    assert not V.grad.any()
    optimizer.zero_grad()
    assert W.grad is None
    assert V.grad is None


def test_a_group_is_added_to_its_role() -> None:
    W, V = network()
    optimizer = make(W, V)
    extra = Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer.add_param_group({"params": [("extra", extra)], "role": "output", "lr": 0.5})
    added = optimizer.param_groups[-1]
    assert added is optimizer.children["output"].param_groups[-1]
    assert (added["lr"], added["betas"], added["param_names"]) == (0.5, (0.9, 0.999), ["extra"])
    extra.grad = torch.ones_like(extra)
    optimizer.step()
    assert extra[0, 0].item() == pytest.approx(0.5)
    assert same(train(*deepcopy((optimizer, W, V))), train(optimizer, W, V))


def test_a_group_that_is_refused_is_not_kept() -> None:
    W, V = network()
    optimizer = make(W, V)
    with pytest.raises(OptimizerError, match="needs a 'role', one of hidden, output, not None"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))]})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [("again", W)], "role": "output"})
    with pytest.raises(OptimizerError, match="give its role another optimizer"):
        optimizer.add_param_group({"params": [("vector", Parameter(torch.ones(2)))], "role": "hidden"})
    assert len(optimizer.param_groups) == 2
    assert [len(child.param_groups) for child in optimizer.children.values()] == [1, 1]


def test_a_parameter_in_two_children_is_refused() -> None:
    W, _ = network()
    with pytest.raises(ValueError, match="more than one parameter group"):
        CompositeOptimizer({"hidden": SGD([W]), "output": Adam([W])})


def test_hooks_are_called() -> None:
    W, V = network()
    optimizer = make(W, V)
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before step"))
    optimizer.register_step_post_hook(lambda *_: called.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda _: called.append("before state_dict"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: called.append(f"note {state.pop('note')}"))
    optimizer.register_load_state_dict_post_hook(lambda _: called.append("after load_state_dict"))
    train(optimizer, W, V, 1)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert called == ["before step", "after step", "before state_dict", "note 1", "after load_state_dict"]
    assert state["note"] == 1  # the hook got a copy


# -- state and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["adam", "adamw", "sgd", "rmsprop", "rprop", "adagrad"])
def test_a_checkpoint_is_plain_and_resumes_bit_for_bit(output: str) -> None:
    W, V = network()
    optimizer = make(W, V, output=output)
    train(optimizer, W, V)
    checkpoint = through_a_file({"weights": [W.detach(), V.detach()], "optimizer": optimizer.state_dict()})
    uninterrupted = train(optimizer, W, V)
    W2, V2 = (Parameter(weight) for weight in checkpoint["weights"])
    resumed = make(W2, V2, output=output)
    resumed.load_state_dict(checkpoint["optimizer"])
    assert same(train(resumed, W2, V2), uninterrupted)


def test_whoever_holds_a_group_holds_it_after_loading_too() -> None:
    W, V = network()
    optimizer = make(W, V)
    train(optimizer, W, V)
    state = optimizer.state_dict()
    held_list, held_groups = optimizer.param_groups, list(optimizer.param_groups)
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.load_state_dict(through_a_file(state))
    assert optimizer.param_groups is held_list
    for group, held, child in zip(optimizer.param_groups, held_groups, optimizer.children.values(), strict=True):
        assert group is held
        assert group is child.param_groups[0]
    assert held_groups[0]["lr"] == 0.1
    held_groups[1]["lr"] = 0.0
    frozen = V.detach().clone()
    train(optimizer, W, V, 1)
    assert torch.equal(V.detach(), frozen)


@pytest.mark.parametrize("schedule", [lambda o: StepLR(o, 2, 0.1), lambda o: CosineAnnealingLR(o, 10)])
def test_a_scheduler_lives_on_after_loading(schedule: object) -> None:
    """Interrupted at step 3 of 6 and resumed: the same learning rates and weights as without."""
    W, V = network()
    optimizer = make(W, V)
    scheduler = schedule(optimizer)

    def run(optimizer: CompositeOptimizer, scheduler: StepLR, W: Parameter, V: Parameter) -> list[float]:
        rates = []
        for _ in range(3):
            train(optimizer, W, V, 1)
            scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
        return rates

    run(optimizer, scheduler, W, V)
    checkpoint = through_a_file([[W.detach(), V.detach()], optimizer.state_dict(), scheduler.state_dict()])
    expected = run(optimizer, scheduler, W, V)
    W2, V2 = (Parameter(weight) for weight in checkpoint[0])
    optimizer2 = make(W2, V2)
    scheduler2 = schedule(optimizer2)
    optimizer2.load_state_dict(checkpoint[1])
    scheduler2.load_state_dict(checkpoint[2])
    assert run(optimizer2, scheduler2, W2, V2) == expected
    assert expected[0] != expected[-1]
    assert same([W, V], [W2, V2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s["names"].update(hidden="adam"),
            "hidden: adam, output: adam and this run has hidden: muon, output: adam",
        ),
        (
            lambda s: (s["names"].pop("output"), s["children"].pop("output")),
            "holds the optimizers hidden: muon and",
        ),
        (
            lambda s: s["children"]["output"]["param_groups"][0]["params"].append(9),
            r"sizes \[2\] and this run's \[1\]",
        ),
        (lambda s: s.clear(), "holds the optimizers of another kind"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change: object, words: str) -> None:
    W, V = network()
    optimizer = make(W, V)
    train(optimizer, W, V)
    state = deepcopy(optimizer.state_dict())
    before = deepcopy(state)
    change(state)
    state.get("children", {}).get("hidden", {"param_groups": [{}]})["param_groups"][0]["lr"] = 7.0
    with pytest.raises(OptimizerError, match=words):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == before["children"]["hidden"]["param_groups"][0]["lr"]


def test_state_is_a_view_that_writes_through() -> None:
    W, V = network()
    optimizer = make(W, V)
    train(optimizer, W, V)
    assert {id(p) for p in optimizer.state} == {id(W), id(V)}
    assert len(optimizer.state) == 2
    optimizer.state[V] = {"replaced": True}
    assert optimizer.children["output"].state[V] == {"replaced": True}
    del optimizer.state[V]
    assert V not in optimizer.children["output"].state
    with pytest.raises(KeyError):
        optimizer.state[Parameter(torch.zeros(1))]


def test_lightning_moves_the_state_to_a_device() -> None:
    """The device "meta" is everywhere, and a move to it shows."""
    W, V = network()
    optimizer = make(W, V)
    train(optimizer, W, V)
    _optimizer_to_device(optimizer, torch.device("meta"))
    assert optimizer.children["hidden"].state[W]["momentum_buffer"].is_meta
    assert optimizer.children["output"].state[V]["exp_avg"].is_meta
    assert not optimizer.children["output"].state[V]["step"].is_meta


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_trains_on_by_itself(copy: object) -> None:
    W, V = network()
    optimizer = make(W, V)
    StepLR(optimizer, 2)  # wraps optimizer.step
    train(optimizer, W, V)
    copied, W2, V2 = copy((optimizer, W, V))
    assert copied.param_groups[0] is copied.children["hidden"].param_groups[0]
    assert copied.param_groups[0]["params"][0] is W2
    before = [W.detach().clone(), V.detach().clone()]
    train(copied, W2, V2)
    assert same(before, [W, V])
    assert same(train(optimizer, W, V), [W2, V2])
    assert len(copied.state) == 2


# -- under Lightning -----------------------------------------------------------------------------------------


def test_lightnings_wrapper_sees_through() -> None:
    W, V = network()
    optimizer = make(W, V)
    wrapped = LightningOptimizer(optimizer)
    assert isinstance(wrapped, CompositeOptimizer)
    train(optimizer, W, V)
    assert wrapped.param_groups is optimizer.param_groups
    assert wrapped.state[W] is optimizer.state[W]
    assert wrapped.state_dict()["names"] == {"hidden": "muon", "output": "adam"}
    wrapped.zero_grad()
    assert W.grad is None


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.V = network()
        self.rates: list[list[float]] = []

    def training_step(self, batch: object) -> Tensor:
        return loss_of(self.W, self.V)

    def on_train_batch_end(self, *_: object) -> None:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def train_dataloader(self) -> list[int]:
        return [0] * 3

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = make(self.W, self.V)
        scheduler = build_scheduler(optimizer, {"name": "exponential", "gamma": 0.5}, max_steps=6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(folder: Path, max_steps: int, checkpoint: Path | None = None) -> tuple[Module, lightning.Trainer]:
    module = Module()
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=10.0,
    )
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module, trainer


# torch 2.13 deprecates a class that Lightning 2.6 uses to look at the data loaders.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_trains_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, trainer = fit(tmp_path, 6)
    assert trainer.global_step == 6
    assert [hidden for hidden, _ in whole.rates] == pytest.approx([0.1 * 0.5**t for t in range(1, 7)])
    _, half = fit(tmp_path, 3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, trainer = fit(tmp_path, 6, tmp_path / "half.ckpt")
    assert trainer.global_step == 6
    assert same([whole.W, whole.V], [resumed.W, resumed.V])
