"""What every optimizer must do, whoever wrote it: one suite over all that is registered and torch's usual."""

import pytest
import torch

from optimizers import OPTIMIZERS
from optimizers.check import CHECKS, Broken, Candidate
from optimizers.problems import least_squares, train

NAMES = sorted({"adam", "adamw", "sgd", *OPTIMIZERS._entries})
# Weights at (0, 0), (1, 2), (2, 3) and the norm, from `golden`; a plug-in in the folder adds its line.
GOLDEN = {
    "adam": [-0.5327724504033717, -1.0296189728264966, -0.062199126589002236, 4.085884356561768],
    "adamw": [-0.6040012399134473, -0.9976445049867962, -0.05826447498623199, 4.089045031259419],
    "muon": [-0.7977361627712137, -0.6352349927837392, -0.21078829455558168, 3.6033175699687354],
    "normuon": [-0.794983001417731, -0.589583098530357, -0.20059255010673596, 3.590987797644706],
    "orthogonal_gradient": [-0.7683059364092879, -1.007622593509226, -0.16143078333582433, 4.16055245982565],
    "prodigy": [-0.8414681787835258, -0.5521234641366572, -0.20606308487519348, 3.894298882954038],
    "schedule_free": [-0.667892224430399, -0.8810731452290959, -0.1089657961680949, 3.843413043892121],
    "scion": [-0.7976835073581441, -0.6602209947384496, -0.2148574997804634, 3.633760553594334],
    "slow_gradients": [-0.38271676299177154, -1.0467788477512114, -0.042802448302228555, 4.325283373905594],
    "sgd": [-0.7427808719760528, -0.8862612951387395, -0.16374846774809007, 4.013019198081153],
}


# Starting processes takes seconds.
SLOW = {"processes"}
# By design: nothing drives the length of a weight, which these problems ask for.
NOT_HELD = {("orthogonal_gradient", check) for check in ("convex_quadratic", "matrix_problem", "vectors")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CHECKS])
def test_contract(check: str, name: str) -> None:
    if (name, check) in NOT_HELD:
        with pytest.raises(Broken):
            CHECKS[check](Candidate(name))
        return
    remark = CHECKS[check](Candidate(name))
    if check == "vectors" and name in ("muon", "normuon"):
        assert remark.startswith(f"refuses vectors: optimizer.hidden: {name} cannot be built")
    elif check not in ("convex_quadratic", "matrix_problem"):
        # Ours refuse nothing that a role may hold, and stay where the gradient is zero.
        assert remark == ""


def golden(name: str) -> list[float]:
    W, loss = least_squares()
    with torch.no_grad():
        W.copy_(torch.linspace(-1, 1, 54, dtype=torch.float64).sin().view(6, 9))
    W = train(Candidate(name).build(W, lr=0.05, weight_decay=0.1), W, loss, 10)
    return [W[0, 0].item(), W[1, 2].item(), W[2, 3].item(), W.norm().item()]


@pytest.mark.parametrize("name", NAMES)
def test_golden_trajectory(name: str) -> None:
    found = golden(name)
    assert found == golden(name), f"{name} does not repeat itself with the same seed"
    assert name in GOLDEN, f"record the trajectory of {name}: {found}"
    assert found == pytest.approx(GOLDEN[name], rel=1e-5)
