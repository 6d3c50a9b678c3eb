"""The kernel for TPUs: a grid over blocks of time, with R and the states in vector memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ....arrays import PyTree
from ....refusal import Refusal
from ...pallas import pallas, tpu
from .. import products
from ..contract import (
    AbstractKernel,
    Cotangents,
    KernelPlan,
    NeedsGradient,
    Pointwise,
    Sequences,
    Trajectory,
    Weights,
    carried,
)
from ..pointwise.step import Step, translate
from ..products import LoopCotangents
from ..reference import ReferencePlan
from . import body
from .layout import LANES, STREAMED, SUBLANES, Layout, temporary, whole

# MiB of vector memory, by the beginning of the device's name.
MEMORIES = {"TPU v5 lite": 128, "TPU v5e": 128, "TPU v6": 128, "TPU v5": 64, "TPU v7": 64, "TPU7": 64}
LEAST = 16  # MiB that any TPU has
SCOPED = 14 << 20  # bytes that the compiler allows a kernel that asks for no more
LACKING = frozenset({"sign", "expm1", "asin", "acos", "atan", "sinh", "cosh", "erfc"})  # operations without a lowering


class TPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, in float32 or bfloat16; float16 is cast to float32.

    Experimental: no device has measured it. It is emulated, lowered and compiled; `Fused(tpu=TPU())` runs it.

    Each head is a recurrence of its own. Time is the last axis of the grid, which runs in order: a block is fetched
    while the one before is used, and R and the states stay in vector memory. The backward half reads the states and the
    pre-activations, which one product recomputes, and writes the cotangents of the pre-activations; the products with
    these are outside. Products follow `jax_default_matmul_precision`; by default the matrix unit rounds float32 to
    bfloat16.

    memory      MiB of vector memory to plan for; None: that of the TPU lowered for, or the least that any TPU has
    interpret   emulate it elsewhere: True, or the parameters of Pallas' interpreter for TPUs
    """

    memory: int | None = eqx.field(static=True, default=None)
    interpret: Any = eqx.field(static=True, default=False)

    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        dtype = carried(weights)
        if dtype != jnp.float32 and not self.interpret:
            return Refusal(f"The TPU kernel carries float32, and the cell {dtype}. Build the cell in float32.")
        step = translate(pointwise, dtype)
        if isinstance(step, Refusal):
            return Refusal(f"The TPU kernel has no program for it: {step}.")
        if lacking := sorted(step.operations() & LACKING):
            return Refusal(
                f"The TPU kernel has no {' and no '.join(lacking)}, which pointwise computes. "
                "Write pointwise without it."
            )
        units, room = weights.R.shape[2], self._room()
        most = whole(units, LANES)
        while most and _resident(pointwise, weights, most) + STREAMED + temporary(SUBLANES, most) > room:
            most -= LANES
        if units > most:
            return Refusal(
                f"The TPU kernel keeps R of a head in vector memory: in {room >> 20} MiB, at most {most} units a head "
                f"of this cell, and not {units}. Take more heads, or fewer units."
            )
        resident = _resident(pointwise, weights, whole(units, LANES))
        return TPUPlan(pointwise, dtype, resident, self.interpret, step)

    def _room(self) -> int:
        """Bytes of vector memory."""
        if self.memory is not None:
            return self.memory << 20
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        try:
            kind = jax.local_devices(backend="tpu")[0].device_kind if abstract is None else abstract.device_kind
        except RuntimeError:
            kind = ""
        return next((size for name, size in MEMORIES.items() if kind.startswith(name)), LEAST) << 20


