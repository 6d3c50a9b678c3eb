"""The large products of both halves, each computed once for all of time, outside of the loop; one group at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...arrays import PyTree, cast, select
from ...gated_cell import affine, recur
from ...marks import StepMarks
from .contract import Cotangents, NeedsGradient, PreparedWeights, Sequences, Weights, carried
from .pointwise.step import Step


def over_groups(function: Callable[..., PyTree], weights: Weights | PreparedWeights, *arrays: PyTree) -> PyTree:
    """`function` of the weights and the arrays of each group; a weight that leads with 1 belongs to all of them."""
    shared = jax.tree.map(lambda leaf: leaf.shape[0] == 1, weights)
    own = jax.tree.map(lambda leaf, one: leaf[0] if one else leaf, weights, shared)
    axes = jax.tree.map(lambda one: None if one else 0, shared)
    return jax.vmap(function, (axes, *(0 for _ in arrays)))(own, *arrays)


def marks(sequence: Sequences) -> StepMarks:
    """The marks of all steps of one sequence; a reset from `length` on has no effect."""
    if sequence.length is None:
        return StepMarks(None, sequence.resets)
    valid = jnp.arange(sequence.xs.shape[0], dtype=sequence.length.dtype) < sequence.length
    return StepMarks(~valid, None if sequence.resets is None else sequence.resets & valid)


def safe(marks: StepMarks, initial: Float[Array, "F H"], before: Float[Array, "... F H"]) -> Float[Array, "... F H"]:
    """The state before each step as the step gets it: `initial` after a reset, and at ignored steps."""
    for mark in marks:
        if mark is not None:
            before = select(mark, jnp.broadcast_to(initial, before.shape), before)
    return before


def projection(weights: Weights, xs: Float[Array, "T I"]) -> Float[Array, "T G H"]:
    """`us` of one sequence."""
    us = affine(weights.W.reshape(-1, weights.b.size), weights.b.reshape(-1), xs)
    return us.reshape(len(us), *weights.b.shape)


def recurrent(R: Float[Array, "N D G D"], h: Float[Array, " H"]) -> Float[Array, "G H"]:
    """`v` of one step."""
    heads, units, gates, _ = R.shape
    flat = (units, gates * units) if heads == 1 else (heads, units, gates * units)
    return recur(R.reshape(flat), h, gates)


def inputs(weights: Weights, sequences: Sequences) -> Float[Array, "B T G H"]:
    """`us` of all sequences, in the dtype of the weights."""
    return jax.vmap(partial(projection, weights))(sequences.xs)


def previous_states(
    weights: Weights, sequences: Sequences, states: tuple[Float[Array, "B T H"], ...]
) -> Float[Array, "B T F H"]:
    """The state before each step, as the step got it."""

    def one(sequence: Sequences, states: Float[Array, "T F H"]) -> Float[Array, "T F H"]:
        shifted = jnp.concatenate([sequence.state[None], states[:-1]])
        return safe(marks(sequence), weights.initial, shifted)

    return jax.vmap(one)(sequences, jnp.stack(states, 2))


def recurrents(weights: Weights, h: Float[Array, "B T H"]) -> Float[Array, "B T G H"]:
    """`vs` of all sequences, rounded as in the forward half."""
    return jax.vmap(jax.vmap(partial(recurrent, weights.R)))(h)


def pre_activations(
    step: Step, weights: Weights, sequences: Sequences, h: Float[Array, "B T H"]
) -> Float[Array, "B T C H"]:
    """The pre-activations of all steps; `h` is that of the state before each step."""
    us, vs = inputs(weights, sequences).astype(carried(weights)), recurrents(weights, h)
    return jnp.stack(
        step.sums([us[:, :, gate] for gate in range(us.shape[2])], [vs[:, :, gate] for gate in range(us.shape[2])]), 2
    )


def by_gate(
    step: Step, pre_activations: Float[Array, "S B T C H"]
) -> tuple[Float[Array, "S B T G H"], Float[Array, "S B T G H"]]:
    """The pre-activations with a product with the input, and those with a product with the state."""
    every = tuple(range(len(step.pre_activations)))

    def chosen(which: tuple[int, ...]) -> Array:
        return pre_activations if which == every else jnp.stack([pre_activations[..., each, :] for each in which], -2)

    return chosen(step.by_input), chosen(step.by_state)


def step_inputs(
    step: Step, weights: Weights, sequences: Sequences, states: tuple[Float[Array, "S B T H"] | None, ...]
) -> tuple[Float[Array, "S B T F H"], Float[Array, "S B T C H"]]:
    """The previous states and the pre-activations of all steps of all groups."""
    before = over_groups(previous_states, weights, sequences, states)
    return before, over_groups(partial(pre_activations, step), weights, sequences, before[:, :, :, 0])


class LoopCotangents(NamedTuple):
    """The results of the loop of the backward half."""

    du: Float[Array, "B T G H"]
    dv: Float[Array, "B T G H"]
    dunit_parameters: Float[Array, "B K H"]
    dinitial: Float[Array, "B F H"]  # what reached the initial state through resets
    dstate: Float[Array, "B F H"]


def cotangents(
    needs_gradient: NeedsGradient,
    weights: Weights,
    sequences: Sequences,
    h: Float[Array, "B T H"],
    loop: LoopCotangents,
) -> Cotangents:
    """The cotangents that are needed, of one group; `h` is that of the state before each step.

    The cotangent of a weight is one product or one sum over batch and time, of operands in the dtype of `loop.du`.
    """
    du, dv, total = loop.du, loop.dv, partial(jnp.einsum, preferred_element_type=loop.dstate.dtype)
    xs, h = cast((sequences.xs, h.astype(weights.R.dtype)), du.dtype)  # rounded as in the forward half
    heads, units = weights.R.shape[:2]
    products: dict[str, Callable[[], Array]] = {
        "W": lambda: total("bti,btgh->igh", xs, du),
        "b": lambda: du.sum((0, 1), dtype=loop.dstate.dtype),
        "R": lambda: total(
            "btnd,btgne->ndge", h.reshape(*h.shape[:2], heads, units), dv.reshape(*dv.shape[:3], heads, units)
        ),
        "unit_parameters": lambda: loop.dunit_parameters.sum(0),
        "initial": lambda: loop.dinitial.sum(0),
    }
    dweights: dict[str, Any] = {
        name: product() if getattr(needs_gradient.weights, name) else None for name, product in products.items()
    }
    dxs = None
    if needs_gradient.xs:
        dxs = total("btgh,igh->bti", du, weights.W.astype(du.dtype)).astype(sequences.xs.dtype)
    return Cotangents(Weights(**dweights), dxs, loop.dstate if needs_gradient.state else None)
