"""The reference kernel: both halves in plain JAX. The oracle, the fallback on any platform, the place to read first."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...arrays import select
from . import products
from .contract import AbstractKernel, Cotangents, Pointwise, Sequences, Trajectory, Weights, carried
from .products import Marks, Pulled


class Reference(AbstractKernel):
    """A scan forward, a scan in reverse, and each big product once, outside of both.

    The states are all that `backward` needs: it rebuilds every gate in one product that is parallel in time.
    """

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        del pointwise, weights
        return None

    def describe(self, pointwise: Pointwise, weights: Weights) -> str:
        del pointwise, weights
        return "plain JAX, step by step"

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        del pointwise, weights
        return 0

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        batch = jax.vmap(partial(_run, pointwise), (None, 0))
        last, states = products.over_groups(batch, weights, sequences)
        kept = jnp.zeros((*states[0].shape[:3], keep, states[0].shape[3]), carried(weights))
        return Trajectory(tuple(leaf if look else None for leaf, look in zip(states, seen, strict=True)), last, kept)

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
        dlast = jnp.zeros_like(sequences.state) if dlast is None else dlast
        group = partial(_pull_group, pointwise, wanted)
        return products.over_groups(group, weights, sequences, trajectory.states, dstates, dlast)


def _run(
    pointwise: Pointwise, weights: Weights, sequence: Sequences
) -> tuple[Float[Array, "F H"], tuple[Float[Array, "T H"], ...]]:
    """The last state of one sequence, and all states, field by field."""

    def step(before: Array, inputs: tuple[Array, Marks]) -> tuple[Array, tuple[Array, ...]]:
        u, marks = inputs
        safe = products.safe(marks, weights.initial, before)
        after = pointwise(weights.gains, u, products.recurrent(weights.R, safe[0]), safe)
        if marks.held is not None:
            after = select(marks.held, before, after)
        return after, tuple(after)

    us = products.projection(weights, sequence.xs).astype(sequence.state.dtype)
    return jax.lax.scan(step, sequence.state, (us, products.marks(sequence)))


def _pull_group(
    pointwise: Pointwise,
    wanted: Cotangents,
    weights: Weights,
    sequences: Sequences,
    states: tuple[Float[Array, "B T H"], ...],
    dstates: tuple[Float[Array, "B T H"] | None, ...],
    dlast: Float[Array, "B F H"],
) -> Cotangents:
    """All cotangents of one group."""
    before = products.befores(weights, sequences, states)
    us = products.inputs(weights, sequences).astype(dlast.dtype)
    vs = products.recurrents(weights, before[:, :, 0])
    marks = jax.vmap(products.marks)(sequences)
    pulled = jax.vmap(partial(_pull, pointwise, weights))((us, vs, before, dstates, marks), dlast)
    return products.cotangents(wanted, weights, sequences, before[:, :, 0], pulled)


def _pull(pointwise: Pointwise, weights: Weights, over_time: PyTree, dlast: Float[Array, "F H"]) -> Pulled:
    """What the loop leaves of one sequence."""
    R = weights.R.astype(dlast.dtype)

    def step(carry: tuple[Array, ...], inputs: PyTree) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        dafter, dgains, dfresh = carry
        u, v, before, dstate, marks = inputs
        dafter = jnp.stack([d if seen is None else d + seen for d, seen in zip(dafter, dstate, strict=True)])
        moved, du, dv, dbefore = jax.vjp(pointwise, weights.gains, u, v, before)[1](dafter)
        (dh,) = jax.linear_transpose(partial(products.recurrent, R), before[0])(dv)
        dbefore = dbefore.at[0].add(dh)
        if marks.held is not None:  # the state is handed through, and nothing else moved
            du, dv, moved = select(marks.held, jax.tree.map(jnp.zeros_like, (du, dv, moved)), (du, dv, moved))
            dbefore = select(marks.held, dafter, dbefore)
        if marks.reset is not None:
            none = jnp.zeros_like(dbefore)
            fresh, dbefore = select(marks.reset, (dbefore, none), (none, dbefore))
            dfresh = dfresh + fresh
        return (dbefore, dgains + moved, dfresh), (du, dv)

    start = dlast, jnp.zeros_like(weights.gains), jnp.zeros_like(dlast)
    (dstate, dgains, dfresh), (du, dv) = jax.lax.scan(step, start, over_time, reverse=True)
    return Pulled(du, dv, dgains, dfresh, dstate)
