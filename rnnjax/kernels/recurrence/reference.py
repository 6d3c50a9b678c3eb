"""The reference kernel: both halves in plain JAX. Oracle, fallback on any platform, and the file to read first."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...arrays import PyTree, select
from ...marks import StepMarks
from ...refusal import Refusal
from . import products
from .contract import (
    AbstractKernel,
    Cotangents,
    KernelPlan,
    NeedsGradient,
    Pointwise,
    PreparedWeights,
    Sequences,
    Trajectory,
    Weights,
    carried,
)
from .products import LoopCotangents

W = TypeVar("W", Weights, PreparedWeights)


class Reference(AbstractKernel):
    """A scan forward, a scan in reverse, and each large product once, outside of both. It runs every gated cell."""

    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        del weights
        return ReferencePlan(pointwise)


@dataclass(frozen=True)
class ReferencePlan(KernelPlan):
    """`backward` needs the states alone: it recomputes every gate by one product for all of time."""

    pointwise: Pointwise

    def __str__(self) -> str:
        return "reference kernel, step by step in plain JAX"

    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        batch = jax.vmap(partial(run, self.pointwise, products.projection, _recurrent), (None, 0))
        last, states = products.over_groups(batch, weights, sequences)
        residuals = jnp.zeros((*states[0].shape[:3], residual_size, states[0].shape[3]), carried(weights))
        used = tuple(leaf if is_used else None for leaf, is_used in zip(states, used_outputs, strict=True))
        return Trajectory(used, last, residuals)

    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        dlast = jnp.zeros_like(sequences.state) if dlast is None else dlast
        group = partial(_pull_group, self.pointwise, needs_gradient)
        return products.over_groups(group, weights, sequences, trajectory.states, dstates, dlast)


def run(
    pointwise: Pointwise,
    projection: Callable[[W, Float[Array, "T I"]], Float[Array, "T G H"]],
    recurrent: Callable[[W, Float[Array, " H"]], Float[Array, "G H"]],
    weights: W,
    sequence: Sequences,
) -> tuple[Float[Array, "F H"], tuple[Float[Array, "T H"], ...]]:
    """The last state of one sequence, and all states, field by field, by the two products with the weights."""

    def step(before: Array, inputs: tuple[Array, StepMarks]) -> tuple[Array, tuple[Array, ...]]:
        u, marks = inputs
        safe = products.safe(marks, weights.initial, before)
        after = pointwise(weights.unit_parameters, u, recurrent(weights, safe[0]), safe)
        if marks.ignored is not None:
            after = select(marks.ignored, before, after)
        return after, tuple(after)

    us = projection(weights, sequence.xs).astype(sequence.state.dtype)
    return jax.lax.scan(step, sequence.state, (us, products.marks(sequence)))


def _recurrent(weights: Weights, h: Float[Array, " H"]) -> Float[Array, "G H"]:
    return products.recurrent(weights.R, h)


def _pull_group(
    pointwise: Pointwise,
    needs_gradient: NeedsGradient,
    weights: Weights,
    sequences: Sequences,
    states: tuple[Float[Array, "B T H"], ...],
    dstates: tuple[Float[Array, "B T H"] | None, ...],
    dlast: Float[Array, "B F H"],
) -> Cotangents:
    """All cotangents of one group."""
    before = products.previous_states(weights, sequences, states)
    us = products.inputs(weights, sequences).astype(dlast.dtype)
    vs = products.recurrents(weights, before[:, :, 0])
    marks = jax.vmap(products.marks)(sequences)
    loop = jax.vmap(partial(_pull, pointwise, weights))((us, vs, before, dstates, marks), dlast)
    return products.cotangents(needs_gradient, weights, sequences, before[:, :, 0], loop)


def _pull(pointwise: Pointwise, weights: Weights, over_time: PyTree, dlast: Float[Array, "F H"]) -> LoopCotangents:
    """The loop of the backward half for one sequence."""
    R = weights.R.astype(dlast.dtype)

    def step(carry: tuple[Array, ...], inputs: PyTree) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        dafter, dunit_parameters, dinitial = carry
        u, v, before, dstate, marks = inputs
        dafter = jnp.stack([d if used is None else d + used for d, used in zip(dafter, dstate, strict=True)])
        dparameters, du, dv, dbefore = jax.vjp(pointwise, weights.unit_parameters, u, v, before)[1](dafter)
        (dh,) = jax.linear_transpose(partial(products.recurrent, R), before[0])(dv)
        dbefore = dbefore.at[0].add(dh)
        if marks.ignored is not None:  # the state is passed on, and nothing else has a cotangent
            cotangents = du, dv, dparameters
            du, dv, dparameters = select(marks.ignored, jax.tree.map(jnp.zeros_like, cotangents), cotangents)
            dbefore = select(marks.ignored, dafter, dbefore)
        if marks.reset is not None:
            none = jnp.zeros_like(dbefore)
            at_reset, dbefore = select(marks.reset, (dbefore, none), (none, dbefore))
            dinitial = dinitial + at_reset
        return (dbefore, dunit_parameters + dparameters, dinitial), (du, dv)

    start = dlast, jnp.zeros_like(weights.unit_parameters), jnp.zeros_like(dlast)
    (dstate, dunit_parameters, dinitial), (du, dv) = jax.lax.scan(step, start, over_time, reverse=True)
    return LoopCotangents(du, dv, dunit_parameters, dinitial, dstate)
