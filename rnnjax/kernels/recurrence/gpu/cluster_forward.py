"""The forward half on several blocks that share a head (Mosaic GPU, Hopper).

Before step t + 1 each block stores its part of h, rounded to the dtype of R, in the output `hs`, and reads back the
parts of all blocks. So the exchange goes through an output, each entry of which is written once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...pallas import Interpret, layout, load, mosaic_gpu, pallas
from ..pointwise.step import Step
from .exchange import ClusterExchange
from .tiling import ROWS, Tiling
from .warp_group import Ring, WarpGroup, chosen, launch


class Operands(NamedTuple):
    """The operands of the forward half: arrays outside of the kernel, references inside."""

    us: Any  # [S B T G H]
    R: Any  # [_ N blocks chunks columns chunk]
    unit_parameters: Any  # [_ K H], None where there are none
    initial: Any  # [_ F H], None where there are no resets
    state: Any  # [S B F H]
    marks: Any  # [S T tiles ROWS] int32, None without: bit 0, the step is valid; bit 1, a reset follows it


class Results(NamedTuple):
    """The results of the forward half."""

    hs: Any  # [S B T H] before each step, in the dtype of R
    states: tuple[Any, ...]  # [S B T H] each, None where they are not used
    last: Any  # [S B F H]


class _Scratch(NamedTuple):
    """The scratch memory of a block: its part of R, inputs, h and states in shared memory, and barriers."""

    resident_part: Any
    inputs: Any
    hidden: Any
    staged: Any
    operand: Any
    resident: Any
    started: Any
    arrived: Any
    ready: Any


def packed(tiling: Tiling, R: Float[Array, "_ N D G D"]) -> Float[Array, "_ N blocks chunks columns chunk"]:
    """R as the blocks store it: each has the columns of its units, gate by gate, in chunks along h."""
    groups, heads, _, gates, _ = R.shape
    apart = R.reshape(groups, heads, tiling.chunks, tiling.chunk, gates, tiling.blocks, tiling.width).transpose(
        0, 1, 5, 2, 4, 6, 3
    )
    return apart.reshape(groups, heads, tiling.blocks, tiling.chunks, gates * tiling.width, tiling.chunk)


def fixed_bytes(width: int, units: int, gates: int, fields: int, itemsize: int) -> int:
    """Bytes of shared memory beside the ring: a part of R, one step of `us`, h, and the states."""
    return width * (gates * units * itemsize + ROWS * ((gates + 1) * itemsize + 4 * fields))


def forward(
    tiling: Tiling,
    step: Step,
    name: str,
    exchange: ClusterExchange,
    interpret: Interpret,
    operands: Operands,
    results: Results,
) -> Results:
    """All steps; `results` contains the types."""
    gates, fields = operands.us.shape[3], operands.state.shape[2]
    shared, dtype = mosaic_gpu.SMEM, operands.R.dtype
    scratch = _Scratch(
        shared((tiling.chunks, gates * tiling.width, tiling.chunk), dtype),
        shared((gates, ROWS, tiling.width), operands.us.dtype),
        shared((ROWS, tiling.width), dtype),
        shared((fields, ROWS, tiling.width), operands.state.dtype),
        shared((tiling.slots, ROWS, tiling.chunk), dtype),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=tiling.chunks),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=fields),
        mosaic_gpu.Barrier(num_barriers=1, num_arrivals=gates),
        mosaic_gpu.Barrier(num_barriers=tiling.slots),
    )
    return launch(_Block, tiling, step, name, exchange, interpret, operands, results, scratch)


class _Block(WarpGroup):
    """The code of one block."""

    @property
    def gates(self) -> int:
        return self.read.us.shape[3]

    @property
    def fields(self) -> int:
        return self.read.state.shape[2]

    def run(self) -> None:
        read, coordinates, scratch = self.read, self.coordinates, self.scratch
        self.keep()
        self.fetch_inputs(jnp.int32(0))
        for field in range(self.fields):
            source = read.state.at[coordinates.group, coordinates.batch, field, coordinates.mine]
            mosaic_gpu.copy_gmem_to_smem(source, scratch.staged.at[field, coordinates.top], scratch.started.at[0])
        self.unit_parameters, self.initial = self.vectors(read.unit_parameters), self.vectors(read.initial)
        mosaic_gpu.barrier_wait(scratch.started.at[0])
        start = [load(scratch.staged.at[field], layout()) for field in range(self.fields)]
        self.publish(jnp.int32(0), start[0])
        mosaic_gpu.barrier_wait(scratch.resident.at[0])
        last = jax.lax.fori_loop(jnp.int32(0), jnp.int32(self.tiling.steps), self.one, start)
        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)
        fields = range(self.fields)
        self.store(
            [self.write.last.at[coordinates.group, coordinates.batch, field, coordinates.mine] for field in fields],
            last,
        )
        mosaic_gpu.wait_smem_to_gmem(0)

    def fetch_inputs(self, t: Array) -> None:
        """Start the loads of the u of step t."""
        coordinates = self.coordinates
        for gate in range(self.gates):
            source = self.read.us.at[coordinates.group, coordinates.batch, t, gate, coordinates.mine]
            target = self.scratch.inputs.at[gate, coordinates.top]
            mosaic_gpu.copy_gmem_to_smem(source, target, self.scratch.arrived.at[0])

    def publish(self, t: Array, h: Array) -> None:
        """Store this block's part of the h before step t, and signal it."""
        coordinates, scratch = self.coordinates, self.scratch
        scratch.hidden[...] = h.astype(scratch.hidden.dtype)
        mosaic_gpu.commit_smem()
        target = self.write.hs.at[coordinates.group, coordinates.batch, t, coordinates.mine]
        mosaic_gpu.copy_smem_to_gmem(scratch.hidden.at[coordinates.top], target)
        self.exchange.publish(self.barrier)

    def one(self, t: Array, before: list[Array]) -> list[Array]:
        """A step."""
        tiling, coordinates, scratch = self.tiling, self.coordinates, self.scratch
        marks = self.marks(t)
        self.exchange.collect(self.barrier)
        mosaic_gpu.barrier_wait(scratch.arrived.at[0])
        us = [load(scratch.inputs.at[gate], layout()).astype(self.dtype) for gate in range(self.gates)]
        mosaic_gpu.commit_smem()  # they must be read before the next ones are written over them
        pallas.when(t + 1 < tiling.steps)(lambda: self.fetch_inputs(t + 1))

        sums = Ring(scratch.operand, scratch.ready, tiling.chunks).product(
            scratch.resident_part, lambda k, slot: self.fetch_chunk(t, k, slot), self.gates * tiling.width, self.dtype
        )
        vs = [sums[:, gate * tiling.width : (gate + 1) * tiling.width] for gate in range(self.gates)]
        after = self.step.forward(self.step.sums(us, vs), before, self.unit_parameters)
        if marks is not None:
            after = chosen((marks & 1) != 0, after, before)
        following = after if marks is None or not self.initial else chosen((marks & 2) != 0, self.initial, after)
        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)  # what was staged before has been read
        pallas.when(t + 1 < tiling.steps)(lambda: self.publish(t + 1, following[0]))
        targets = [
            None if each is None else each.at[coordinates.group, coordinates.batch, t, coordinates.mine]
            for each in self.write.states
        ]
        self.store(targets, after)
        return following

    def fetch_chunk(self, t: Array, k: Any, slot: Any) -> None:
        """Start the load of a chunk of the h of all blocks."""
        coordinates, scratch = self.coordinates, self.scratch
        units = pallas.ds(coordinates.head * self.tiling.units + k * self.tiling.chunk, self.tiling.chunk)
        source = self.write.hs.at[coordinates.group, coordinates.batch, t, units]
        mosaic_gpu.copy_gmem_to_smem(source, scratch.operand.at[slot, coordinates.top], scratch.ready.at[slot])

    def store(self, targets: list[Any], state: list[Array]) -> None:
        """Start the stores of the fields of a state; a target may be None."""
        staged = self.scratch.staged
        for field, (target, array) in enumerate(zip(targets, state, strict=True)):
            if target is not None:
                staged[field] = array
        mosaic_gpu.commit_smem()
        for field, target in enumerate(targets):
            if target is not None:
                mosaic_gpu.copy_smem_to_gmem(staged.at[field, self.coordinates.top], target)
