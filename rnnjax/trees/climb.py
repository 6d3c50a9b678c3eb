"""The inner nodes of a batch of trees, step by step, and the gradient of that.

JAX's own transpose of the loop would scatter the cotangents of children into those of all slots, and sum the weights'
gradients, at every step. But each node has one parent: a step can write the cotangents of its children to a place that
no other step writes, from where each child gathers its own. The weights' gradients are computed last, by one product
for all nodes.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ..arrays import PyTree, States
from .cell import AbstractTreeCell
from .pack import Trees

Arguments = tuple[AbstractTreeCell, States, PyTree[Array]]  # the cell, states of the leaves, us of the inner nodes


class Residuals(NamedTuple):
    """The residuals of the forward half: the states of all slots and an absent one, and all v."""

    states: States
    vs: PyTree[Array]


@eqx.filter_custom_vjp
def climb(arguments: Arguments, trees: Trees) -> States:
    """The states of the inner nodes, [S W, ...]."""
    return _forward(arguments, trees)[0]


def _forward(arguments: Arguments, trees: Trees) -> tuple[States, Residuals]:
    cell, leaves, us = arguments
    steps, width, _ = trees.children.shape
    first, slots = trees.leaves, jnp.asarray(trees.children)

    def room(leaf: Array, absent: Array) -> Array:
        return jnp.concatenate([leaf, jnp.broadcast_to(absent, (steps * width + 1, *absent.shape))])

    def step(states: States, given: tuple) -> tuple[States, PyTree[Array]]:
        number, u, slots, present = given
        children = _gather(states, slots)
        v = jax.vmap(cell.combine)(children, present)
        computed = jax.vmap(cell.pointwise)(u, v, children)
        return _write(states, computed, first + number * width), v

    given = jnp.arange(steps), us, slots, _present(trees)
    states, vs = jax.lax.scan(step, jax.tree.map(room, leaves, cell.absent()), given)
    return jax.tree.map(lambda leaf: leaf[first:-1], states), Residuals(states, vs)


@climb.def_fwd
def _climb_forward(perturbed: PyTree, arguments: Arguments, trees: Trees) -> tuple[States, Residuals]:
    del perturbed
    return _forward(arguments, trees)


@climb.def_bwd
def _climb_backward(
    residuals: Residuals, dstates: Any, perturbed: PyTree, arguments: Arguments, trees: Trees
) -> PyTree:
    """The cotangents of the cell, of the states of the leaves and of us."""
    del perturbed
    cell, _, us = arguments
    steps, width, arity = trees.children.shape
    dstates = _fill(dstates, residuals.states, steps * width)
    places = jax.tree.map(
        lambda leaf: jnp.zeros((steps * width * arity + 1, *leaf.shape[1:]), leaf.dtype), residuals.states
    )  # the last stays zero: the cotangent that a root gets from its parent
    places, (dstates, dus, dvs) = _descend(cell, us, residuals, dstates, places, trees)
    dcell = _by_weights(cell, us, residuals, dstates, dvs, trees)
    return dcell, _gather(places, jnp.asarray(trees.parents[: trees.leaves])), dus


def _descend(
    cell: AbstractTreeCell, us: PyTree[Array], residuals: Residuals, dstates: States, places: States, trees: Trees
) -> tuple[States, tuple]:
    """From the roots down: the places of all children, and by steps the full cotangents of states, u and v."""
    steps, width, arity = trees.children.shape

    def by_step(leaf: Array) -> Array:
        return leaf.reshape(steps, width, *leaf.shape[1:])

    def step(places: States, given: tuple) -> tuple[States, tuple]:
        number, dstate, above, u, v, slots, present = given
        dstate = jax.tree.map(jnp.add, dstate, _gather(places, above))
        children = _gather(residuals.states, slots)
        _, pull = jax.vjp(jax.vmap(cell.pointwise), u, v, children)
        du, dv, by_pointwise = pull(dstate)
        _, pull = jax.vjp(lambda children: jax.vmap(cell.combine)(children, present), children)
        (by_combine,) = pull(dv)
        dchildren = jax.tree.map(lambda one, other: _flat(one + other), by_pointwise, by_combine)
        return _write(places, dchildren, number * width * arity), (dstate, du, dv)

    above = by_step(jnp.asarray(trees.parents[trees.leaves :]))
    numbers, slots = jnp.arange(steps), jnp.asarray(trees.children)
    given = numbers, jax.tree.map(by_step, dstates), above, us, residuals.vs, slots, _present(trees)
    return jax.lax.scan(step, places, given, reverse=True)


def _by_weights(
    cell: AbstractTreeCell, us: PyTree[Array], residuals: Residuals, dstates: States, dvs: PyTree[Array], trees: Trees
) -> AbstractTreeCell:
    """The gradient by the cell's weights, over all nodes at once."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    us, vs, dstates, dvs = jax.tree.map(_flat, (us, residuals.vs, dstates, dvs))
    children, present = _gather(residuals.states, _flat(jnp.asarray(trees.children))), _flat(_present(trees))

    def combine(weights: AbstractTreeCell) -> PyTree[Array]:
        return jax.vmap(eqx.combine(weights, static).combine)(children, present)

    def pointwise(weights: AbstractTreeCell) -> States:
        return jax.vmap(eqx.combine(weights, static).pointwise)(us, vs, children)

    (by_combine,), (by_pointwise,) = jax.vjp(combine, weights)[1](dvs), jax.vjp(pointwise, weights)[1](dstates)
    return jax.tree.map(jnp.add, by_combine, by_pointwise)


def _present(trees: Trees) -> Bool[Array, "S W K"]:
    return jnp.asarray(trees.children) < trees.tokens.shape[0]


def _fill(dstates: Any, states: States, size: int) -> States:
    """`dstates` with zeros in place of None, which stands for fields on which nothing depends."""

    def fill(leaf: Array, cotangent: Array | None) -> Array:
        return jnp.zeros((size, *leaf.shape[1:]), leaf.dtype) if cotangent is None else cotangent

    return jax.tree.map(fill, states, dstates, is_leaf=lambda leaf: leaf is None)


def _gather(states: States, slots: Int[Array, "..."]) -> States:
    return jax.tree.map(lambda leaf: leaf[slots], states)


def _write(states: States, new: States, at: Any) -> States:
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
    return jax.tree.map(write, states, new)


def _flat(leaf: Array) -> Array:
    """The two leading axes as one."""
    return leaf.reshape(-1, *leaf.shape[2:])
