"""The optimizer keeps the contract: the checks of ``li2 check``, one test each."""

import pytest

from optimizers.check import CHECKS, Candidate


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check):
    CHECKS[check](Candidate("sign_momentum:SignMomentum"))
