"""The code that both halves share on a block of a cluster: loads, products over chunks, and the launch."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ....arrays import DType, PyTree
from ...pallas import Interpret, Reference, accumulator, layout, load, mosaic_gpu, pallas, transposed
from ..pointwise.step import Step
from .exchange import ClusterExchange
from .tiling import ROWS, Tiling, coordinates_of


def own(array: Reference, group: Array) -> Array:
    """The index of a group in an array that all groups may share."""
    return jnp.int32(0) if array.shape[0] == 1 else group


def chosen(condition: Array, one: list[Array], other: list[Array]) -> list[Array]:
    return [jnp.where(condition, *pair) for pair in zip(one, other, strict=True)]


def column(reference: Reference) -> Float[Array, "rows width"]:
    """A vector [width] in global memory, the same for all rows."""
    vector = load(reference, layout().reduce(0), optimized=False)
    return jax.lax.broadcast_in_dim(vector, (ROWS, vector.shape[0]), (1,))


def of_rows(reference: Reference, width: int) -> Int[Array, "rows width"]:
    """A vector [rows] in global memory, the same for all units."""
    return jax.lax.broadcast_in_dim(load(reference, layout().reduce(1), optimized=False), (ROWS, width), (0,))


class Ring(NamedTuple):
    """References to the operand's slots in shared memory, and the barriers that signal when a slot is loaded."""

    operand: Reference  # [slots, ROWS, chunk]
    ready: Reference  # [slots]
    chunks: int

    def product(
        self, resident_part: Reference, fetch: Callable[[int | Array, int | Array], None], columns: int, dtype: DType
    ) -> Float[Array, "rows n"]:
        """operand @ resident_part^T; `fetch(k, slot)` loads a chunk; `resident_part` is [chunks, columns, chunk]."""
        return pallas.run_scoped(
            lambda sums: self._accumulate(sums, resident_part, fetch), accumulator((ROWS, columns), dtype)
        )

    def _accumulate(
        self, sums: Any, resident_part: Reference, fetch: Callable[[int | Array, int | Array], None]
    ) -> Array:
        slots = self.operand.shape[0]

        def one(k: Any) -> None:
            slot = remainder(k, slots)
            mosaic_gpu.barrier_wait(self.ready.at[slot])
            mosaic_gpu.wgmma(sums, self.operand.at[slot], transposed(resident_part.at[k]))
            if slots < self.chunks:
                mosaic_gpu.wgmma_wait(1)  # the product before this one has read its slot
                following = k - 1 + slots
                when((k > 0) & (following < self.chunks), lambda: fetch(following, remainder(following, slots)))

        for k in range(min(slots, self.chunks)):
            fetch(k, k)
        if self.chunks <= 2:
            for k in range(self.chunks):
                one(k)
        else:
            jax.lax.fori_loop(jnp.int32(0), jnp.int32(self.chunks), lambda k, _: one(k), None)
        return sums[...]


def when(condition: bool | Array, act: Callable[[], None]) -> None:
    """`act` if the condition holds; it may be known at trace time."""
    if isinstance(condition, bool):
        if condition:
            act()
    else:
        pallas.when(condition)(act)


def remainder(k: int | Array, count: int) -> int | Array:
    """`k` modulo `count`; `k` may be known at trace time."""
    return k % count if isinstance(k, int) else jax.lax.rem(k, jnp.int32(count))


def quotient(k: int | Array, count: int) -> int | Array:
    """`k` divided by `count`; `k` may be known at trace time."""
    return k // count if isinstance(k, int) else jax.lax.div(k, jnp.int32(count))


class WarpGroup(abc.ABC):
    """The code of one block; each half subclasses it."""

    def __init__(
        self,
        tiling: Tiling,
        step: Step,
        exchange: ClusterExchange,
        read: Any,
        write: Any,
        scratch: Any,
        barrier: Reference,
    ):
        self.tiling, self.step, self.exchange = tiling, step, exchange
        self.read, self.write, self.scratch = read, write, scratch
        self.coordinates, self.dtype = coordinates_of(tiling), step.graph.dtype
        self.barrier = barrier.at[0]

    @abc.abstractmethod
    def run(self) -> None:
        """All steps."""

    def keep(self) -> None:
        """Start the loads of this block's part of R."""
        group = own(self.read.R, self.coordinates.group)
        for k in range(self.read.R.shape[3]):
            source = self.read.R.at[group, self.coordinates.head, self.coordinates.block, k]
            mosaic_gpu.copy_gmem_to_smem(source, self.scratch.resident_part.at[k], self.scratch.resident.at[0])

    def marks(self, t: Array) -> Int[Array, "rows width"] | None:
        """The marks of step t, the same for all units; None where there are none."""
        if self.read.marks is None:
            return None
        return of_rows(self.read.marks.at[self.coordinates.group, t, self.coordinates.tile], self.tiling.width)

    def vectors(self, array: Reference) -> list[Array]:
        """The rows of an array [_ K H]; no rows if the array is None."""
        if array is None:
            return []
        group = own(array, self.coordinates.group)
        return [column(array.at[group, row, self.coordinates.mine]) for row in range(array.shape[1])]


def launch(
    warp_group: Callable[..., WarpGroup],
    tiling: Tiling,
    step: Step,
    name: str,
    exchange: ClusterExchange,
    interpret: Interpret,
    operands: PyTree,
    results: PyTree,
    scratch: PyTree,
) -> PyTree:
    """Run the kernel of a half; `results` and `scratch` contain types."""
    emulated: dict[str, Any] = {"interpret": interpret} if interpret else {}
    form = jax.tree.structure((operands, results, scratch))

    def body(*references: Any) -> None:
        *others, barrier = references
        read, write, own = jax.tree.unflatten(form, others)
        warp_group(tiling, step, exchange, read, write, own, barrier).run()

    call = mosaic_gpu.kernel(
        body,
        out_type=jax.tree.leaves(results),
        grid=(tiling.works,),
        grid_names=("work",),
        cluster=(tiling.blocks,),
        cluster_names=("block",),
        scratch_types=[
            *jax.tree.leaves(scratch),
            mosaic_gpu.ClusterBarrier(collective_axes=("block",), num_barriers=1),
        ],
        compiler_params=mosaic_gpu.CompilerParams(lowering_semantics=mosaic_gpu.LoweringSemantics.Warpgroup),
        kernel_name=name,
        **emulated,
    )
    return jax.tree.unflatten(jax.tree.structure(results), call(*jax.tree.leaves(operands)))
