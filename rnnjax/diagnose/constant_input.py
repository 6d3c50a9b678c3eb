"""A cell at a constant input, as a map from state to state: its arguments, checked."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import check, flat
from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from .trajectory import Step, vector_step


def one_step(cell: AbstractCell, x: PyTree[Array]) -> PyTree[Array]:
    """`project` of the input of one step."""
    over_time = cell.project(jax.tree.map(lambda leaf: leaf[None], x))
    return jax.tree.map(lambda leaf: leaf[0], over_time)


def at_input(cell: AbstractCell, x: PyTree[Array], state: State) -> Step:
    """The step with input `x`, as a function of a state like `state`, packed into a real vector."""
    return vector_step(cell, one_step(cell, x), state)


def check_cell(cell: object) -> AbstractCell:
    """`cell`. Raises for a network, whose layers have a state each."""
    if not isinstance(cell, AbstractCell):
        raise TypeError(
            f"cell: expected a cell, whose step maps a state to the next, got {describe(cell)}. "
            "Pass one of a network's cells; of a Constrained network, its `cell`"
        )
    return cell


def check_input(cell: AbstractCell, x: object) -> PyTree[Array]:
    """`x` as arrays. Raises unless it is the input of one step."""
    arrays, expected = jax.tree.map(jnp.asarray, x), cell.input_type()
    if not check.alike(arrays, expected):
        raise ValueError(
            f"x: expected the input of one step of {describe(cell)}, {check.show(expected)}, got {check.show(arrays)}. "
            "Pass it in this dtype and without an axis of time, such as xs[0]"
        )
    return arrays


def check_starts(cell: AbstractCell, starts: object) -> State:
    """`starts` as arrays. Raises unless they are states of the cell, one or more, and finite."""
    expected = jax.eval_shape(cell.initial)
    jax.eval_shape(flat.pack, expected)  # a state without a floating number raises
    arrays = jax.tree.map(jnp.asarray, starts)
    leaves = jax.tree.leaves(arrays)
    count = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), expected)
    if count == 0 or not check.alike(arrays, batch):
        raise ValueError(
            f"starts: expected states of {describe(cell)}, {check.show(expected)}, along a first axis of one or more, "
            f"got {check.show(arrays)}. Pass states that the cell visits: the second output of networks.AllStates(cell)"
        )
    finite = np.ones(count, bool)
    for leaf in filter(flat.is_inexact, leaves):
        finite &= np.isfinite(np.asarray(leaf)).reshape(count, -1).all(1)
    if not finite.all():
        raise ValueError(
            f"starts: expected finite states, got {(~finite).sum()} of {count} with NaN or infinity. "
            "Drop these, or correct the weights and inputs that they come from"
        )
    return arrays
