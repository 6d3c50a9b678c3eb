"""The backward half on several blocks that share a head (Mosaic GPU, Hopper).

At each step a block stores the cotangents of its pre-activations, which are an output, and reads back those of all
blocks for its part of dh, the product with R transposed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...pallas import Interpret, layout, load, mosaic_gpu, pallas
from ..pointwise.step import Step
from .exchange import ClusterExchange
from .tiling import ROWS, Tiling
from .warp_group import Ring, WarpGroup, chosen, launch, quotient, remainder


class Operands(NamedTuple):
    """The operands of the backward half: arrays outside of the kernel, references inside."""

    pre_activations: Any  # [S B T C H]
    previous_states: Any  # [S B T F H]
    dstates: tuple[Any, ...]  # [S B T H] each, None where it is zero
    dlast: Any  # [S B F H]
    R: Any  # [_ N blocks chunks width chunk]
    unit_parameters: Any  # [_ K H], None where there are none
    marks: Any  # [S T tiles ROWS] int32, None without: bit 0, the step is valid; bit 1, there is a reset before it


class Results(NamedTuple):
    """The results of the backward half."""

    dpre_activations: Any  # [S B T C H]
    dunit_parameters: Any  # [S B K H], None where there are none
    dinitial: Any  # [S B F H], None where there are no resets
    dstate: Any  # [S B F H]


class _Scratch(NamedTuple):
    """The scratch memory of a block: its part of R and the arrays of a step in shared memory, and barriers."""

    resident_part: Any
    pre_activations: Any
    dgates: Any
    previous_states: Any
    dstates: Any
    operand: Any
    resident: Any
    started: Any
    arrived: Any
    ready: Any


def packed(tiling: Tiling, R: Float[Array, "_ N D G D"]) -> Float[Array, "_ N blocks chunks width chunk"]:
    """R as the blocks store it: each has the rows of its units, in chunks along the gate cotangents."""
    groups, heads, units, gates, _ = R.shape
    apart = R.reshape(groups, heads, tiling.blocks, tiling.width, gates * units // tiling.chunk, tiling.chunk)
    return apart.swapaxes(3, 4)


def fixed_bytes(width: int, units: int, gates: int, pre_activations: int, fields: int, itemsize: int) -> int:
    """Shared memory beside the ring: part of R, pre-activations, states before, and the cotangents of both."""
    return width * (gates * units * itemsize + ROWS * (pre_activations * (4 + itemsize) + 8 * fields))


def backward(
    tiling: Tiling,
    step: Step,
    name: str,
    exchange: ClusterExchange,
    interpret: Interpret,
    operands: Operands,
    results: Results,
) -> Results:
    """All steps in reverse; `results` contains the types."""
    pre_activations, fields = operands.pre_activations.shape[3], operands.dlast.shape[2]
    shared, dtype, carry = mosaic_gpu.SMEM, operands.R.dtype, operands.dlast.dtype
    arriving = pre_activations + fields + sum(each is not None for each in operands.dstates)
    chunks = operands.R.shape[3]
    scratch = _Scratch(
        shared((chunks, tiling.width, tiling.chunk), dtype),
        shared((pre_activations, ROWS, tiling.width), operands.pre_activations.dtype),
        shared((pre_activations, ROWS, tiling.width), dtype),
        shared((fields, ROWS, tiling.width), carry),
        shared((fields, ROWS, tiling.width), carry),
        shared((tiling.slots, ROWS, tiling.chunk), dtype),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=chunks),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=fields),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=arriving),
        mosaic_gpu.Barrier(num_barriers=tiling.slots),
    )
    return launch(_Block, tiling, step, name, exchange, interpret, operands, results, scratch)


class _Block(WarpGroup):
    """The code of one block."""

    @property
    def pre_activations(self) -> int:
        return self.read.pre_activations.shape[3]

    @property
    def fields(self) -> int:
        return self.read.dlast.shape[2]

    def run(self) -> None:
        read, coordinates, scratch = self.read, self.coordinates, self.scratch
        self.keep()
        for field in range(self.fields):
            source = read.dlast.at[coordinates.group, coordinates.batch, field, coordinates.mine]
            mosaic_gpu.copy_gmem_to_smem(source, scratch.dstates.at[field, coordinates.top], scratch.started.at[0])
        self.unit_parameters = self.vectors(read.unit_parameters)
        mosaic_gpu.barrier_wait(scratch.started.at[0])
        dlast = [load(scratch.dstates.at[field], layout()) for field in range(self.fields)]
        mosaic_gpu.commit_smem()  # it must be read before the first cotangents are written over it
        self.fetch(jnp.int32(self.tiling.steps - 1))
        mosaic_gpu.barrier_wait(scratch.resident.at[0])
        self.none = mosaic_gpu.layout_cast(jnp.zeros((ROWS, self.tiling.width), self.dtype), layout())
        start = (
            dlast,
            [self.none] * len(self.unit_parameters),
            [self.none] * (0 if self.write.dinitial is None else self.fields),
        )
        sums = jax.lax.fori_loop(jnp.int32(0), jnp.int32(self.tiling.steps), self.one, start)
        for array, values in zip(
            (self.write.dstate, self.write.dunit_parameters, self.write.dinitial), sums, strict=True
        ):
            self.store_state(array, values)
        mosaic_gpu.wait_smem_to_gmem(0)

    def fetch(self, t: Array) -> None:
        """Start the loads of all arrays that step t reads."""
        read, coordinates, scratch = self.read, self.coordinates, self.scratch
        for array, count, target in (
            (read.pre_activations, self.pre_activations, scratch.pre_activations),
            (read.previous_states, self.fields, scratch.previous_states),
        ):
            for row in range(count):
                source = array.at[coordinates.group, coordinates.batch, t, row, coordinates.mine]
                mosaic_gpu.copy_gmem_to_smem(source, target.at[row, coordinates.top], scratch.arrived.at[0])
        for field, array in enumerate(read.dstates):
            if array is not None:
                source = array.at[coordinates.group, coordinates.batch, t, coordinates.mine]
                mosaic_gpu.copy_gmem_to_smem(source, scratch.dstates.at[field, coordinates.top], scratch.arrived.at[0])

    def one(self, k: Array, carry: tuple[list[Array], ...]) -> tuple[list[Array], ...]:
        """A step."""
        tiling, scratch = self.tiling, self.scratch
        t = tiling.steps - 1 - k
        dstate, dunit_parameters, dinitial = carry
        marks = self.marks(t)
        mosaic_gpu.barrier_wait(scratch.arrived.at[0])
        pre_activations = [
            load(scratch.pre_activations.at[row], layout()).astype(self.dtype) for row in range(self.pre_activations)
        ]
        before = [load(scratch.previous_states.at[field], layout()) for field in range(self.fields)]
        dafter = [
            d if array is None else d + load(scratch.dstates.at[field], layout())
            for field, (d, array) in enumerate(zip(dstate, self.read.dstates, strict=True))
        ]
        dgates, dbefore, dparameters = self.step.backward(pre_activations, before, dafter, self.unit_parameters)
        if marks is not None:
            valid = (marks & 1) != 0
            dgates, dparameters = (chosen(valid, each, [self.none] * len(each)) for each in (dgates, dparameters))
            dbefore = chosen(valid, dbefore, dafter)
        self.publish(t, dgates)
        pallas.when(t > 0)(lambda: self.fetch(t - 1))
        self.exchange.collect(self.barrier)
        dh = Ring(scratch.operand, scratch.ready, self.read.R.shape[3]).product(
            scratch.resident_part, lambda part, slot: self.fetch_chunk(t, part, slot), tiling.width, self.dtype
        )
        dbefore = [dbefore[0] + dh, *dbefore[1:]]
        if dinitial and marks is not None:
            reset = (marks & 2) != 0
            dinitial = [total + jnp.where(reset, d, self.none) for total, d in zip(dinitial, dbefore, strict=True)]
            dbefore = chosen(reset, [self.none] * self.fields, dbefore)
        return dbefore, [total + d for total, d in zip(dunit_parameters, dparameters, strict=True)], dinitial

    def publish(self, t: Array, dgates: list[Array]) -> None:
        """Store the cotangents of this block's pre-activations, and signal it."""
        coordinates, scratch = self.coordinates, self.scratch
        for row, array in enumerate(dgates):
            scratch.dgates[row] = array.astype(scratch.dgates.dtype)
        mosaic_gpu.commit_smem()
        for row in range(self.pre_activations):
            target = self.write.dpre_activations.at[coordinates.group, coordinates.batch, t, row, coordinates.mine]
            mosaic_gpu.copy_smem_to_gmem(scratch.dgates.at[row, coordinates.top], target)
        self.exchange.publish(self.barrier)

    def fetch_chunk(self, t: Array, k: Any, slot: Any) -> None:
        """Start to load a chunk of the cotangents of all blocks, of pre-activations that take the product with h."""
        coordinates, scratch, tiling = self.coordinates, self.scratch, self.tiling
        gate, part = quotient(k, tiling.chunks), remainder(k, tiling.chunks)
        units = pallas.ds(coordinates.head * tiling.units + part * tiling.chunk, tiling.chunk)
        source = self.write.dpre_activations.at[coordinates.group, coordinates.batch, t, self.by_state(gate), units]
        mosaic_gpu.copy_gmem_to_smem(source, scratch.operand.at[slot, coordinates.top], scratch.ready.at[slot])

    def by_state(self, gate: Any) -> Any:
        """The pre-activation of a gate: in order, but for those before it that take only the product with x."""
        pre_activations = self.step.by_state
        if isinstance(gate, int):
            return pre_activations[gate]
        shifts = [
            (at, pre_activation - pre_activations[at - 1] - 1)
            for at, pre_activation in enumerate(pre_activations)
            if at
        ]
        first = jnp.int32(pre_activations[0]) + gate
        return first + sum(
            (jnp.int32(more) * (gate >= at).astype(jnp.int32) for at, more in shifts if more), jnp.int32(0)
        )

    def store_state(self, array: Any, values: list[Array]) -> None:
        """Store rows of an array [S B F H], as many at a time as there is room for."""
        staged, coordinates = self.scratch.dstates, self.coordinates
        for first in range(0, len(values), self.fields):
            mosaic_gpu.wait_smem_to_gmem(0)
            rows = range(first, min(first + self.fields, len(values)))
            for row in rows:
                staged[row - first] = values[row]
            mosaic_gpu.commit_smem()
            for row in rows:
                target = array.at[coordinates.group, coordinates.batch, row, coordinates.mine]
                mosaic_gpu.copy_smem_to_gmem(staged.at[row - first, coordinates.top], target)
