"""A measurement of your own: one column for every row, in a Trainer of your own or in a run.

python examples/own_callback.py
li2 train callbacks.top.name=own_callback:TopNodes          # in the folder of this file
"""

import lightning
from torch import Tensor

from callbacks.diagnostic import Diagnostic
from callbacks.gradient import Gradient
from callbacks.stages import Stages
from li2_lightning.measurement.rows import Row
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.theory.stages import Transition


class TopNodes(Diagnostic):
    """Column ``weights/top_tenth``: the share of ‖W‖² that the largest tenth of the nodes have."""

    # It reads the state alone, whose tensors have a leading axis in a stack of runs.
    takes_stacks = True

    def measure(self, module: Li2Module, state: StepState) -> dict[str, Tensor | float]:
        sizes = state.network.W.detach().abs().square().sum(dim=-2)
        largest = sizes.topk(max(1, sizes.shape[-1] // 10), dim=-1).values
        return {"weights/top_tenth": largest.sum(dim=-1) / sizes.sum(dim=-1)}


class Diary(lightning.Callback):
    """Keeps the rows, and tells of each stage."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_row(self, trainer: lightning.Trainer, module: Li2Module, row: Row) -> None:
        self.rows.append(row)

    def on_stage_transition(self, trainer: lightning.Trainer, module: Li2Module, transition: Transition) -> None:
        share = self.rows[-1]["weights/top_tenth"]
        print(f"row {transition.step}: stage {transition.target}, the largest tenth of the nodes has {share:.2f} of W")


CONFIG = {
    "task": {"order": 23},
    "network": {"width": 256},
    "data": {"train_fraction": 0.6},
    "optimizer": {"lr": 0.01, "weight_decay": 1e-3},
}
module = Li2Module.from_config(CONFIG)
diary = Diary()
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=100,
    # In this order: the stages read the columns of Gradient, and the diary reads the column of TopNodes.
    callbacks=[TopNodes(), diary, Gradient(), Stages()],
    default_root_dir="outputs/own_callback",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module, module.data)
print(*(f"row {row['step']:.0f}: {row['weights/top_tenth']:.3f}" for row in diary.rows[::25]), sep="\n")
