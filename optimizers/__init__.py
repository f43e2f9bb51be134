"""Optimizers as plug-ins: one for each role of a network's parameters, chosen by name.

To write your own, put a file into this folder and it is found by its name:

    import torch
    from optimizers import register

    @register("sign_descent")
    class SignDescent(torch.optim.Optimizer):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad.sign(), alpha=group["lr"])

Then ``optimizer.hidden.name=sign_descent optimizer.hidden.lr=0.01``. Outside this folder the same class is
``optimizer.hidden.name=my_module:SignDescent``, or an entry point of a package, in the group
``li2_lightning.optimizers``. Any callable ``(params, **hyperparameters) -> torch.optim.Optimizer`` will do,
also a function that returns an optimizer of another package. It must leave ``p.grad`` as it is, keep its state in
``self.state``, and train every parameter it is given; ``li2 check my_module:SignDescent`` tells whether it does. This
package needs torch, and the modules ``plugins`` and ``errors`` of ``li2_lightning``, which need the standard library
alone.
"""

import pkgutil

from li2_lightning.errors import InputError as OptimizerError
from optimizers.composite import CompositeOptimizer
from optimizers.joint import JointStep
from optimizers.muon.muon import Muon
from optimizers.registry import OPTIMIZERS, find, names, register
from optimizers.rehearsal import rehearse
from optimizers.roles import ROLES, build_optimizer, check_cover, describe, spell_out
from optimizers.schedules import SCHEDULES, build_scheduler, knows_length

__all__ = [
    "OPTIMIZERS",
    "ROLES",
    "SCHEDULES",
    "CompositeOptimizer",
    "JointStep",
    "Muon",
    "OptimizerError",
    "build_optimizer",
    "build_scheduler",
    "check_cover",
    "describe",
    "find",
    "knows_length",
    "names",
    "register",
    "rehearse",
    "spell_out",
]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    # This module is a script for python -m, which warns when the module has been imported before.
    if _module.name != "optimizers.muon.polar_table":
        OPTIMIZERS.import_plugin(_module.name)
