"""The verb for trees: run a tree cell from the leaves to the roots of a batch of trees."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from ..arrays import States, select
from ..cell import describe
from .cell import AbstractTreeCell
from .pack import Trees


def recurse(cell: Any, trees: Any, table: Any) -> States:
    """The state of every node: `states = recurse(cell, trees, table)`, in slots as `pack` laid them out.

    cell    an `AbstractTreeCell`
    trees   a batch of trees, from `pack`
    table   [V, I], the inputs that the tokens of `trees` point to: an embedding, or a row for each node

    Returns states with a leading axis of N slots; empty ones are zeros, and `states.h[trees.roots]` are those of the
    roots. A node without a token has an input of zeros. Trees do not touch each other: NaN in one changes no state and
    no gradient by the inputs of another.

    The leaves are computed at once, then one step after the other. All matrix products by weights of inputs, and all
    gradients by weights, are single products over all nodes. In both directions states are gathered and never
    scattered: a node has one parent. Reverse mode alone; `jax.jvp` is refused.

    Raises at trace time, naming the argument, what was expected and what came.
    """
    _check(cell, trees, table)
    us_of_leaves, us = _project(cell, trees, table)
    absent = jax.lax.stop_gradient(cell.absent())
    arity = trees.children.shape[-1]
    none = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (arity, *leaf.shape)), absent)
    v = cell.combine(none, jnp.zeros(arity, bool))  # once for all leaves
    leaves = jax.vmap(lambda u: cell.pointwise(u, v, none))(us_of_leaves)
    inner = _climb((cell, leaves, us), trees)
    states = jax.tree.map(lambda *parts: jnp.concatenate(parts), leaves, inner)
    return select(jnp.asarray(trees.node) >= 0, states, jax.tree.map(jnp.zeros_like, states))


def _check(cell: Any, trees: Any, table: Any) -> None:
    if not isinstance(cell, AbstractTreeCell):
        raise TypeError(f"cell: expected a tree cell, such as NaryTreeLSTM, got {describe(cell)}")
    if not isinstance(trees, Trees):
        raise TypeError(f"trees: expected what `pack` returns, got {type(trees).__name__}")
    arity = trees.children.shape[-1]
    if cell.arity is not None and cell.arity != arity:
        raise ValueError(f"trees: expected an arity of {cell.arity} for {describe(cell)}, got {arity}. Pass it to pack")
    if not isinstance(table, (jax.Array, np.ndarray)):
        raise TypeError(f"table: expected an array [V, I], got {type(table).__name__}")
    step = cell.input_type()
    shape = (trees.vocabulary_size, *step.shape)
    if table.shape != shape:
        raise ValueError(
            f"table: expected {list(shape)} for {describe(cell)} and trees packed with "
            f"vocabulary_size={trees.vocabulary_size}, got {list(table.shape)}"
        )
    if table.dtype != step.dtype:
        raise TypeError(f"table: expected {step.dtype} for {describe(cell)}, got {table.dtype}")


def _project(cell: AbstractTreeCell, trees: Trees, table: Array) -> tuple[PyTree[Array], PyTree[Array]]:
    """What the leaves get from their inputs, and the inner nodes by steps."""
    steps, width, _ = trees.children.shape
    tokens = jnp.asarray(trees.tokens)
    if trees.bare:  # no product for inputs of zeros, but for one
        leaves = cell.project(_read(table, tokens[: trees.leaves]))
        us = cell.project(jnp.zeros((1, *table.shape[1:]), table.dtype))
        return leaves, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, width, *leaf.shape[1:])), us)
    us = cell.project(_read(table, tokens))
    inner = jax.tree.map(lambda leaf: leaf[trees.leaves :].reshape(steps, width, *leaf.shape[1:]), us)
    return jax.tree.map(lambda leaf: leaf[: trees.leaves], us), inner


def _read(table: Array, tokens: Int[Array, " M"]) -> Array:
    xs = table[jnp.maximum(tokens, 0)]
    return select(tokens >= 0, xs, jnp.zeros_like(xs))


Arguments = tuple[AbstractTreeCell, States, PyTree[Array]]  # the cell, states of the leaves, us of the inner nodes


@eqx.filter_custom_vjp
def _climb(arguments: Arguments, trees: Trees) -> States:
    """The states of the inner nodes, [S W, ...]."""
    return _forward(arguments, trees)[0]


class _Kept(NamedTuple):
    """What the backward half needs of the forward half: the states of all slots and one absent, and all v."""

    states: States
    vs: PyTree[Array]


def _forward(arguments: Arguments, trees: Trees) -> tuple[States, _Kept]:
    cell, leaves, us = arguments
    steps, width, _ = trees.children.shape
    first, absent = trees.leaves, cell.absent()
    states = jax.tree.map(
        lambda leaf, one: jnp.concatenate([leaf, jnp.broadcast_to(one, (steps * width + 1, *one.shape))]),
        leaves,
        absent,
    )

    def step(states: States, given: tuple) -> tuple[States, PyTree[Array]]:
        number, u, slots = given
        children = _gather(states, slots)
        v = jax.vmap(cell.combine)(children, slots < first + steps * width)
        computed = jax.vmap(cell.pointwise)(u, v, children)
        return _write(states, computed, first + number * width), v

    slots = jnp.asarray(trees.children)
    states, vs = jax.lax.scan(step, states, (jnp.arange(steps), us, slots))
    return jax.tree.map(lambda leaf: leaf[first:-1], states), _Kept(states, vs)


@_climb.def_fwd
def _climb_forward(perturbed: PyTree, arguments: Arguments, trees: Trees) -> tuple[States, _Kept]:
    del perturbed
    return _forward(arguments, trees)


@_climb.def_bwd
def _climb_backward(kept: _Kept, dstates: States, perturbed: PyTree, arguments: Arguments, trees: Trees) -> PyTree:
    """The cotangents of the cell, of the leaves and of us.

    A step adds to the cotangent of its nodes what their parents left for them, and leaves its own for its children,
    in the places of `trees.children`. The weights come after, when the cotangents of all nodes are known.
    """
    del perturbed
    cell, leaves, us = arguments
    steps, width, arity = trees.children.shape
    dstates = _fill(dstates, kept.states, steps * width)
    slots = jnp.asarray(trees.children)
    present = slots < trees.leaves + steps * width
    parents = jnp.asarray(trees.parents)
    by_step = lambda leaf: leaf.reshape(steps, width, *leaf.shape[1:])  # noqa: E731
    places = jax.tree.map(lambda leaf: jnp.zeros((steps * width * arity + 1, *leaf.shape[1:]), leaf.dtype), leaves)

    def step(places: States, given: tuple) -> tuple[States, tuple]:
        number, dstate, above, u, v, slots, present = given
        dstate = jax.tree.map(jnp.add, dstate, _gather(places, above))
        children = _gather(kept.states, slots)
        _, pull = jax.vjp(jax.vmap(cell.pointwise), u, v, children)
        du, dv, by_pointwise = pull(dstate)
        _, pull = jax.vjp(lambda children: jax.vmap(cell.combine)(children, present), children)
        (by_combine,) = pull(dv)
        dchildren = jax.tree.map(lambda one, other: _flat(one + other), by_pointwise, by_combine)
        return _write(places, dchildren, number * width * arity), (dstate, du, dv)

    given = (
        jnp.arange(steps),
        jax.tree.map(by_step, dstates),
        by_step(parents[trees.leaves :]),
        us,
        kept.vs,
        slots,
        present,
    )
    places, (dstates, dus, dvs) = jax.lax.scan(step, places, given, reverse=True)
    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    children = _gather(kept.states, _flat(slots))
    by_combine = jax.vjp(
        lambda weights: jax.vmap(eqx.combine(weights, static).combine)(children, _flat(present)), weights
    )[1](jax.tree.map(_flat, dvs))[0]
    by_pointwise = jax.vjp(
        lambda weights: jax.vmap(eqx.combine(weights, static).pointwise)(*jax.tree.map(_flat, (us, kept.vs)), children),
        weights,
    )[1](jax.tree.map(_flat, dstates))[0]
    dcell = jax.tree.map(jnp.add, by_combine, by_pointwise)
    return dcell, _gather(places, parents[: trees.leaves]), dus


def _fill(dstates: PyTree, states: States, size: int) -> States:
    """`dstates` with zeros where nothing depends on a field, and there is None."""
    fill = lambda leaf, cotangent: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype) if cotangent is None else cotangent  # noqa: E731
    return jax.tree.map(fill, states, dstates, is_leaf=lambda leaf: leaf is None)


def _gather(states: States, slots: Int[Array, "..."]) -> States:
    return jax.tree.map(lambda leaf: leaf[slots], states)


def _write(states: States, new: States, at: Any) -> States:
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
    return jax.tree.map(write, states, new)


def _flat(leaf: Array) -> Array:
    """The two leading axes as one."""
    return leaf.reshape(-1, *leaf.shape[2:])
