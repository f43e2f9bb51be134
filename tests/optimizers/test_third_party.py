"""The optional package of many optimizers: its names, and that its habits hurt nobody."""

import importlib.util
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

from optimizers import OptimizerError, find, names, registry
from optimizers.check import CHECKS, Candidate
from optimizers.filters.gradient_filter import GradientFilter
from optimizers.registry import build

PACKAGE = """
import torch
from torch.optim import SGD, Optimizer

class Base(Optimizer):
    def __init__(self, *args): ...

class Scribbler(SGD):
    '''Writes into the gradients that it is given.'''
    def __init__(self, params, lr: float = 1e-3, **kwargs):
        super().__init__(params, lr)
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]['params']:
            p.sub_(p.grad.mul_(self.param_groups[0]['lr']))

class Wrapper(SGD):
    def __init__(self, optimizer, **kwargs): ...

class Adam(SGD): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package like it, under a name that nothing else has."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "EXTRA", "a_package_of_many")
    (tmp_path / "a_package_of_many.py").write_text(PACKAGE)
    yield tmp_path / "a_package_of_many.py"
    sys.modules.pop("a_package_of_many", None)


@pytest.mark.usefixtures("package")
def test_its_classes_are_found_by_lower_case_name_after_all_others() -> None:
    assert "scribbler" in names()
    assert find("adam") is torch.optim.Adam
    optimizer = build("scribbler", [Parameter(torch.zeros(2, 3))], {"lr": "5e-1"}, role="hidden")
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.usefixtures("package")
def test_an_unknown_name_lists_what_is_there_and_no_wrappers() -> None:
    with pytest.raises(OptimizerError, match=r"known are .*scribbler.*Did you mean 'scribbler'") as caught:
        find("scribler")
    assert "wrapper" not in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_without_it_an_unknown_name_says_how_to_get_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "EXTRA", "a_package_that_is_not_there")
    with pytest.raises(OptimizerError, match=r"pip install 'li2-lightning\[optimizers\]' adds lion, shampoo, soap"):
        find("lionn")


def test_a_package_that_does_not_import_is_a_sentence_and_disturbs_no_other_name(package: Path) -> None:
    package.write_text("1 / 0\n")
    assert find("adam") is torch.optim.Adam
    with pytest.raises(OptimizerError, match="a_package_of_many could not be imported: ZeroDivisionError: division"):
        find("scribbler")


@pytest.mark.usefixtures("package")
def test_what_writes_into_gradients_writes_into_copies() -> None:
    CHECKS["gradients"](Candidate("scribbler"))
    # The check can fail: without the copies it does.
    with pytest.raises(AssertionError, match=r"changed p\.grad"):
        CHECKS["gradients"](Candidate("a_package_of_many:Scribbler"))


def test_a_filter_as_it_is_changes_nothing_else() -> None:
    plain, filtered = (Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizers = SGD([plain], 0.1, momentum=0.9), GradientFilter(SGD([filtered], 0.1, momentum=0.9))
    for _ in range(3):
        for weight, optimizer in zip((plain, filtered), optimizers, strict=True):
            weight.grad = torch.arange(6.0).view(2, 3)
            optimizer.step()
    assert torch.equal(plain, filtered)
    assert optimizers[1].state_dict().keys() == optimizers[0].state_dict().keys()
    assert optimizers[1].state[filtered]["momentum_buffer"] is not None


def test_a_filter_is_copied_whole_under_a_scheduler() -> None:
    weight = Parameter(torch.ones(2, 3))
    optimizer = GradientFilter(SGD([weight], 0.1, momentum=0.9))
    torch.optim.lr_scheduler.StepLR(optimizer, 2)  # wraps optimizer.step
    copied, twin = deepcopy((optimizer, weight))
    twin.grad = torch.ones(2, 3)
    copied.step()
    assert torch.equal(weight, torch.ones(2, 3))
    assert twin[0, 0].item() == pytest.approx(0.9)
    assert copied.param_groups is copied.inner.param_groups


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pytorch_optimizer") is None, reason="the optional extra is not installed")
@pytest.mark.parametrize("name", ["lion", "shampoo", "soap", "adopt"])
def test_contract_of_those_in_the_docs(name: str) -> None:
    remarks = {check: CHECKS[check](Candidate(name)) for check in CHECKS}
    refused = {check for check, remark in remarks.items() if remark.startswith("refuses")}
    assert refused == ({"copies", "complex_weights"} if name in ("shampoo", "soap") else {"copies"})
