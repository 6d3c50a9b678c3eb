"""The values of gates over time, and units that are stuck."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..arrays import PyTree, State, largest
from ..cell import AbstractCell, AbstractDiagonalCell, describe
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..gated_cell import AbstractGatedCell, recur
from .trajectory import befores, enter

SMALL = 0.01  # times the largest derivative at rest: below, a unit is stuck
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")  # primitives that call a program once


def gates(
    cell: Checked[AbstractGatedCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, "T K H"]:
    """The K sigmoids of a gated cell at every step, in the order in which its `pointwise` takes them.

    For `LSTM` these are i, f, o; for `GRU` z, r. They are found in the traced `pointwise` of any `AbstractGatedCell`,
    including sigmoids inside of an activation, such as `jax.nn.silu`. A cell without a sigmoid is an error. Arguments
    as in `jacobians`.
    """
    state, xs = enter(cell, state, xs)
    if not isinstance(cell, AbstractGatedCell):
        raise TypeError(
            f"cell: expected an AbstractGatedCell, got {describe(cell)}. Pass a gated cell, such as LSTM or GRU"
        )

    def one(inputs: Any) -> Float[Array, "K H"]:
        u, before = inputs
        found = _sigmoids(cell.advance, u, recur(cell.recurrent_weight, before.h, len(cell.gates)), before)
        if not found:
            raise ValueError(
                f"cell: expected a cell with gates, which are sigmoids, but {describe(cell)} has none. "
                "Pass an LSTM, a GRU or another cell whose pointwise calls jax.nn.sigmoid"
            )
        return jnp.stack(found)

    return jax.vmap(one)((cell.project(xs), befores(cell, state, xs, engine)))


def stuck(
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, "T H"] | None:
    """1 where a unit is stuck: the largest |ds/du_g| over its gates g is below a hundredth of its value at rest.

    At rest means in the initial state with x = 0. Saturated units and dead units of `jax.nn.relu` are stuck; slow units
    are not. The result is None unless the cell is an `AbstractGatedCell` or an `AbstractDiagonalCell` and the last axis
    of u is that of the units. Arguments as in `jacobians`.
    """
    state, xs = enter(cell, state, xs)
    us = cell.project(xs)
    units = {leaf.shape[-1] for leaf in (*jax.tree.leaves(us), *jax.tree.leaves(state)) if leaf.ndim}
    if not isinstance(cell, AbstractGatedCell | AbstractDiagonalCell) or not isinstance(us, Array) or len(units) > 1:
        return None

    def steepest(inputs: Any) -> Float[Array, " H"]:
        u, before = inputs
        derivative = jax.linearize(lambda u: cell.step(before, u), u)[1]
        rows = jnp.eye(u[..., 0].size, dtype=u.dtype).reshape(-1, *u.shape[:-1], 1)
        moved = jax.vmap(derivative)(jnp.broadcast_to(rows, (len(rows), *u.shape)))
        return largest(jnp.concatenate([jnp.abs(part) for part in jax.tree.leaves(moved)]))

    resting = cell.project(jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:1]), xs))[0], cell.initial()
    moving = jax.vmap(steepest)((us, befores(cell, state, xs, engine)))
    return (~(moving > SMALL * steepest(resting))).astype(moving.dtype)  # where it is NaN a unit is stuck, too


def _sigmoids(function: Callable[..., Any], *arguments: Any) -> list[Array]:
    """The values of all sigmoids in `function` of these arguments."""
    found: list[Array] = []
    _evaluate(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments), found)
    return found


def _evaluate(program: ClosedJaxpr, arguments: list[Array], found: list[Array]) -> list[Array]:
    """Run a program, including the programs that it calls, and add its sigmoids to `found`."""
    values = dict(zip(program.jaxpr.invars, arguments, strict=True))
    values |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    read = lambda variable: variable.val if isinstance(variable, Literal) else values[variable]  # noqa: E731
    for equation in program.jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and isinstance(inner, ClosedJaxpr):
            outputs = _evaluate(inner, inputs, found)
        else:
            bound = equation.primitive.bind(*inputs, **equation.params)
            outputs = bound if equation.primitive.multiple_results else [bound]
        if equation.primitive is jax.lax.logistic_p:
            found.append(outputs[0])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars]
