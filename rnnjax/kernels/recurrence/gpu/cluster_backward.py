"""The backward half on several blocks that share a head (Mosaic GPU, Hopper).

At each step a block stores the cotangents of its columns, which are an output, and reads back those of all blocks for
its part of dh, the product with R transposed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...pallas import layout, load, mosaic_gpu, pallas
from ..pointwise.step import Step
from .cut import ROWS, Cut, Ring, Worker, chosen, launch, of_rows, quotient, remainder
from .exchange import ClusterExchange


class Operands(NamedTuple):
    """What the backward half reads: arrays outside of the kernel, references inside."""

    columns: Any  # [S B T C H]
    befores: Any  # [S B T F H]
    dstates: tuple[Any, ...]  # [S B T H] each, None where it is zero
    dlast: Any  # [S B F H]
    R: Any  # [_ N blocks chunks width chunk]
    gains: Any  # [_ K H], None where there are none
    marks: Any  # [S T tiles ROWS] int32, None without: bit 0, the step is taken; bit 1, there is a reset before it


class Results(NamedTuple):
    """What it writes."""

    dcolumns: Any  # [S B T C H]
    dgains: Any  # [S B K H], None where there are none
    dfresh: Any  # [S B F H], None where there are no resets
    dstate: Any  # [S B F H]


class _Scratch(NamedTuple):
    """What a block has for itself: its part of R and the arrays of a step in shared memory, and barriers."""

    kept: Any
    columns: Any
    made: Any
    befores: Any
    dstates: Any
    operand: Any
    resident: Any
    started: Any
    arrived: Any
    ready: Any


def packed(cut: Cut, R: Float[Array, "_ N D G D"]) -> Float[Array, "_ N blocks chunks width chunk"]:
    """R as the blocks keep it: of each the rows of its units, in chunks of what all gates multiply."""
    groups, heads, units, gates, _ = R.shape
    apart = R.reshape(groups, heads, cut.blocks, cut.width, gates * units // cut.chunk, cut.chunk)
    return apart.swapaxes(3, 4)


def fixed_bytes(width: int, units: int, gates: int, columns: int, fields: int, itemsize: int) -> int:
    """Shared memory beside the ring: a part of R, columns and their cotangents, states before and cotangents."""
    return width * (gates * units * itemsize + ROWS * (columns * (4 + itemsize) + 8 * fields))


def backward(
    cut: Cut, step: Step, name: str, exchange: ClusterExchange, interpret: Any, operands: Operands, results: Results
) -> Results:
    """All steps in reverse; `results` holds the types."""
    columns, fields = operands.columns.shape[3], operands.dlast.shape[2]
    shared, dtype, carry = mosaic_gpu.SMEM, operands.R.dtype, operands.dlast.dtype
    arriving = columns + fields + sum(each is not None for each in operands.dstates)
    chunks = operands.R.shape[3]
    scratch = _Scratch(
        shared((chunks, cut.width, cut.chunk), dtype),
        shared((columns, ROWS, cut.width), operands.columns.dtype),
        shared((columns, ROWS, cut.width), dtype),
        shared((fields, ROWS, cut.width), carry),
        shared((fields, ROWS, cut.width), carry),
        shared((cut.slots, ROWS, cut.chunk), dtype),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=chunks),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=fields),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=arriving),
        mosaic_gpu.Barrier(num_barriers=cut.slots),
    )
    return launch(_Block, cut, step, name, exchange, interpret, operands, results, scratch)


class _Block(Worker):
    """What one block does."""

    @property
    def columns(self) -> int:
        return self.read.columns.shape[3]

    @property
    def fields(self) -> int:
        return self.read.dlast.shape[2]

    def run(self) -> None:
        read, place, scratch = self.read, self.place, self.scratch
        self.keep()
        for field in range(self.fields):
            source = read.dlast.at[place.group, place.batch, field, place.mine]
            mosaic_gpu.copy_gmem_to_smem(source, scratch.dstates.at[field, place.top], scratch.started.at[0])
        self.gains = self.vectors(read.gains)
        mosaic_gpu.barrier_wait(scratch.started.at[0])
        dlast = [load(scratch.dstates.at[field], layout()) for field in range(self.fields)]
        mosaic_gpu.commit_smem()  # it is read before the first cotangents are written over it
        self.fetch(jnp.int32(self.cut.steps - 1))
        mosaic_gpu.barrier_wait(scratch.resident.at[0])
        self.none = mosaic_gpu.layout_cast(jnp.zeros((ROWS, self.cut.width), self.dtype), layout())
        start = dlast, [self.none] * len(self.gains), [self.none] * (0 if self.write.dfresh is None else self.fields)
        sums = jax.lax.fori_loop(jnp.int32(0), jnp.int32(self.cut.steps), self.one, start)
        for array, values in zip((self.write.dstate, self.write.dgains, self.write.dfresh), sums, strict=True):
            self.store_state(array, values)
        mosaic_gpu.wait_smem_to_gmem(0)

    def fetch(self, t: Array) -> None:
        """Start the loads of all that step t reads."""
        read, place, scratch = self.read, self.place, self.scratch
        for array, count, target in (
            (read.columns, self.columns, scratch.columns),
            (read.befores, self.fields, scratch.befores),
        ):
            for row in range(count):
                source = array.at[place.group, place.batch, t, row, place.mine]
                mosaic_gpu.copy_gmem_to_smem(source, target.at[row, place.top], scratch.arrived.at[0])
        for field, array in enumerate(read.dstates):
            if array is not None:
                source = array.at[place.group, place.batch, t, place.mine]
                mosaic_gpu.copy_gmem_to_smem(source, scratch.dstates.at[field, place.top], scratch.arrived.at[0])

    def one(self, k: Array, carry: tuple[list[Array], ...]) -> tuple[list[Array], ...]:
        """A step."""
        cut, scratch, place = self.cut, self.scratch, self.place
        t = cut.steps - 1 - k
        dstate, dgains, dfresh = carry
        marks = None if self.read.marks is None else of_rows(self.read.marks.at[place.group, t, place.tile], cut.width)
        mosaic_gpu.barrier_wait(scratch.arrived.at[0])
        columns = [load(scratch.columns.at[row], layout()).astype(self.dtype) for row in range(self.columns)]
        before = [load(scratch.befores.at[field], layout()) for field in range(self.fields)]
        dafter = [
            d if array is None else d + load(scratch.dstates.at[field], layout())
            for field, (d, array) in enumerate(zip(dstate, self.read.dstates, strict=True))
        ]
        made, dbefore, moved = self.step.backward(columns, before, dafter, self.gains)
        if marks is not None:
            taken = (marks & 1) != 0
            made, moved = (chosen(taken, each, [self.none] * len(each)) for each in (made, moved))
            dbefore = chosen(taken, dbefore, dafter)
        self.publish(t, made)
        pallas.when(t > 0)(lambda: self.fetch(t - 1))
        self.exchange.collect(self.barrier)
        dh = Ring(scratch.operand, scratch.ready, self.read.R.shape[3]).product(
            scratch.kept, lambda part, slot: self.fetch_chunk(t, part, slot), cut.width, self.dtype
        )
        dbefore = [dbefore[0] + dh, *dbefore[1:]]
        if dfresh and marks is not None:
            fresh = (marks & 2) != 0
            dfresh = [total + jnp.where(fresh, d, self.none) for total, d in zip(dfresh, dbefore, strict=True)]
            dbefore = chosen(fresh, [self.none] * self.fields, dbefore)
        return dbefore, [total + d for total, d in zip(dgains, moved, strict=True)], dfresh

    def publish(self, t: Array, made: list[Array]) -> None:
        """Store the cotangents of this block's columns, and say so."""
        place, scratch = self.place, self.scratch
        for row, array in enumerate(made):
            scratch.made[row] = array.astype(scratch.made.dtype)
        mosaic_gpu.commit_smem()
        for row in range(self.columns):
            target = self.write.dcolumns.at[place.group, place.batch, t, row, place.mine]
            mosaic_gpu.copy_smem_to_gmem(scratch.made.at[row, place.top], target)
        self.exchange.publish(self.barrier)

    def fetch_chunk(self, t: Array, k: Any, slot: Any) -> None:
        """Start the load of a chunk of the cotangents of all blocks, of the columns that the product with h adds to."""
        place, scratch, cut = self.place, self.scratch, self.cut
        gate, part = quotient(k, cut.chunks), remainder(k, cut.chunks)
        units = pallas.ds(place.head * cut.units + part * cut.chunk, cut.chunk)
        source = self.write.dcolumns.at[place.group, place.batch, t, self.by_state(gate), units]
        mosaic_gpu.copy_gmem_to_smem(source, scratch.operand.at[slot, place.top], scratch.ready.at[slot])

    def by_state(self, gate: Any) -> Any:
        """The column of a gate: all are in order, or but for those before it that the product with x alone adds to."""
        columns = self.step.by_state
        if isinstance(gate, int):
            return columns[gate]
        shifts = [(at, column - columns[at - 1] - 1) for at, column in enumerate(columns) if at]
        first = jnp.int32(columns[0]) + gate
        return first + sum(
            (jnp.int32(more) * (gate >= at).astype(jnp.int32) for at, more in shifts if more), jnp.int32(0)
        )

    def store_state(self, array: Any, values: list[Array]) -> None:
        """Store rows of an array [S B F H], as many at a time as there is room for."""
        staged, place = self.scratch.dstates, self.place
        for first in range(0, len(values), self.fields):
            mosaic_gpu.wait_smem_to_gmem(0)
            rows = range(first, min(first + self.fields, len(values)))
            for row in rows:
                staged[row - first] = values[row]
            mosaic_gpu.commit_smem()
            for row in rows:
                target = array.at[place.group, place.batch, row, place.mine]
                mosaic_gpu.copy_smem_to_gmem(staged.at[row - first, place.top], target)
