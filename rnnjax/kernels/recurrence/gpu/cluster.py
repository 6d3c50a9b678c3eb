"""Strategy 2: a cluster of blocks for each head and tile of sequences, R in their shared memory (Mosaic, Hopper)."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...pallas import Interpret, output
from ..contract import Pointwise, Sequences, Weights
from ..pointwise.step import Step
from . import cluster_backward, cluster_forward
from .device import HOPPER, Device
from .exchange import ClusterExchange
from .strategy import AbstractStrategy, Loop, Problem
from .tiling import NARROWEST, SPARE, WIDEST, Tiling, fill, marks, ring, tiles_of

LARGEST = 16  # blocks of a cluster; more than eight are not portable, but every Hopper device runs them
# The values of `jax_default_matmul_precision` that need more than TF32.
EXACT = "highest", "float32", "F32_F32_F32", "TF32_TF32_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9"
LACKING = frozenset(  # operations without a lowering in some version of JAX
    {"floor", "ceil", "round_even", "sqrt", "expm1", "log1p", "tan", "asin", "acos", "atan", "sinh", "cosh", "erf"}
    | {"erfc", "pow", "atan2"}
)


@dataclass(frozen=True)
class Cluster(AbstractStrategy):
    """Each block computes `width` units of a head, and gets h of the others through global memory at every step."""

    device: Device
    width: int
    forward_ring: tuple[int, int]  # chunk and slots
    backward_ring: tuple[int, int]

    @classmethod
    def fit(cls, pointwise: Pointwise, step: Step, weights: Weights, device: Device) -> "Cluster | str":
        """The strategy with the fewest blocks, or the reason why there is none."""
        if device.capability != HOPPER:
            return f"a cluster needs compute capability 9.0, `wgmma`, and {device.name} has {device.capability / 10}"
        if lacking := sorted(step.operations() & LACKING):
            return f"a cluster has no {' and no '.join(lacking)}, which pointwise computes"
        precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  the type of `config` lacks it
        if weights.R.dtype == jnp.float32 and precision in EXACT:
            return f"a cluster multiplies float32 as TF32, and jax_default_matmul_precision is {precision}"
        units = weights.R.shape[2]
        if units % NARROWEST:
            nearest = -(-units // NARROWEST) * NARROWEST
            return f"a cluster needs a multiple of {NARROWEST} units a head, such as {nearest}, and not {units}"
        sizes = _Sizes(pointwise.gates, len(step.pre_activations), pointwise.fields, weights.R.dtype.itemsize, device)
        for each in range(units, 0, -NARROWEST):
            found = sizes.width(each)
            if found is not None and each == units:
                return cls(device, *found)
            if found is not None:
                return f"a cluster on {device.name} has room for {each} units a head of this cell, and not {units}"
        return f"a cluster has no room for this cell on {device.name}"

    def __str__(self) -> str:
        return (
            f"a cluster of blocks for each head and up to 64 sequences, {self.width} units each, R of the head in the "
            f"shared memory of all, h through global memory at every step, on {self.device.name}"
        )

    def forward(
        self,
        problem: Problem,
        us: Float[Array, "S B T G H"],
        used_outputs: tuple[bool, ...],
        interpret: Interpret,
    ) -> tuple[tuple[Float[Array, "S B T H"] | None, ...], Float[Array, "S B F H"]]:
        weights, sequences, tiling = problem.weights, problem.sequences, self._cut(self.forward_ring, problem)
        resets, state, after = _resets(sequences), sequences.state, None
        if resets is not None:  # a reset before step t + 1 is done at the end of step t, so that all blocks see it
            state = jnp.where(resets[:, :, :1, None], weights.initial[:, None], state)
            after = jnp.pad(resets[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
        operands = cluster_forward.Operands(
            fill(us, tiling.batch),
            cluster_forward.packed(tiling, weights.R),
            weights.unit_parameters if weights.unit_parameters.shape[1] else None,
            None if resets is None else weights.initial,
            fill(state, tiling.batch),
            marks(tiling, sequences.length, after, us.shape[1]),
        )
        states = output((tiling.groups, tiling.batch, tiling.steps, us.shape[4]), state.dtype)
        results = cluster_forward.Results(
            states.update(dtype=weights.R.dtype),
            tuple(states if used else None for used in used_outputs),
            output(operands.state.shape, state.dtype),
        )
        name, exchange = f"rnnjax_{problem.name}_forward", ClusterExchange(fences=not interpret)
        results = cluster_forward.forward(tiling, problem.step, name, exchange, interpret, operands, results)
        results = jax.tree.map(lambda array: array[:, : us.shape[1]], results)
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
        weights, sequences, tiling = problem.weights, problem.sequences, self._cut(self.backward_ring, problem)
        filled = partial(fill, batch=tiling.batch)
        operands = cluster_backward.Operands(
            filled(pre_activations),
            filled(before),
            tuple(None if each is None else filled(each) for each in dstates),
            filled(dlast),
            cluster_backward.packed(tiling, weights.R),
            weights.unit_parameters if weights.unit_parameters.shape[1] else None,
            marks(tiling, sequences.length, _resets(sequences), dlast.shape[1]),
        )
        state = output(operands.dlast.shape, dlast.dtype)
        results = cluster_backward.Results(
            output(operands.pre_activations.shape, weights.R.dtype),
            state.update(shape=(*state.shape[:2], weights.unit_parameters.shape[1], state.shape[3]))
            if weights.unit_parameters.shape[1]
            else None,
            None if sequences.resets is None else state,
            state,
        )
        name, exchange = f"rnnjax_{problem.name}_backward", ClusterExchange(fences=not interpret)
        results = cluster_backward.backward(tiling, problem.step, name, exchange, interpret, operands, results)
        return Loop(*jax.tree.map(lambda array: array[:, : dlast.shape[1]], tuple(results)))

    def _cut(self, ring: tuple[int, int], problem: Problem) -> Tiling:
        groups, batch, steps, _ = problem.sequences.xs.shape
        heads, units = problem.weights.R.shape[1:3]
        return Tiling(groups, heads, *tiles_of(batch), steps, units, units // self.width, *ring)


class _Sizes(NamedTuple):
    """The sizes that decide whether a head fits."""

    gates: int
    pre_activations: int
    fields: int
    itemsize: int
    device: Device

    def width(self, units: int) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
        """The most units of a block for a head of `units`, and chunk and slots of each half; None if none fits."""
        for width in (64, 48, 32, 16):
            if units % width == 0 and 2 <= units // width <= LARGEST and self.gates * width <= WIDEST:
                rings = self.rings(units, width)
                if rings[0] is not None and rings[1] is not None:
                    return width, rings[0], rings[1]
        return None

    def rings(self, units: int, width: int) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """Chunk and slots of each half, in the shared memory that R and the arrays of a step leave free."""
        room = self.device.shared_memory - SPARE
        ahead = cluster_forward.fixed_bytes(width, units, self.gates, self.fields, self.itemsize)
        back = cluster_backward.fixed_bytes(width, units, self.gates, self.pre_activations, self.fields, self.itemsize)
        return ring(units, 1, self.itemsize, room - ahead), ring(units, self.gates, self.itemsize, room - back)


def _resets(sequences: Sequences) -> Bool[Array, "S B T"] | None:
    """The resets of valid steps."""
    if sequences.resets is None or sequences.length is None:
        return sequences.resets
    return sequences.resets & (jnp.arange(sequences.xs.shape[2], dtype=jnp.int32) < sequences.length[..., None])
