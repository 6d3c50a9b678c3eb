"""How far back the gradient of a loss reaches: its norm, lag by lag."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import check, flat
from ..arrays import PyTree, State, States, count_steps
from ..cell import AbstractCell, AbstractLinearCell, Hidden, describe
from ..checked import Checked
from ..engine import AbstractEngine, check_engine
from ..engines.auto import Auto
from ..flat import is_inexact
from ..network import Layer
from ..refusal import Refusal
from ..unroll import unroll
from .trajectory import check_lags, enter

SequenceLoss: TypeAlias = Checked[Callable[[State, PyTree[Array]], Array]]  # (last, ys), as `unroll` returns -> scalar


def gradient_by_lag(
    loss: SequenceLoss,
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    lags: Checked[int | None] = None,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, " K"]:
    """The norm of dL/ds_{T-k} for every lag k from 0 to `lags`; s_0 is the state before the first step.

    loss              `(last, ys) -> scalar`, on what `unroll` returns
    cell, state, xs   as in `rnnjax.unroll`
    lags              at most T; None: T
    engine            any that runs a plain cell, or for a linear cell also `Associative`. The gradient is that by a
                      disturbance of zero, added to the state after every step, so no kernel can run the cell

    It takes one backward pass and its memory, and builds no Jacobians. Fast decay is vanishing, growth is exploding;
    `examine` reports both. NaN where states or loss are NaN, and at all lags from an overflow on.
    """
    state, xs = enter(cell, state, xs)
    T = count_steps(xs)
    lags = check_lags(lags, T)
    disturbed = DisturbedLinearCell(cell=cell) if isinstance(cell, AbstractLinearCell) else DisturbedCell(cell)
    floating, others = eqx.partition(state, eqx.is_inexact_array)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), floating)
    _insist(engine, disturbed, (xs, zeros))

    def disturb(start: PyTree[Array], disturbances: PyTree[Array]) -> Float[Array, ""]:
        return judge(loss, *unroll(disturbed, eqx.combine(start, others), (xs, disturbances), engine=engine))

    first, rest = jax.grad(disturb, (0, 1))(floating, zeros)
    norms = jnp.concatenate([_norms(jax.tree.map(lambda leaf: leaf[None], first)), _norms(rest)])
    return norms[::-1][: lags + 1]


def gradient_by_input(
    loss: SequenceLoss,
    layer: Checked[Layer],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, " T"]:
    """The norm of dL/dx_{T-k} for every lag k from 0 to T - 1: the influence of each input on the loss.

    Arguments as in `gradient_by_lag`, but `layer` may be any cell or network, or a function with its state, and the
    engine any that runs it; `xs` must be floating.
    """
    xs = check.sequence(xs)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(xs)):
        raise TypeError(
            f"xs: expected floating arrays, since they are differentiated, got {check.show(xs)}. "
            "Embed tokens first, and pass the vectors"
        )
    if count_steps(xs) == 0:
        raise ValueError("xs: expected at least one step, got none. Pass a longer sequence")
    gradient = jax.grad(lambda xs: judge(loss, *unroll(layer, state, xs, engine=engine)))(xs)
    return _norms(gradient)[::-1]


class DisturbedCell(AbstractCell):
    """A cell whose inputs are pairs (x, d), where d is added to the state after the step."""

    cell: AbstractCell

    def input_type(self) -> tuple[PyTree[jax.ShapeDtypeStruct], State]:
        like = jax.eval_shape(self.cell.initial)
        return self.cell.input_type(), jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, like)

    def initial(self) -> State:
        return self.cell.initial()

    def project(self, xs: tuple[PyTree[Array], State]) -> tuple[PyTree[Array], State]:
        return self.cell.project(xs[0]), xs[1]

    def step(self, state: State, u: tuple[PyTree[Array], State]) -> State:
        add = lambda leaf, disturbance: leaf if disturbance is None else leaf + disturbance  # noqa: E731
        return jax.tree.map(add, self.cell.step(state, u[0]), u[1], is_leaf=lambda leaf: leaf is None)

    @property
    def emits_states(self) -> bool:
        return self.cell.emits_states

    def emit(self, state: State, before: State, u: tuple[PyTree[Array], State]) -> PyTree[Array]:
        return self.cell.emit(state, before, u[0])

    def readout(self, states: States, xs: tuple[PyTree[Array], State]) -> PyTree[Array]:
        return self.cell.readout(states, xs[0])


class DisturbedLinearCell(DisturbedCell, AbstractLinearCell):
    """`DisturbedCell` for linear cells: it is linear, too."""

    cell: AbstractLinearCell
    initial_state: None = None

    def coefficients(self, u: tuple[PyTree[Array], Hidden]) -> tuple[Array, Array]:
        a, b = self.cell.coefficients(u[0])
        return a, b + u[1].h


def _insist(engine: Any, disturbed: DisturbedCell, inputs: Any) -> None:
    """Raise where the engine refuses the disturbed cell."""
    check_engine(engine)
    refusal = engine.plan(disturbed, inputs)
    if isinstance(refusal, Refusal):
        raise ValueError(
            f"engine: {refusal} The effect of a state is measured by a disturbance added to it, which makes a plain "
            f"cell of {describe(disturbed.cell)}. Pass engine=Scan(), or use gradient_by_input"
        )


def check_loss(loss: object) -> None:
    """Raise unless it is a function."""
    if not callable(loss):
        raise TypeError(
            f"loss: expected a function (last, ys) -> scalar, got {loss!r}. "
            "Write one, such as lambda last, ys: jnp.sum(ys**2)"
        )


def judge(loss: SequenceLoss, last: State, ys: PyTree[Array]) -> Float[Array, ""]:
    """The loss. Raises unless it is a real scalar that depends on its arguments."""
    check_loss(loss)
    program, out = jax.make_jaxpr(loss, return_shape=True)(last, ys)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"loss: expected a real scalar of (last, ys), got {check.show(out)}. "
            "Reduce it with jnp.sum or jnp.mean, and take the real part of complex values"
        )
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
    """The norm over all numbers of each step, divided by the largest first so that squares do not overflow."""
    sizes = jnp.concatenate([jnp.abs(part).reshape(len(part), -1) for part in flat.parts(tree)], 1)
    largest = sizes.max(1, keepdims=True)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return jnp.linalg.norm(sizes / scale, axis=1) * scale[:, 0]
