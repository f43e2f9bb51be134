"""A Trainer of your own: Lightning's EarlyStopping, ModelCheckpoint and logger work with the columns of a run.

python examples/own_trainer.py
"""

import lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from li2_lightning import Li2Module

# The keys that differ from their defaults, as for train.run.
CONFIG = {
    "task": {"order": 23},
    "network": {"width": 256},
    "data": {"train_fraction": 0.6},
    "optimizer": {"lr": 0.01, "weight_decay": 1e-3},
}
module = Li2Module.from_config(CONFIG)
best = ModelCheckpoint("outputs/own_trainer/checkpoints", monitor="test/accuracy", mode="max")
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=40,
    limit_train_batches=10,  # an epoch of Li2Module has no end of its own: here it is 10 updates
    callbacks=[best, EarlyStopping("test/accuracy", mode="max", patience=20, stopping_threshold=0.99)],
    logger=CSVLogger("outputs", "own_trainer"),  # gets every row
    log_every_n_steps=10,
    enable_progress_bar=False,
)
trainer.fit(module, module.data)

trained = Li2Module.load_from_checkpoint(best.best_model_path)
(measured,) = trainer.test(trained, trained.data)
test = trained.data.test
predicted = trained(test.tokens).argmax(-1)
print(f"row {trainer.global_step}: {(predicted == test.labels).sum()} of {len(test)} test rows are right")
