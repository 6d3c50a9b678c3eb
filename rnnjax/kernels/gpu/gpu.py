"""The kernel of GPUs: for each cell the fastest of the tiers that its weights fit into."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...kernel import AbstractKernel, Cotangents, Pointwise, Sequences, Trajectory, Weights, carried
from .. import products
from ..elementwise.step import Step, translate
from ..pallas import pallas, triton
from ..products import Pulled
from ..reference import Reference
from . import block, place
from .place import Shared
from .plan import Device, Plan, plan, warps

LACKING = frozenset({"round_even", "erf", "erfc"})  # of all operations


class GPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, in float32, bfloat16 or float16."""

    interpret: Any = eqx.field(static=True, default=False)

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        dtype = carried(weights)
        if dtype != jnp.float32 and not self.interpret:
            return f"The GPU kernel carries float32, and the cell {dtype}."
        step = translate(pointwise, dtype, weights.W.shape[-1])
        if isinstance(step, str):
            return f"The GPU kernel has no program for it: {step}."
        if lacking := sorted(step.operations() & LACKING):
            return f"The GPU kernel has no {' and no '.join(lacking)}, which pointwise computes."
        made = plan(pointwise, weights, Device.current())
        return made if isinstance(made, str) else None

    def describe(self, pointwise: Pointwise, weights: Weights) -> str:
        return str(plan(pointwise, weights, Device.current()))

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        del pointwise, weights
        return 0

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        if 0 in sequences.xs.shape[:3]:
            return Reference().forward(pointwise, weights, sequences, keep, seen)
        S, B, T, _ = sequences.xs.shape
        H = weights.W.shape[-1]
        us = products.over_groups(products.inputs, weights, sequences)
        last = jax.ShapeDtypeStruct(sequences.state.shape, sequences.state.dtype)
        timed = last.update(shape=(S, B, T, H))
        results = place.Trajectory(tuple(timed if look else None for look in seen), last)
        call = _call("forward", block.forward, pointwise, weights, sequences, self.interpret)
        made = call(place.Forward(us, sequences.state), results)
        return Trajectory(made.states, made.last, jnp.zeros((S, B, T, keep, H), last.dtype))

    def backward(
        self,
        pointwise: Pointwise,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        wanted: Cotangents,
    ) -> Cotangents:
        if 0 in sequences.xs.shape[:3]:
            return Reference().backward(pointwise, weights, sequences, trajectory, dstates, dlast, wanted)
        S, B, T, _ = sequences.xs.shape
        H, gains, step = weights.W.shape[-1], pointwise.gains.num_leaves, _step(pointwise, weights)
        before = products.over_groups(products.befores, weights, sequences, trajectory.states)
        columns = products.over_groups(partial(products.columns, step), weights, sequences, before[:, :, :, 0])
        state = jax.ShapeDtypeStruct(sequences.state.shape, sequences.state.dtype)
        dcolumns = jax.ShapeDtypeStruct((S, B, T, len(step.columns), H), weights.R.dtype)
        dgains = state.update(shape=(S, B, max(gains, 1), H))
        results = place.Pulled(dcolumns, dgains, None if sequences.resets is None else state, state)
        dlast = jnp.zeros(state.shape, state.dtype) if dlast is None else dlast
        call = _call("backward", block.backward, pointwise, weights, sequences, self.interpret)
        made = call(place.Backward(columns, before, dstates, dlast), results)
        dfresh = jnp.zeros_like(dlast) if made.dfresh is None else made.dfresh
        pulled = Pulled(*products.by_gate(step, made.dcolumns), made.dgains[:, :, :gains], dfresh, made.dstate)
        group = partial(products.cotangents, wanted)
        return products.over_groups(group, weights, sequences, before[:, :, :, 0], pulled)


def _call(
    half: str, body: Callable[..., None], pointwise: Pointwise, weights: Weights, sequences: Sequences, interpret: Any
) -> Callable[..., Any]:
    """The kernel over groups, heads and tiles of sequences, as a function of what it reads and of what it makes."""
    S, B = sequences.xs.shape[:2]
    made = plan(pointwise, weights, Device.current())
    assert isinstance(made, Plan), made
    heads, width = weights.R.shape[1], weights.W.shape[-1]
    tile = made.tile(S * heads, B)
    gains = weights.gains if weights.gains.shape[1] else jnp.zeros((1, 1, width), weights.gains.dtype)
    resets = None if sequences.resets is None else sequences.resets.astype(jnp.int32)
    shared = Shared(weights.R, gains, weights.initial, sequences.length, resets)

    def call(read: Any, results: Any) -> Any:
        kernel = pallas.pallas_call(
            partial(body, _step(pointwise, weights), tile),
            grid=(-(-B // tile.rows), heads, S),
            out_shape=results,
            compiler_params=triton.CompilerParams(num_warps=warps(tile), num_stages=1),
            name=f"rnnjax_{pointwise.name}_{half}",
            interpret=interpret,
        )
        return type(results)(*kernel(shared, read))

    return call


def _step(pointwise: Pointwise, weights: Weights) -> Step:
    step = translate(pointwise, carried(weights), weights.W.shape[-1])
    assert isinstance(step, Step), step
    return step
