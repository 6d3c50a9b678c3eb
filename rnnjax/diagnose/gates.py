"""What gates do over time, and which units are stuck."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Float

from ..arrays import State, cast
from ..cell import AbstractDiagonalCell, AbstractGatedCell, describe, recur
from ..engines.auto import Auto
from .trajectory import befores, enter

SMALL = 0.01  # a derivative by a gate's input that moves nothing


def gates(cell: Any, state: State | None, xs: Any, *, engine: Any = Auto()) -> Float[Array, "T K H"]:
    """The K sigmoids of a gated cell at every step, in the order in which its `pointwise` takes them.

    Of `LSTM` these are i, f, o; of `GRU` z, r. They are found in the traced `pointwise`, of any `AbstractGatedCell`;
    one without a sigmoid is refused. Arguments as in `jacobians`.
    """
    state, xs = enter(cell, state, xs)
    if not isinstance(cell, AbstractGatedCell):
        raise TypeError(f"cell: expected an AbstractGatedCell, whose gates are known, got {describe(cell)}")

    def one(inputs: Any) -> Float[Array, "K H"]:
        u, before = inputs
        h = before.h
        arguments = cast(cell.gains, h.dtype), u.astype(h.dtype), recur(cell.recurrent_weight, h), before
        found = _sigmoids(cell.pointwise, *arguments)
        if not found:
            raise ValueError(f"cell: expected a cell with gates, which are sigmoids, but {describe(cell)} has none")
        return jnp.stack(found)

    return jax.vmap(one)((cell.project(xs), befores(cell, state, xs, engine)))


def stuck(cell: Any, state: State | None, xs: Any, *, engine: Any = Auto()) -> Float[Array, "T H"] | None:
    """1 where a unit cannot be moved: no input u_g of any of its gates moves any field of its state by 1 %.

    Saturated units, whose nonlinearities are all at their ends, and dead ones of `jax.nn.relu`. None for a cell in
    which a unit's inputs cannot be told apart: it takes an `AbstractGatedCell` or an `AbstractDiagonalCell`, the last
    axis of whose u counts the units. Arguments as in `jacobians`.
    """
    state, xs = enter(cell, state, xs)
    us = cell.project(xs)
    units = {leaf.shape[-1] for leaf in (*jax.tree.leaves(us), *jax.tree.leaves(state)) if leaf.ndim}
    if not isinstance(cell, AbstractGatedCell | AbstractDiagonalCell) or not isinstance(us, Array) or len(units) > 1:
        return None

    def one(inputs: Any) -> Float[Array, " H"]:
        u, before = inputs
        derivative = jax.linearize(lambda u: cell.step(before, u), u)[1]
        rows = jnp.eye(u[..., 0].size, dtype=u.dtype).reshape(-1, *u.shape[:-1], 1)
        moved = jax.vmap(derivative)(jnp.broadcast_to(rows, (len(rows), *u.shape)))
        largest = [jnp.abs(leaf).max(0) for leaf in jax.tree.leaves(moved)]
        return (jnp.stack(largest).max(0) < SMALL).astype(largest[0].dtype)

    return jax.vmap(one)((us, befores(cell, state, xs, engine)))


def _sigmoids(function: Callable[..., Any], *arguments: Any) -> list[Array]:
    """The values of all sigmoids in `function` of these arguments."""
    found: list[Array] = []
    _evaluate(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments), found)
    return found


def _evaluate(program: ClosedJaxpr, arguments: list[Array], found: list[Array]) -> list[Array]:
    """Run a program, through what is jitted in it, and add its sigmoids to those `found`."""
    values = dict(zip(program.jaxpr.invars, arguments, strict=True))
    values |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    read = lambda variable: variable.val if isinstance(variable, Literal) else values[variable]  # noqa: E731
    for equation in program.jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr")
        if isinstance(inner, ClosedJaxpr):
            outputs = _evaluate(inner, inputs, found)
        else:
            bound = equation.primitive.bind(*inputs, **equation.params)
            outputs = bound if equation.primitive.multiple_results else [bound]
        if equation.primitive is jax.lax.logistic_p:
            found.append(outputs[0])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars]
