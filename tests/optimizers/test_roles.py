"""Every trainable parameter has exactly one role, each role its optimizer, and the split can be read."""

import pytest
import torch
from torch.nn import Parameter

import optimizers
from optimizers import OptimizerError, build_optimizer, check_cover, describe


def matrix(*shape: int, trainable: bool = True) -> Parameter:
    return Parameter(torch.zeros(*shape), requires_grad=trainable)


def test_each_role_gets_its_optimizer_and_the_shared_values() -> None:
    W, V = matrix(6, 9), matrix(9, 3)
    composite = build_optimizer(
        {"output": [("V", V)], "hidden": [("W", W)], "embedding": []},
        {
            "lr": 0.1,
            "weight_decay": 0.2,
            "hidden": {"name": "muon", "lr": 0.3, "momentum": 0.5},
            "output": {"name": "adam"},
            "embedding": {"name": "adam"},
        },
    )
    assert list(composite.children) == ["hidden", "output"]
    hidden, output = composite.param_groups
    assert isinstance(composite.children["hidden"], optimizers.Muon)
    assert (hidden["role"], hidden["lr"], hidden["weight_decay"], hidden["momentum"]) == (
        "hidden",
        0.3,
        0.2,
        0.5,
    )
    assert (output["role"], output["lr"], output["weight_decay"]) == ("output", 0.1, 0.2)
    assert hidden["params"][0] is W
    assert output["params"][0] is V


def test_frozen_parameters_are_left_out() -> None:
    composite = build_optimizer(
        {
            "hidden": [("W", matrix(2, 2)), ("frozen", matrix(2, 2, trainable=False))],
            "output": [("V", matrix(2, 2, trainable=False))],
        },
        {"hidden": {"name": "sgd"}, "output": {"name": "sgd"}},
    )
    assert list(composite.children) == ["hidden"]
    assert len(composite.param_groups[0]["params"]) == 1


def test_the_split_is_described_one_line_a_role() -> None:
    composite = build_optimizer(
        {
            "hidden": [("weight", matrix(6, 9)), ("extra", matrix(9, 9))],
            "output": [("readout", matrix(9, 3))],
        },
        {
            "lr": 0.1,
            "weight_decay": 2e-4,
            "hidden": {"name": "muon", "lr": 0.02},
            "output": {"name": "rprop"},
        },
    )
    hidden, output = describe(composite).split("\n")
    assert " ".join(hidden.split()) == (
        "hidden muon lr 0.02 weight decay 0.0002 weight (6×9), extra (9×9) [shared decay]"
    )
    assert output.startswith("output")
    assert "rprop  lr 0.1  weight decay none  readout (9×3)" in output
    assert "[takes no weight decay, the shared 0.0002 is not applied]" in output


def test_without_shared_weight_decay_there_is_nothing_to_report() -> None:
    composite = build_optimizer({"hidden": [("W", matrix(2, 2))]}, {"weight_decay": 0.0, "hidden": {"name": "rprop"}})
    assert "not applied" not in describe(composite)


@pytest.mark.parametrize("section", [None, {}, {"lr": 0.1}, {"name": None}, "adam"])
def test_a_role_without_a_name(section: object) -> None:
    with pytest.raises(OptimizerError, match=r"optimizer\.hidden needs a name, .* known are adadelta, "):
        build_optimizer({"hidden": [("W", matrix(2, 2))]}, {"hidden": section})


def test_a_parameter_in_two_roles() -> None:
    W = matrix(2, 2)
    with pytest.raises(OptimizerError, match="output: tied is trained already as hidden: W; every trainable"):
        build_optimizer(
            {"hidden": [("W", W)], "output": [("tied", W)]},
            {"hidden": {"name": "sgd"}, "output": {"name": "sgd"}},
        )


def test_a_parameter_in_no_role() -> None:
    W, V, frozen = matrix(2, 2), matrix(2, 2), matrix(2, 2, trainable=False)
    everything = [("W", W), ("V", V), ("frozen", frozen)]
    check_cover(everything, {"hidden": [("W", W)], "output": [("V", V)]})
    with pytest.raises(
        OptimizerError, match="No role trains V; every trainable parameter belongs to one of hidden, output"
    ):
        check_cover(everything, {"hidden": [("W", W)]})
    with pytest.raises(OptimizerError, match="trained already"):
        check_cover(everything, {"hidden": [("W", W)], "output": [("V", V), ("W", W)]})


def test_unknown_roles_and_keys() -> None:
    with pytest.raises(OptimizerError, match=r"Unknown role 'outptu'; known are .* Did you mean 'output'"):
        build_optimizer({"outptu": []}, {})
    with pytest.raises(OptimizerError, match=r"Unknown optimizer key 'hiden'; known are .* Did you mean 'hidden'"):
        build_optimizer({"hidden": []}, {"hiden": {"name": "sgd"}})


def test_nothing_to_train() -> None:
    with pytest.raises(OptimizerError, match="nothing to train"):
        build_optimizer({"hidden": []}, {"hidden": {"name": "sgd"}})


def test_a_mistake_in_a_role_without_parameters_is_a_mistake_still() -> None:
    with pytest.raises(OptimizerError, match=r"'adam' has no option 'lrr' \(from optimizer\.embedding\.lrr\)"):
        build_optimizer(
            {"hidden": [("W", matrix(2, 2))]},
            {"hidden": {"name": "sgd"}, "embedding": {"name": "adam", "lrr": 1}},
        )
