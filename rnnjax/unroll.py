"""The verb: run a cell, a network or a plain function along one sequence."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from . import check
from .arrays import IntegerLike, PyTree, State, select
from .cell import AbstractCell, check_weights, describe
from .checked import Checked
from .compiled import compiled
from .engine import AbstractEngine, check_engine, plan_or_raise
from .engines.auto import Auto
from .function import StepFunction, as_cell
from .marks import Marks, blank, counted, fill, flip, mark_touched, quarantine
from .network import AbstractNetwork, Layer, Options

S = TypeVar("S")
X = TypeVar("X")
Y = TypeVar("Y")
R = TypeVar("R")


@overload
def unroll(
    cell: Layer,
    state: State | None,
    xs: PyTree[ArrayLike],
    *,
    length: IntegerLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    engine: AbstractEngine = Auto(),
    key: PRNGKeyArray | None = None,
) -> tuple[State, PyTree[Array]]: ...


@overload
def unroll(
    cell: Callable[[S, X], tuple[S, Y]],
    state: S,
    xs: X,
    *,
    length: IntegerLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    engine: AbstractEngine = Auto(),
    key: PRNGKeyArray | None = None,
) -> tuple[S, Y]: ...


def unroll(
    cell: Checked[Layer | StepFunction],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    length: Checked[IntegerLike | None] = None,
    resets: Checked[ArrayLike | None] = None,
    reverse: bool = False,
    engine: Checked[AbstractEngine] = Auto(),
    key: PRNGKeyArray | None = None,
) -> tuple[State, PyTree[Array]]:
    """Run `cell` along one sequence: `state, ys = unroll(cell, state, xs)`, as `jax.lax.scan` would.

    cell      a cell, a network (`rnnjax.networks`), or any function `(state, x) -> (state, y)`
    state     the state before the first step; None: `cell.initial()`. A function has none of its own: give it one
    xs        [T, I], one sequence, time first; `jax.vmap` makes it a batch
    length    an integer: steps from `length` on are ignored, their outputs are zero, and the last state is the one
              after step `length - 1`; 0 returns the initial state. A traced value is clamped to [0, T], a known one
              outside of it is an error
    resets    [T] booleans: where true, the state goes back to `cell.initial()` before that step (for a function: to
              `state`), in the order in which the steps are run
    reverse   run the valid part from its end to its start; outputs stay in time order
    engine    how to run along time; `Auto()` takes the first of its candidates that can
    key       randomness of a network that has some (dropout); None: nothing is dropped

    Returns the last state and the outputs, [T, ...]. What is ignored changes no value and no gradient, NaN or not:
    steps from `length` on are replaced before the cell sees them. Where there are `resets`, an input that is not
    finite, or a given state that is NaN, makes its step and those after it NaN and passes no gradient on, until the
    next reset. (What overflows on finite inputs ends at the reset in value only; its gradient is NaN.)

    Raises at trace time, naming the argument, what was expected and what came: ValueError for shapes (of weights, too),
    sizes and an engine that refuses the cell (with its reasons), TypeError for types and dtypes.
    """
    check_engine(engine)
    check.flags(reverse=reverse)
    is_part = isinstance(cell, AbstractCell | AbstractNetwork)
    xs = _or_name_weight(cell, _inputs, cell, xs) if is_part else check.sequence(xs)
    T = jax.tree.leaves(xs)[0].shape[0]
    options = Options(check.length(length, T), check.resets(resets, T), engine, key)
    if isinstance(cell, AbstractNetwork):
        return _unroll(partial(_run_network, cell, state), describe(cell), xs, options, reverse)
    if isinstance(cell, AbstractCell):
        return _unroll(partial(_run_cell, _COMPILED, cell, state), describe(cell), xs, options, reverse)
    function = as_cell(cell, state, xs, _run)
    run = partial(_run_cell, function.run, function, None)
    last, ys = _unroll(run, describe(function), xs, options, reverse)
    return last.state, ys


def _inputs(cell: Layer, xs: PyTree[ArrayLike]) -> PyTree[Array]:
    """`xs` as arrays over time that the cell or network takes."""
    return check.inputs(xs, cell.input_type(), describe(cell))


def _or_name_weight(cell: Layer, compute: Callable[..., R], *arguments: Any) -> R:
    """`compute(*arguments)`; where that fails because of a weight of another shape, the error names the weight.

    The shapes of inputs and states come from the weights.
    """
    try:
        return compute(*arguments)
    except (TypeError, ValueError):
        _check_all_weights(cell)
        raise


def _check_all_weights(cell: Layer) -> None:
    """Raise unless all weights of a cell, or of those of a network, have the shapes that their cells give for them."""
    is_cell = lambda node: isinstance(node, AbstractCell)  # noqa: E731
    for layer in filter(is_cell, jax.tree.leaves(cell, is_leaf=is_cell)):
        check_weights(layer)


def _unroll(
    run: Callable[[PyTree[Array], Options], tuple[State, PyTree[Array]]],
    name: str,
    xs: PyTree[Array],
    options: Options,
    reverse: bool,
) -> tuple[State, PyTree[Array]]:
    """`run` of checked inputs in running order: safe values in ignored steps before it, zeros there after it."""
    length, resets = options.length, options.resets
    T = jax.tree.leaves(xs)[0].shape[0]
    xs = fill(xs, length, T)
    if resets is not None and length is not None:
        resets = resets & counted(length, T)
    if reverse:
        xs, resets = flip((xs, resets), length)
    with jax.named_scope(name):
        last, ys = run(xs, options._replace(resets=resets))
    if reverse:
        ys = flip(ys, length)
    return last, blank(ys, length, T)


def _run_network(
    network: AbstractNetwork, state: State | None, xs: PyTree[Array], options: Options
) -> tuple[State, PyTree[Array]]:
    """Run a network, which unrolls its parts."""
    if state is None:
        state = _or_name_weight(network, network.initial)
    else:
        expected = jax.eval_shape(network.initial)
        state = _or_name_weight(network, check.state, state, expected, describe(network))
    return network.run(state, xs, options._replace(engine=options.engine.within(network)))


def _run_cell(
    run: Callable[..., Any], cell: AbstractCell, state: State | None, xs: PyTree[Array], options: Options
) -> tuple[State, PyTree[Array]]:
    """Run one cell by `run`, which is compiled `_run`."""
    initial = _or_name_weight(cell, cell.initial)
    if state is not None:
        state = _or_name_weight(cell, check.state, state, initial, describe(cell))
    start = initial if state is None else state
    return run(cell, start, xs, Marks(options.length, options.resets, initial), options.engine)


def _run(
    cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, engine: AbstractEngine
) -> tuple[State, PyTree[Array]]:
    """Run one cell in running order. What is not finite is kept apart where a reset may end its influence.

    Its weights are checked here: once for each program that is traced, and never where one is only run.
    """
    check_weights(cell)
    if jax.tree.leaves(xs)[0].shape[0] == 0:
        return state, cell.readout(jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), state), xs)
    plan = plan_or_raise(engine, cell, xs)
    if marks.resets is None:
        last, states = plan.run(cell, state, xs, marks)
        return last, cell.readout(states, xs)
    safe = quarantine(xs, state, marks.length, marks.resets, marks.initial)
    last, states = plan.run(cell, safe.state, safe.xs, marks)
    last = mark_touched(safe.last_touched, last)
    if marks.length is not None:
        last = select(marks.length > 0, last, state)
    return last, mark_touched(safe.touched, cell.readout(states, safe.xs))


_COMPILED = compiled(_run)
