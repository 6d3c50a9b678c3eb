"""Strategy 1: one block of threads for each head and tile of sequences, R of the head in its shared memory (Triton)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...pallas import Interpret, output, pallas, triton
from ..contract import Pointwise, Sequences, Weights
from ..pointwise.step import Step
from . import block_body, coordinates
from .coordinates import Shared, Tile
from .device import AMPERE, Device
from .strategy import AbstractStrategy, Loop, Problem

NARROWEST = 16  # the smallest side of a product in matrix units
MOST_WARPS = 16  # of a block: with more, each thread would have too few registers
ELEMENTS = 4  # of each array, per thread
LACKING = frozenset({"round_even", "erf", "erfc"})  # operations without a lowering


@dataclass(frozen=True)
class Block(AbstractStrategy):
    """One block of threads for each head and tile of sequences. Every GPU from Ampere on can run it."""

    device: Device
    units: int  # of a head, padded
    resident: int  # bytes of R

    @classmethod
    def fit(cls, pointwise: Pointwise, step: Step, weights: Weights, device: Device) -> "Block | str":
        """This strategy for such a cell, or the reason why there is none."""
        if device.capability < AMPERE:
            return f"it needs compute capability 8.0, and {device.name} has {device.capability / 10}"
        if lacking := sorted(step.operations() & LACKING):
            return f"it has no {' and no '.join(lacking)}, which pointwise computes"
        units = _power_of_two(weights.R.shape[2])
        most = units
        while most > NARROWEST and _needed(_resident(pointwise, weights, most), NARROWEST, most) > device.shared_memory:
            most //= 2
        if most < units:
            return f"{device.name} has shared memory for {most} units a head of this cell, and not {weights.R.shape[2]}"
        return cls(device, units, _resident(pointwise, weights, units))

    def __str__(self) -> str:
        needed, room = _needed(self.resident, NARROWEST, self.units) >> 10, self.device.shared_memory >> 10
        return (
            f"one block of threads for each head and {NARROWEST} sequences or more, "
            f"R of the head in {needed} of {room} KiB of shared memory on {self.device.name}"
        )

    def tile(self, heads: int, sequences: int) -> Tile:
        """Few sequences in a tile, so that many blocks share the work; more if blocks outnumber the multiprocessors."""
        rows = NARROWEST
        while (
            rows < sequences
            and heads * -(-sequences // rows) > self.device.multiprocessors
            and 2 * rows * self.units <= MOST_WARPS * 32 * ELEMENTS
            and _needed(self.resident, 2 * rows, self.units) <= self.device.shared_memory
        ):
            rows *= 2
        return Tile(rows, self.units)

    def forward(
        self,
        problem: Problem,
        us: Float[Array, "S B T G H"],
        used_outputs: tuple[bool, ...],
        interpret: Interpret,
    ) -> tuple[tuple[Float[Array, "S B T H"] | None, ...], Float[Array, "S B F H"]]:
        state = problem.sequences.state
        last = output(state.shape, state.dtype)
        timed = last.update(shape=(*us.shape[:3], us.shape[4]))
        results = coordinates.ForwardResults(tuple(timed if used else None for used in used_outputs), last)
        results = self._call(
            "forward", block_body.forward, problem, coordinates.ForwardOperands(us, state), results, interpret
        )
        return results.states, results.last

    def backward(
        self,
        problem: Problem,
        pre_activations: Float[Array, "S B T C H"],
        before: Float[Array, "S B T F H"],
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"],
        interpret: Interpret,
    ) -> Loop:
        unit_parameters, state = len(problem.step.dunit_parameters), output(dlast.shape, dlast.dtype)
        dunit_parameters = state.update(shape=(*dlast.shape[:2], max(unit_parameters, 1), dlast.shape[3]))
        dpre_activations = output(pre_activations.shape, problem.weights.R.dtype)
        results = coordinates.BackwardResults(
            dpre_activations, dunit_parameters, None if problem.sequences.resets is None else state, state
        )
        read = coordinates.BackwardOperands(pre_activations, before, dstates, dlast)
        results = self._call("backward", block_body.backward, problem, read, results, interpret)
        return Loop(
            results.dpre_activations,
            results.dunit_parameters if unit_parameters else None,
            results.dinitial,
            results.dstate,
        )

    def _call(
        self, half: str, body: Callable[..., None], problem: Problem, read: Any, results: Any, interpret: Any
    ) -> Any:
        """Run the kernel over groups, heads and tiles of sequences."""
        weights, sequences = problem.weights, problem.sequences
        groups, batch = sequences.xs.shape[:2]
        heads = weights.R.shape[1]
        tile = self.tile(groups * heads, batch)
        call = pallas.pallas_call(
            partial(body, problem.step, tile),
            grid=(-(-batch // tile.rows), heads, groups),
            out_shape=results,
            compiler_params=triton.CompilerParams(num_warps=_warps(tile), num_stages=1),
            name=f"rnnjax_{problem.name}_{half}",
            interpret=interpret,
        )
        return type(results)(*call(_shared(weights, sequences), read))


def _shared(weights: Weights, sequences: Sequences) -> Shared:
    """The arrays that all sequences share. No array may be empty: a row of zeros stands for no unit parameters."""
    unit_parameters = weights.unit_parameters
    unit_parameters = (
        unit_parameters
        if unit_parameters.shape[1]
        else jnp.zeros((1, 1, unit_parameters.shape[2]), unit_parameters.dtype)
    )
    resets = None if sequences.resets is None else sequences.resets.astype(jnp.int32)
    return Shared(weights.R, unit_parameters, weights.initial, sequences.length, resets)


def _warps(tile: Tile) -> int:
    """The number of warps for a tile."""
    return min(MOST_WARPS, max(4, tile.rows * tile.units // (32 * ELEMENTS)))


def _resident(pointwise: Pointwise, weights: Weights, units: int) -> int:
    """Bytes of R of a head."""
    return pointwise.gates * weights.R.dtype.itemsize * units**2


def _needed(resident: int, rows: int, units: int) -> int:
    """Bytes of shared memory: R, and the buffers of layout conversions."""
    return resident + 2 * 4 * rows * units + 1024


def _power_of_two(size: int) -> int:
    return max(NARROWEST, 1 << (size - 1).bit_length())
