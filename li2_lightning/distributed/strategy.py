"""Lightning's strategy for several ranks: DDP without its wrapper."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy

from li2_lightning.distributed.collectives import copy_from_first


class SummingStrategy(DDPStrategy):
    """One process for each device; every rank has the whole network, and `Li2Module` sums the gradients.

    torch's DistributedDataParallel averages over ranks, as if all had equally many rows. It needs a gradient for every
    parameter on every rank, and has no complex weights on CPUs. This strategy sums the contributions of all rows to one
    loss in a single reduction a step, so uneven and empty shares are exact.
    """

    def _configure_launcher(self) -> None:
        """Set no launcher: `RankGroup` has started every rank before training begins."""

    def configure_ddp(self) -> None:
        assert self.model is not None
        copy_from_first([*self.model.parameters(), *self.model.buffers()])
