"""How far back a loss learns: the norm of its gradient, lag by lag."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from .. import check
from ..arrays import State
from ..cell import AbstractCell, AbstractLinearCell, Hidden, describe
from ..engines.auto import Auto
from ..unroll import unroll
from .trajectory import enter, steps

Loss = Callable[[State, Any], Float[Array, ""]]  # (last state, ys) -> scalar


def gradient_by_lag(
    loss: Loss, cell: Any, state: State | None, xs: Any, *, lags: int | None = None, engine: Any = Auto()
) -> Float[Array, " K"]:
    """The norm of dL/ds_{T-k} for every lag k from 0 to `lags`; s_0 is the state before the first step.

    loss              `(last, ys) -> scalar`, on what `unroll` returns
    cell, state, xs   as in `rnnjax.unroll`
    lags              at most T; None: T
    engine            any that runs a plain cell, or for a linear cell also `Associative`. What a state did is measured
                      by a disturbance of zero added to it at every step, which leaves a kernel nothing to trace

    One pass backward: of states it keeps what that pass keeps, of Jacobians nothing. Fast decay is vanishing, growth is
    exploding; `examine` says so.
    """
    state, xs = enter(cell, state, xs)
    T = steps(xs)
    lags = T if lags is None else lags
    if not 0 <= lags <= T:
        raise ValueError(f"lags: expected from 0 to the T={T} steps of xs, got {lags}. Pass a longer sequence")
    disturbed = DisturbedLinearCell(cell=cell) if isinstance(cell, AbstractLinearCell) else DisturbedCell(cell)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), state)

    def disturb(start: State, disturbances: PyTree[Array]) -> Float[Array, ""]:
        return judge(loss, *unroll(disturbed, start, (xs, disturbances), engine=engine))

    first, rest = jax.grad(disturb, (0, 1))(state, zeros)
    norms = jnp.concatenate([_norms(jax.tree.map(lambda leaf: leaf[None], first)), _norms(rest)])
    return norms[::-1][: lags + 1]


def gradient_by_input(
    loss: Loss, part: Any, state: State | None, xs: Any, *, engine: Any = Auto()
) -> Float[Array, " T"]:
    """The norm of dL/dx_{T-k} for every lag k from 0 to T - 1: what each input still does to the loss.

    Arguments as in `gradient_by_lag`, but `part` may be any cell or network, or a function with its state, and the
    engine any that runs it; `xs` must be floating.
    """
    xs = check.sequence(xs)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(xs)):
        raise TypeError(f"xs: expected floating arrays, by which to differentiate, got {check.show(xs)}")
    gradient = jax.grad(lambda xs: judge(loss, *unroll(part, state, xs, engine=engine)))(xs)
    return _norms(gradient)[::-1]


class DisturbedCell(AbstractCell):
    """A cell whose inputs are pairs (x, d), d being added to the state after the step."""

    cell: AbstractCell

    def input_type(self) -> tuple[PyTree[jax.ShapeDtypeStruct], State]:
        return self.cell.input_type(), jax.eval_shape(self.cell.initial)

    def initial(self) -> State:
        return self.cell.initial()

    def project(self, xs: tuple[PyTree[Array], State]) -> tuple[PyTree[Array], State]:
        return self.cell.project(xs[0]), xs[1]

    def step(self, state: State, u: tuple[PyTree[Array], State]) -> State:
        return jax.tree.map(jnp.add, self.cell.step(state, u[0]), u[1])

    def readout(self, states: Any, xs: tuple[PyTree[Array], State]) -> PyTree[Array]:
        return self.cell.readout(states, xs[0])


class DisturbedLinearCell(DisturbedCell, AbstractLinearCell):
    """The same of a linear cell, which it leaves linear."""

    cell: AbstractLinearCell
    start: None = None

    def coefficients(self, u: tuple[PyTree[Array], Hidden]) -> tuple[Array, Array]:
        a, b = self.cell.coefficients(u[0])
        return a, b + u[1].h


def judge(loss: Loss, last: State, ys: PyTree[Array]) -> Float[Array, ""]:
    """The loss, once it is seen to be a scalar that looks at what it was given."""
    program, out = jax.make_jaxpr(loss, return_shape=True)(last, ys)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"loss: expected a real scalar of (last, ys), got {check.show(out)}")
    seen = set(program.jaxpr.invars)
    for equation in program.jaxpr.eqns:
        if any(not isinstance(variable, Literal) and variable in seen for variable in equation.invars):
            seen.update(equation.outvars)
    (result,) = program.jaxpr.outvars
    if isinstance(result, Literal) or result not in seen:
        raise ValueError(
            f"loss: expected one that depends on the last state or the outputs, but {describe(loss)} uses neither. "
            "Write it as a function of (last, ys)"
        )
    return loss(last, ys)


def _norms(tree: PyTree[Array]) -> Float[Array, " T"]:
    """The norm over all that a step has, step by step."""
    squares = [(jnp.abs(leaf) ** 2).reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))
