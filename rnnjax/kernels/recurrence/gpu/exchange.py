"""How the blocks of threads that share a head show each other what they have stored in global memory.

Each step has a place of its own there, so nothing is overwritten that somebody may still read. `publish` follows the
store of a block's own part, `collect` precedes the loads of everyone's; between the two is time for other work.
"""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import assembly, mosaic_gpu, pallas


class Axes(NamedTuple):
    """The launch: `work` numbers what is independent, `block` those blocks that share it."""

    grid: tuple[int, ...]
    grid_names: tuple[str, ...]
    cluster: tuple[int, ...] = ()
    cluster_names: tuple[str, ...] = ()


class AbstractExchange(abc.ABC):
    """A barrier between the blocks that share a piece of work."""

    @abc.abstractmethod
    def axes(self, works: int, blocks: int) -> Axes:
        """How the blocks are launched."""

    @abc.abstractmethod
    def scratch(self) -> list[Any]:
        """What a block must be given for it."""

    @abc.abstractmethod
    def open(self, works: int, work: Array, scratch: list[Any]) -> Any:
        """The barrier of this piece of work."""

    @abc.abstractmethod
    def publish(self, barrier: Any) -> None:
        """Wait until all stores of this block are there, and say so."""

    @abc.abstractmethod
    def collect(self, barrier: Any, blocks: int, turn: Array) -> None:
        """Wait until all have published as often as `turn` + 1 times."""


class ClusterExchange(AbstractExchange):
    """Blocks of one cluster, which the device runs at the same time: they cannot wait for one that has not begun.

    `fences` are not for the emulator, which has no asynchronous copies to be ordered.
    """

    def __init__(self, fences: bool):
        self.fences = fences

    def axes(self, works: int, blocks: int) -> Axes:
        return Axes((works,), ("work",), (blocks,), ("block",))

    def scratch(self) -> list[Any]:
        return [mosaic_gpu.ClusterBarrier(collective_axes=("block",), num_barriers=1)]

    def open(self, works: int, work: Array, scratch: list[Any]) -> Any:
        del works, work
        return scratch[0].at[0]

    def publish(self, barrier: Any) -> None:
        mosaic_gpu.wait_smem_to_gmem(0)
        if self.fences:  # the arrival by itself would be a release within this block only
            assembly("fence.acq_rel.cluster;")
        mosaic_gpu.barrier_arrive(barrier)

    def collect(self, barrier: Any, blocks: int, turn: Array) -> None:
        del blocks, turn
        mosaic_gpu.barrier_wait(barrier)
        if self.fences:  # the wait is an acquire within this block only, and what follows are asynchronous copies
            assembly("fence.acq_rel.cluster;")
            assembly("fence.proxy.async.global;")


class GridExchange(AbstractExchange):
    """Any number of blocks, by a counter in global memory that only ever grows.

    All blocks of all work must run at the same time: no more of them than multiprocessors, and nothing beside them on
    the device that could keep one from beginning. No emulator has such counters.
    """

    def axes(self, works: int, blocks: int) -> Axes:
        return Axes((works, blocks), ("work", "block"))

    def scratch(self) -> list[Any]:
        return []

    def open(self, works: int, work: Array, scratch: list[Any]) -> Any:
        del scratch
        return pallas.get_global(mosaic_gpu.SemaphoreType.REGULAR((works,))).at[work]

    def publish(self, barrier: Any) -> None:
        mosaic_gpu.wait_smem_to_gmem(0)
        mosaic_gpu.semaphore_signal(barrier, 1, memory_scope="gpu")

    def collect(self, barrier: Any, blocks: int, turn: Array) -> None:
        mosaic_gpu.semaphore_wait(barrier, jnp.int32(blocks) * (turn + 1), decrement=False, memory_scope="gpu")
        assembly("fence.proxy.async.global;")
