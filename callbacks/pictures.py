"""Pictures of the learned features during training."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np

from callbacks.diagnostic import Paced
from callbacks.registry import CALLBACKS
from li2_lightning.files import replacing, row_files
from li2_lightning.measurement.step_state import StepState
from li2_lightning.module import Li2Module
from li2_lightning.runs.loggers import run_loggers


@CALLBACKS.register("pictures")
class Pictures(Paced):
    """Draws ``features/row-NNNNNN.png`` and keeps the newest weights in ``features/last.npz``, which report.png shows.

    A picture is drawn at row 0, at the cadence, in the first row after a stage transition was declared, and at the last
    row; W&B gets each one as the image ``features``. A task without a group, and a network without weights from the
    one-hots to nodes, has no pictures.

    Args:
        every_n_steps: cadence.
    """

    part = "pictures"
    after_transitions = True

    def __init__(self, every_n_steps: int | str = 200) -> None:
        super().__init__(every_n_steps)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # W&B may lack the pictures of an earlier part of the run, which was killed or had another logger mode.
        for logger in run_loggers(trainer):
            for step, picture in row_files(_folder(trainer), ".png").items():
                if step <= trainer.global_step:
                    logger.draw(step, "features", picture)

    def act(self, trainer: lightning.Trainer, module: Li2Module, state: StepState) -> None:
        group, weights = module.data.task.group, module.network.input_weights()
        if (
            not trainer.is_global_zero
            or group is None
            or group.order == 1
            or weights is None
            or not weights.isfinite().all()
        ):
            return
        # Imported with the first picture: the import takes longer than many small runs.
        from li2_lightning.analysis.figures.features import draw_features

        folder = _folder(trainer)
        folder.mkdir(exist_ok=True)
        W = weights.cpu().numpy()
        with replacing(folder / "last.npz") as temporary, temporary.open("wb") as file:
            # Weights hardly compress, and compressing takes longer than drawing.
            np.savez(file, W=W, table=group.table, step=state.step)
        with _garbage_collected_after():
            picture = draw_features(folder / f"row-{state.step:06d}.png", W, group, state.step)
        for logger in run_loggers(trainer):
            logger.draw(state.step, "features", picture)


def _folder(trainer: lightning.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "features"


@contextlib.contextmanager
def _garbage_collected_after() -> Iterator[None]:
    """Free what the block leaves behind: a figure's objects refer to each other in cycles and hold its pixels.

    A collection of all objects takes longer than a drawing. Python moves an object on from the youngest generation only
    in a collection, so with none during the block the youngest generation holds all that the block made.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if collecting:
            gc.enable()
