"""The verb for trees: run a tree cell from the leaves to the roots of a batch of trees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..arrays import PyTree, States, look_up, select
from ..cell import describe
from ..checked import Checked
from ..compiled import compiled
from .cell import AbstractTreeCell
from .climb import climb
from .pack import Trees


def recurse(cell: Checked[AbstractTreeCell], trees: Checked[Trees], table: Checked[Array]) -> States:
    """The state of every node: `states = recurse(cell, trees, table)`, in slots as `pack_trees` laid them out.

    cell    an `AbstractTreeCell`
    trees   a batch of trees, from `pack_trees`
    table   [V, I], the inputs that the tokens of `trees` point to: an embedding, or a row for each node

    Returns states with a leading axis of N slots; empty ones are zeros, and `states.h[trees.roots]` are those of the
    roots. A node without a token has an input of zeros. Trees are independent: NaN in one changes no state and no
    gradient by the inputs of another.

    The leaves are computed at once, then the inner nodes step by step. The products of inputs and weights, and the
    weights' gradients, are single products over all nodes. In both directions states are gathered and never scattered,
    since a node has one parent. Only reverse mode is supported; `jax.jvp` raises an error.

    Raises at trace time, naming the argument, the expected value and the given one.
    """
    _check(cell, trees, table)
    return _run(cell, trees, table)


@compiled
def _run(cell: AbstractTreeCell, trees: Trees, table: Array) -> States:
    us_of_leaves, us = _project(cell, trees, table)
    absent = jax.lax.stop_gradient(cell.absent())
    arity = trees.children.shape[-1]
    none = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (arity, *leaf.shape)), absent)
    v = cell.combine(none, jnp.zeros(arity, bool))  # once for all leaves
    leaves = jax.vmap(lambda u: cell.pointwise(u, v, none))(us_of_leaves)
    inner = climb((cell, leaves, us), trees)
    states = jax.tree.map(lambda *parts: jnp.concatenate(parts), leaves, inner)
    return select(jnp.asarray(trees.node) >= 0, states, jax.tree.map(jnp.zeros_like, states))


def _check(cell: Any, trees: Any, table: Any) -> None:
    if not isinstance(cell, AbstractTreeCell):
        raise TypeError(
            f"cell: expected a tree cell, such as NaryTreeLSTM, got {describe(cell)}. Use unroll for cells of sequences"
        )
    if not isinstance(trees, Trees):
        raise TypeError(
            f"trees: expected what `pack_trees` returns, got {type(trees).__name__}. Write pack_trees([tree], ...)"
        )
    arity = trees.children.shape[-1]
    if cell.arity is not None and cell.arity != arity:
        raise ValueError(
            f"trees: expected an arity of {cell.arity} for {describe(cell)}, got {arity}. "
            f"Pass arity={cell.arity} to pack_trees"
        )
    if not isinstance(table, (jax.Array, np.ndarray)):
        raise TypeError(
            f"table: expected an array [V, I], got {type(table).__name__}. "
            "Write jnp.asarray(table), or pass the weight of an embedding"
        )
    step = cell.input_type()
    shape = (trees.vocabulary_size, *step.shape)
    if table.shape != shape:
        raise ValueError(
            f"table: expected {list(shape)} for {describe(cell)} and trees packed with "
            f"vocabulary_size={trees.vocabulary_size}, got {list(table.shape)}. "
            "Pass a row of the cell's input_size for each token of the vocabulary"
        )
    if table.dtype != step.dtype:
        raise TypeError(
            f"table: expected {step.dtype} for {describe(cell)}, got {table.dtype}. Write table.astype({step.dtype})"
        )


def _project(cell: AbstractTreeCell, trees: Trees, table: Array) -> tuple[PyTree[Array], PyTree[Array]]:
    """The us of the leaves, and those of the inner nodes by steps."""
    steps, width, _ = trees.children.shape
    tokens = jnp.asarray(trees.tokens)
    if trees.bare:  # the inputs of all inner nodes are zeros: one product serves all
        leaves = cell.project(_read(table, tokens[: trees.leaves]))
        us = cell.project(jnp.zeros((1, *table.shape[1:]), table.dtype))
        return leaves, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, width, *leaf.shape[1:])), us)
    us = cell.project(_read(table, tokens))
    inner = jax.tree.map(lambda leaf: leaf[trees.leaves :].reshape(steps, width, *leaf.shape[1:]), us)
    return jax.tree.map(lambda leaf: leaf[: trees.leaves], us), inner


def _read(table: Array, tokens: Int[Array, " M"]) -> Array:
    xs = look_up(table, jnp.maximum(tokens, 0))
    return select(tokens >= 0, xs, jnp.zeros_like(xs))
