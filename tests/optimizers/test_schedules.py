"""Learning rates update by update, against the formulas."""

import io
import math

import pytest
import torch
from torch.nn import Parameter

from optimizers import CompositeOptimizer, OptimizerError, build_optimizer, build_scheduler


def make() -> CompositeOptimizer:
    hidden, output = Parameter(torch.zeros(2, 2)), Parameter(torch.zeros(2, 2))
    return build_optimizer(
        {"hidden": [("W", hidden)], "output": [("V", output)]},
        {"lr": 1.0, "hidden": {"name": "sgd"}, "output": {"name": "adam", "lr": 0.1}},
    )


def rates(config: dict[str, object], max_steps: int = 8, updates: int | None = None) -> list[float]:
    """The learning rate of each update, for the role whose own is 1."""
    optimizer = make()
    scheduler = build_scheduler(optimizer, config, max_steps)
    used = []
    for _ in range(updates or max_steps):
        hidden, output = (group["lr"] for group in optimizer.param_groups)
        assert output == pytest.approx(0.1 * hidden)
        used.append(hidden)
        optimizer.step()
        scheduler.step()
    return used


def test_none_is_no_scheduler() -> None:
    assert build_scheduler(make(), {"name": "none"}, 8) is None


def test_step() -> None:
    assert rates({"name": "step", "step_size": 3, "gamma": 0.5}) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_multistep() -> None:
    assert rates({"name": "multistep", "milestones": [5, 2], "gamma": 0.5}) == [
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
    ]


def test_exponential() -> None:
    assert rates({"name": "exponential", "gamma": 0.5}) == [0.5**t for t in range(8)]


def test_linear_warmup() -> None:
    assert rates({"name": "linear_warmup", "warmup_steps": 4}) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine() -> None:
    found = rates({"name": "cosine", "final_fraction": 0.2}, updates=11)
    expected = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(9)]
    assert found[:9] == pytest.approx(expected)
    assert found[4] == pytest.approx(0.6)
    assert found[8:] == pytest.approx([0.2] * 3)  # beyond max_steps it stays


def test_cosine_after_warmup() -> None:
    found = rates({"name": "cosine", "warmup_steps": 4}, max_steps=12, updates=13)
    assert found[:4] == [0.25, 0.5, 0.75, 1]
    assert found[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(9)], abs=1e-12)


def test_numbers_written_as_yaml_strings() -> None:
    assert rates({"name": "exponential", "gamma": "5e-1"}) == [0.5**t for t in range(8)]
    assert rates({"name": "linear_warmup", "warmup_steps": "4"})[0] == 0.25


@pytest.mark.parametrize(
    "config",
    [
        {"name": "step", "step_size": 2},
        {"name": "multistep", "milestones": [2, 4]},
        {"name": "exponential", "gamma": 0.9},
        {"name": "cosine"},
        {"name": "linear_warmup", "warmup_steps": 3},
    ],
)
def test_state_is_plain_and_resumes(config: dict[str, object]) -> None:
    expected = rates(config)
    first = make()
    scheduler = build_scheduler(first, config, 8)
    for _ in range(3):
        first.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save([first.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)
    second = make()
    resumed = build_scheduler(second, config, 8)
    second.load_state_dict(optimizer_state)
    resumed.load_state_dict(scheduler_state)
    found = []
    for _ in range(5):
        found.append(second.param_groups[0]["lr"])
        second.step()
        resumed.step()
    assert found == expected[3:]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "cosin"}, r"Unknown scheduler 'cosin'; known are cosine, .*, none, step\. Did you mean 'cosine'"),
        ({}, "Unknown scheduler None"),
        ({"name": ["step"]}, r"Unknown scheduler \['step'\]; known are"),
        ({"name": "none", "gamma": 0.1}, r"scheduler\.gamma needs a schedule"),
        (
            {"name": "step", "step_sise": 3},
            r"'step' has no option 'step_sise' \(from scheduler\.step_sise\); it takes step_size, .*'step_size'",
        ),
        ({"name": "step"}, "'step' needs scheduler.step_size"),
        ({"name": "step", "step_size": 0}, "step_size=0 must be a whole number from 1 on"),
        ({"name": "step", "step_size": 2.5}, r"step_size=2\.5 must be a whole"),
        ({"name": "step", "step_size": 2, "gamma": "fast"}, "gamma='fast' must be a number"),
        ({"name": "exponential", "gamma": 0}, "gamma=0 must be above 0"),
        ({"name": "exponential", "gamma": "fast"}, "gamma='fast' must be above 0"),
        ({"name": "multistep", "milestones": 5}, "milestones=5 must be a list"),
        ({"name": "multistep", "milestones": []}, "milestones"),
        ({"name": "multistep", "milestones": [1, -2]}, "milestones"),
        ({"name": "cosine", "final_fraction": 2}, "final_fraction=2 must be between 0 and 1"),
        ({"name": "cosine", "warmup_steps": 8}, "warmup_steps=8 must be below max_steps=8"),
        ({"name": "cosine", "max_steps": 9}, "no option 'max_steps'"),
        ({"name": "linear_warmup", "warmup_steps": 0}, "warmup_steps=0 must be a whole number from 1 on"),
    ],
)
def test_what_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        build_scheduler(make(), config, 8)


def halves(max_steps: int, floor: float = 0.1) -> object:
    """A schedule of a plug-in."""
    return lambda t: max(floor, 0.5**t)


def no_schedule(max_steps: int) -> float:
    """A plug-in that does not keep the contract."""
    return 0.5


def test_a_schedule_of_ones_own_is_named_by_import_path() -> None:
    assert rates({"name": f"{__name__}:halves", "floor": "2e-1"}, 4) == [1, 0.5, 0.25, 0.2]
    with pytest.raises(
        OptimizerError, match=r"has no option 'flor' \(from scheduler\.flor\); it takes floor=0\.1\. Did"
    ):
        rates({"name": f"{__name__}:halves", "flor": 0.2})
    with pytest.raises(OptimizerError, match=r"no_schedule' gave a float, not a collections\.abc\.Callable\."):
        rates({"name": f"{__name__}:no_schedule"})
