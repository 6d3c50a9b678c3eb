"""The reference kernel: both halves in plain JAX. The oracle, the fallback on any platform, the place to read first."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..arrays import cast, select
from ..cell import affine, recur
from ..kernel import AbstractKernel, Cotangents, Pointwise, Sequences, Trajectory, Weights, carried


class Reference(AbstractKernel):
    """A scan forward, a scan in reverse, and each big product once, outside of both.

    The states are all that `backward` needs: it rebuilds every gate in one product that is parallel in time.
    """

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        del pointwise, weights
        return None

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        del pointwise, weights
        return 0

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        batch = jax.vmap(partial(_run, pointwise), (None, 0))
        last, states = _over_groups(batch, weights, sequences)
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
        return _over_groups(group, weights, sequences, trajectory.states, dstates, dlast)


def _over_groups(function: Callable[..., PyTree], weights: Weights, *arrays: PyTree) -> PyTree:
    """`function` of the weights and the arrays of each group; a weight that leads with 1 belongs to all of them."""
    shared = jax.tree.map(lambda leaf: leaf.shape[0] == 1, weights)
    own = jax.tree.map(lambda leaf, one: leaf[0] if one else leaf, weights, shared)
    axes = jax.tree.map(lambda one: None if one else 0, shared)
    return jax.vmap(function, (axes, *(0 for _ in arrays)))(own, *arrays)


class _Marks(NamedTuple):
    """Which steps are held, and before which the state starts afresh; None where there are none."""

    held: Bool[Array, "..."] | None
    reset: Bool[Array, "..."] | None


def _marks(sequence: Sequences) -> _Marks:
    """The marks of all steps; a reset from `length` on is none."""
    if sequence.length is None:
        return _Marks(None, sequence.resets)
    valid = jnp.arange(sequence.xs.shape[0], dtype=sequence.length.dtype) < sequence.length
    return _Marks(~valid, None if sequence.resets is None else sequence.resets & valid)


def _safe(marks: _Marks, initial: Float[Array, "F H"], before: Float[Array, "... F H"]) -> Float[Array, "... F H"]:
    """What the steps see as the state before: `initial` after a reset, and where nothing looks at the outcome."""
    for mark in marks:
        if mark is not None:
            before = select(mark, jnp.broadcast_to(initial, before.shape), before)
    return before


# Forward, of one sequence


def _run(
    pointwise: Pointwise, weights: Weights, sequence: Sequences
) -> tuple[Float[Array, "F H"], tuple[Float[Array, "T H"], ...]]:
    """The last state, and all states, field by field."""

    def step(before: Array, inputs: tuple[Array, _Marks]) -> tuple[Array, tuple[Array, ...]]:
        u, marks = inputs
        safe = _safe(marks, weights.initial, before)
        after = pointwise(weights.gains, u, recur(weights.R, safe[0]), safe)
        if marks.held is not None:
            after = select(marks.held, before, after)
        return after, tuple(after)

    us = affine(weights.W, weights.b, sequence.xs).astype(sequence.state.dtype)
    return jax.lax.scan(step, sequence.state, (us, _marks(sequence)))


# Backward, of one group


class _Steps(NamedTuple):
    """What the reverse scan leaves of every step."""

    du: Float[Array, "*B T G H"]
    dv: Float[Array, "*B T G H"]
    dgains: Float[Array, "*B T K H"]
    dfresh: Float[Array, "*B T F H"] | None  # what reached the initial state through a reset


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
    before = jax.vmap(partial(_before, weights.initial))(sequences, jnp.stack(states, 2))
    pull = jax.vmap(partial(_pull_sequence, pointwise, weights))
    dstate, steps = pull(sequences, before, dstates, dlast)

    dxs = None
    if wanted.xs:
        W = weights.W.astype(dlast.dtype)
        dxs = jnp.einsum("btgh,igh->bti", steps.du, W).astype(sequences.xs.dtype)
    dweights = _weight_cotangents(weights, sequences.xs, before, steps, wanted.weights)
    return Cotangents(dweights, dxs, dstate if wanted.state else None)


def _weight_cotangents(
    weights: Weights, xs: Float[Array, "B T I"], before: Float[Array, "B T F H"], steps: _Steps, wanted: Weights
) -> Weights:
    """Each weight's is one product, or one sum, over batch and time."""
    xs, h = cast((xs, before[:, :, 0].astype(weights.R.dtype)), before.dtype)  # as rounded as the products saw them
    blocks = weights.R.shape[:2]
    heads = h.reshape(*h.shape[:2], *blocks), steps.dv.reshape(*steps.dv.shape[:3], *blocks)
    products: tuple[Callable[[], Array], ...] = (
        lambda: jnp.einsum("bti,btgh->igh", xs, steps.du),
        lambda: steps.du.sum((0, 1)),
        lambda: jnp.einsum("btnd,btgne->ndge", *heads),
        lambda: steps.dgains.sum((0, 1)),
        lambda: jnp.zeros_like(weights.initial) if steps.dfresh is None else steps.dfresh.sum((0, 1)),
    )
    made: list[Any] = [product() if want else None for product, want in zip(products, wanted, strict=True)]
    return Weights(*made)


def _before(initial: Float[Array, "F H"], sequence: Sequences, states: Float[Array, "T F H"]) -> Float[Array, "T F H"]:
    """The states that the steps saw before them."""
    shifted = jnp.concatenate([sequence.state[None], states[:-1]])
    return _safe(_marks(sequence), initial, shifted)


def _pull_sequence(
    pointwise: Pointwise,
    weights: Weights,
    sequence: Sequences,
    before: Float[Array, "T F H"],
    dstates: tuple[Float[Array, "T H"] | None, ...],
    dlast: Float[Array, "F H"],
) -> tuple[Float[Array, "F H"], _Steps]:
    """The cotangent of the initial state, and what each step leaves, of one sequence."""
    R = weights.R.astype(dlast.dtype)
    us = affine(weights.W, weights.b, sequence.xs).astype(dlast.dtype)
    vs = jax.vmap(partial(recur, weights.R))(before[:, 0])

    def step(dafter: Array, inputs: PyTree) -> tuple[Array, _Steps]:
        u, v, before, dstate, marks = inputs
        dafter = jnp.stack([d if seen is None else d + seen for d, seen in zip(dafter, dstate, strict=True)])
        dgains, du, dv, dbefore = jax.vjp(pointwise, weights.gains, u, v, before)[1](dafter)
        (dh,) = jax.linear_transpose(partial(recur, R), before[0])(dv)
        dbefore = dbefore.at[0].add(dh)
        dfresh = None
        if marks.held is not None:  # the state is handed through, and nothing else moved
            du, dv, dgains = select(marks.held, jax.tree.map(jnp.zeros_like, (du, dv, dgains)), (du, dv, dgains))
            dbefore = select(marks.held, dafter, dbefore)
        if marks.reset is not None:
            none = jnp.zeros_like(dbefore)
            dfresh, dbefore = select(marks.reset, (dbefore, none), (none, dbefore))
        return dbefore, _Steps(du, dv, dgains, dfresh)

    return jax.lax.scan(step, dlast, (us, vs, before, dstates, _marks(sequence)), reverse=True)
