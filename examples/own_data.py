"""Rows of your own: any table of an operation, and any choice of its training rows.

python examples/own_data.py
"""

import lightning
import numpy as np
import torch

from li2_lightning import Li2Module, TableDataModule
from li2_lightning.tasks.splits import Split
from li2_lightning.tasks.tasks import Task

M = 16
a, b = np.divmod(np.arange(M * M), M)
task = Task("max(a, b)", operands=np.stack([a, b], axis=1), labels=np.maximum(a, b), num_tokens=M, num_classes=M)
tested = (a + b) % 4 == 0
data = TableDataModule(task, Split(train=np.flatnonzero(~tested), test=np.flatnonzero(tested)))

module = Li2Module.from_config({"network": {"width": 128}, "optimizer": {"lr": 0.02}}, data)
trainer = lightning.Trainer(
    accelerator="cpu", max_steps=100, logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(module, data)
(measured,) = trainer.test(module, data)

learned = module(torch.from_numpy(task.operands)).argmax(-1).view(M, M)
print("the learned table, whose largest row is", learned[-1].tolist())
