"""Lightning's strategy for several ranks: DDP without its wrapper."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy

from li2_lightning.distributed.collectives import copy_from_first


class SummingStrategy(DDPStrategy):
    """One process a device; every rank has the whole network, and `Li2Module` sums the gradients.

    torch's DistributedDataParallel averages over ranks, as if each had equally many rows, needs a gradient for every
    parameter on every rank, and has no complex weights on CPUs. Ours sums what each rank's rows add to one loss, so
    uneven and empty shares are exact, in a single reduction a step. `RankGroup` starts processes.
    """

    def _configure_launcher(self) -> None:
        """None: every rank is running when training begins."""

    def configure_ddp(self) -> None:
        assert self.model is not None
        copy_from_first([*self.model.parameters(), *self.model.buffers()])