@dataclass(frozen=True)
class TPUPlan(KernelPlan):
    """One run over the grid for each half; the large products are outside of it."""

    pointwise: Pointwise
    dtype: np.dtype  # of states and sums
    resident: int  # bytes of R of a head
    interpret: Any
    step: Step = field(compare=False, repr=False)  # of `pointwise` in `dtype`

    def __str__(self) -> str:
        how = f"block by block of time, R of each head in {self.resident / 2**20:.2g} MiB of vector memory"
        return f"TPU kernel, {how} (experimental: no device has measured it)"

    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        if 0 in sequences.xs.shape[:3]:
            return ReferencePlan(self.pointwise).forward(weights, sequences, residual_size, used_outputs)
        weights, sequences = _stored((weights, sequences))
        us = products.over_groups(products.inputs, weights, sequences)
        layout = Layout.of(weights, sequences, us.dtype.itemsize * us.shape[3] + 4 * sum(used_outputs))
        state, marked = layout.state(sequences.state), sequences.resets is not None
        dtype, fields = state.dtype, self.pointwise.fields
        outputs = [layout.timed_type(1, dtype) for _ in range(sum(used_outputs))], [layout.state_type(fields, dtype)]
        call = partial(_call, layout, f"rnnjax_{self.pointwise.name}_forward", self.interpret, False)
        *results, last = call(
            partial(body.forward, self.step, used_outputs, marked),
            ([layout.timed(us)], _shared(layout, weights.R, weights.unit_parameters, weights.initial), [state]),
            layout.marks(sequences),
            outputs,
        )
        states = iter(layout.untimed(each)[:, :, :, 0] for each in results)
        residuals = jnp.zeros((*us.shape[:3], residual_size, us.shape[4]), dtype)
        used = tuple(next(states) if is_used else None for is_used in used_outputs)
        return Trajectory(used, layout.unstate(last), residuals)

    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        if 0 in sequences.xs.shape[:3]:
            reference = ReferencePlan(self.pointwise)
            return reference.backward(weights, sequences, trajectory, dstates, dlast, needs_gradient)
        xs_dtype, step, unit_parameters = sequences.xs.dtype, self.step, self.pointwise.unit_parameters.num_leaves
        weights, sequences = _stored((weights, sequences))
        before, pre_activations = products.step_inputs(step, weights, sequences, trajectory.states)
        given = tuple(each is not None for each in dstates)
        dgiven = [each[:, :, :, None] for each in dstates if each is not None]
        dlast = jnp.zeros_like(sequences.state) if dlast is None else dlast

        itemsize, fields = weights.R.dtype.itemsize, self.pointwise.fields
        layout = Layout.of(weights, sequences, len(step.pre_activations) * (4 + itemsize) + 4 * (fields + sum(given)))
        states = [layout.state_type(count, dlast.dtype) for count in (max(1, unit_parameters), fields, fields)]
        dpre_activations, dunit_parameters, dinitial, dstate = _call(
            layout,
            f"rnnjax_{self.pointwise.name}_backward",
            self.interpret,
            True,
            partial(body.backward, step, given, sequences.resets is not None),
            (
                [
                    layout.timed(pre_activations),
                    layout.timed(before),
                    *(layout.timed(each, "constant") for each in dgiven),
                ],
                _shared(layout, weights.R, weights.unit_parameters),
                [layout.state(dlast, "constant")],
            ),
            layout.marks(sequences),
            ([layout.timed_type(len(step.pre_activations), weights.R.dtype)], states),
        )
        dpre_activations, dunit_parameters, dinitial, dstate = (
            layout.untimed(dpre_activations),
            *map(layout.unstate, (dunit_parameters, dinitial, dstate)),
        )
        dunit_parameters = dunit_parameters[:, :, :unit_parameters]
        loop = LoopCotangents(*products.by_gate(step, dpre_activations), dunit_parameters, dinitial, dstate)
        group = partial(products.cotangents, needs_gradient)
        results = products.over_groups(group, weights, sequences, before[:, :, :, 0], loop)
        return results._replace(xs=None if results.xs is None else results.xs.astype(xs_dtype))


def _call(
    layout: Layout,
    name: str,
    interpret: Any,
    backward: bool,
    program: Callable[..., None],
    operands: tuple[Sequence[Array], Sequence[Array], Sequence[Array]],
    marks: tuple[Array, Array],
    results: tuple[Sequence[Any], Sequence[Any]],
) -> Sequence[Array]:
    """One run over the grid. Operands are in three groups: over time, shared by all sequences, and states."""
    timed, shared, states = operands
    timed_results, state_results = results
    timed_block = partial(layout.timed_block, backward=backward)
    carry = state_results[-1].shape[2], layout.rows, layout.padded[2]
    needed = _vector_memory(layout, [*timed, *timed_results], shared, [*states, *state_results])
    call = pallas.pallas_call(
        program,
        grid=layout.grid,
        in_specs=[
            *map(timed_block, timed),
            *map(layout.shared_block, shared),
            *map(layout.state_block, states),
            layout.length_block(),
            layout.reset_block(backward),
        ],
        out_specs=[*map(timed_block, timed_results), *map(layout.state_block, state_results)],
        out_shape=[*timed_results, *state_results],
        scratch_shapes=[tpu.VMEM(carry, state_results[-1].dtype)],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=needed if needed > SCOPED else None,
        ),
        name=name,
        interpret=interpret,
    )
    return call(*timed, *shared, *states, *marks)


def _vector_memory(layout: Layout, timed: Sequence[Any], shared: Sequence[Any], states: Sequence[Any]) -> int:
    """An upper bound of the bytes in use: two buffers for each block that changes, and the temporaries of a step."""
    row = 4 * layout.rows * layout.padded[2]  # of a state
    streamed = sum(
        layout.rows * layout.padded[2] * layout.block * each.shape[3] * each.dtype.itemsize for each in timed
    )
    resident = sum(prod(each.shape[2:]) * each.dtype.itemsize for each in shared)
    fields = sum(each.shape[2] for each in states)
    return resident + 2 * (streamed + row * fields) + temporary(layout.rows, layout.units) + (1 << 20)


def _resident(pointwise: Pointwise, weights: Weights, units: int) -> int:
    """Bytes of R of a head of `units`, in the kernel's dtype."""
    itemsize = 4 if weights.R.dtype == jnp.float16 else weights.R.dtype.itemsize
    return pointwise.gates * itemsize * units**2


def _shared(layout: Layout, R: Array, *vectors: Array) -> list[Array]:
    """The arrays that all sequences of a group share."""
    return [layout.recurrent(R), *map(layout.vectors, vectors)]


def _stored(tree: PyTree) -> PyTree:
    """`tree` in dtypes that the kernel reads."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float16 else leaf, tree)
