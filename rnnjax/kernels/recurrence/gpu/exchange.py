"""The exchange between the blocks of a cluster, through global memory.

Each step has a place of its own there, so nothing is overwritten that another block may still read. `publish` follows
the store of a block's own part, and `collect` precedes the loads of all parts; other work can be done in between.
"""

from ...pallas import Reference, assembly, mosaic_gpu


class ClusterExchange:
    """The barrier of a cluster. The device runs its blocks at the same time, so it cannot deadlock.

    The emulator needs no `fences`: it has no asynchronous copies to order.
    """

    def __init__(self, fences: bool):
        self.fences = fences

    def publish(self, barrier: Reference) -> None:
        """Wait until all stores of this block are done, and arrive at the barrier."""
        mosaic_gpu.wait_smem_to_gmem(0)
        if self.fences:  # the arrival by itself would be a release within this block only
            assembly("fence.acq_rel.cluster;")
        mosaic_gpu.barrier_arrive(barrier)

    def collect(self, barrier: Reference) -> None:
        """Wait until all blocks have published as often as this one."""
        mosaic_gpu.barrier_wait(barrier)
        if self.fences:  # the wait is an acquire within this block only, and what follows are asynchronous copies
            assembly("fence.acq_rel.cluster;")
            assembly("fence.proxy.async.global;")
