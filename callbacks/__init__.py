"""Plug-in callbacks, one a file: columns of the rows, checkpoints, pictures, and the terminal.

A callback of your own is a ``lightning.Callback`` registered by name. Put its file into this folder, declare an entry
point in the group ``li2_lightning.callbacks``, or give its import path under a label of your choice
(``callbacks.mine.name=my_module:DeadNodes``)::

    from callbacks.diagnostic import Diagnostic
    from callbacks.registry import CALLBACKS

    @CALLBACKS.register("dead_nodes")
    class DeadNodes(Diagnostic):
        def measure(self, module, state):
            return {"features/dead": (state.features == 0).all(dim=0).float().mean()}

Switch it on with ``callbacks.dead_nodes.enabled=true``, or by setting an option of it
(``callbacks.dead_nodes.every_n_steps=10``).
"""

from __future__ import annotations

import pkgutil

from callbacks.registry import CALLBACKS, build_callbacks, with_defaults

for _module in pkgutil.iter_modules(__path__):
    CALLBACKS.import_plugin(f"{__name__}.{_module.name}")

__all__ = ["CALLBACKS", "build_callbacks", "with_defaults"]
