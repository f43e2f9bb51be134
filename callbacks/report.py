"""The overview picture of a run, drawn when the run ends."""

from __future__ import annotations

from pathlib import Path

import lightning

from callbacks.registry import CALLBACKS
from li2_lightning.errors import InputError
from li2_lightning.module import Li2Module
from li2_lightning.runs.loggers import run_loggers


@CALLBACKS.register("report")
class Report(lightning.Callback):
    """Draws ``report.png`` from the finished metrics.csv and stages.json, and sends it to W&B as an image."""

    part = "report"

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # At the end of the training it would be too late for this.
        if not (Path(trainer.default_root_dir) / "config.yaml").exists():
            raise InputError(
                "The callback report draws the files of a run directory, which train.run makes; leave it out of a "
                "Trainer of your own, or set callbacks.report.enabled=false."
            )

    def on_last_row(self, trainer: lightning.Trainer, module: Li2Module) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        # Imported here, since the import of the drawing library takes longer than many small runs.
        from li2_lightning.analysis.overview import draw_overview

        picture = draw_overview(Path(trainer.default_root_dir))
        for logger in run_loggers(trainer):
            logger.draw(trainer.global_step, "report", picture)
