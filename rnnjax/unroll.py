"""The verb: run a cell, a network or a plain function along one sequence."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from . import check
from .arrays import Flags, IntegerLike, PyTree, State, States, count_steps, select
from .cell import AbstractCell, describe
from .checked import Checked
from .compiled import compiled
from .engine import AbstractEngine, check_engine, plan_or_raise
from .engines.auto import Auto
from .function import StepFunction, as_cell
from .marks import Marks, blank, fill, flip, mark_touched, quarantine, valid_steps
from .mask import Packing
from .network import AbstractNetwork, Layer, Options
from .weights import check_weights, or_name_weight

S = TypeVar("S")
X = TypeVar("X")
Y = TypeVar("Y")
Run: TypeAlias = Callable[[PyTree[Array], Options], tuple[State, PyTree[Array]]]
Read: TypeAlias = Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]  # of emitted values, and inputs, over time


@overload
def unroll(
    cell: Layer,
    state: State | None,
    xs: PyTree[ArrayLike],
    *,
    length: IntegerLike | None = None,
    mask: ArrayLike | None = None,
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
    mask: ArrayLike | None = None,
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
    mask: Checked[ArrayLike | None] = None,
    resets: Checked[ArrayLike | None] = None,
    reverse: bool = False,
    engine: Checked[AbstractEngine] = Auto(),
    key: PRNGKeyArray | None = None,
) -> tuple[State, PyTree[Array]]:
    """Run `cell` along one sequence: `state, ys = unroll(cell, state, xs)`, as `jax.lax.scan` would.

    cell      a cell, a network (`rnnjax.networks`), or any function `(state, x) -> (state, y)`
    state     the state before the first step; None: `cell.initial()`. For a function it is required
    xs        [T, I], one sequence, time first; use `jax.vmap` for a batch
    length    an integer: steps from `length` on are ignored, their outputs are zero, and the last state is the one
              after step `length - 1`; 0 returns the initial state. A traced value is clamped to [0, T]; a known value
              outside of it is an error
    mask      [T] booleans: a step where it is false leaves the state unchanged, and its output is zero. Left padding is
              `mask=jnp.arange(T) >= padding`. With `length` too, a step must be valid by both. A reset at a masked step
              comes before the valid step that runs next, and layers that read a window of steps skip the masked ones
    resets    [T] booleans: where true, the state is set to `cell.initial()` before that step (for a function: to
              `state`), in the order in which the steps are run
    reverse   run the valid steps from the last to the first; outputs stay in time order
    engine    how to run along time; `Auto()` uses the first of its candidates that can run the cell
    key       for networks with random parts, such as dropout; None: nothing is dropped

    Returns the last state and the outputs, [T, ...]. Ignored steps, which are those from `length` on and masked ones,
    change no value and no gradient, even if they are NaN: they are replaced before the cell runs. With `resets`, an
    input that is not finite, or a given state that is NaN, makes its step and the steps after it NaN, up to the next
    reset, and passes on no gradient. (If finite inputs overflow, the values after the next reset are right, but the
    gradient is NaN.)

    Raises at trace time, naming the argument, the expected value and the given one: ValueError for shapes (of weights,
    too), sizes and an engine that refuses the cell (with its reasons), TypeError for types and dtypes.
    """
    check_engine(engine)
    check.flags(reverse=reverse)
    xs = or_name_weight(cell, _inputs, cell, xs) if isinstance(cell, Layer) else check.sequence(xs)
    T = count_steps(xs)
    options = Options(check.length(length, T), check.steps("resets", resets, T), engine, key)
    valid = check.steps("mask", mask, T)
    if isinstance(cell, AbstractNetwork):
        return _unroll(partial(_run_network, cell, state), describe(cell), xs, options, valid, reverse)
    if isinstance(cell, AbstractCell):
        return _unroll(partial(_run_cell, _COMPILED, cell, state), describe(cell), xs, options, valid, reverse)
    function = as_cell(cell, state, xs, _run)
    run = partial(_run_cell, function.run, function, None)
    last, ys = _unroll(run, describe(function), xs, options, valid, reverse)
    return last.state, ys


def unroll_to_states(
    cell: AbstractCell, state: State, xs: PyTree[Array], options: Options
) -> tuple[State, tuple[PyTree[Array], States]]:
    """The last state of a cell, and the pair of its outputs and its states over time; of what a network is run with."""
    return _run_cell(_COMPILED_TO_STATES, cell, state, xs, options)


def _inputs(cell: Layer, xs: PyTree[ArrayLike]) -> PyTree[Array]:
    """`xs` as arrays over time that the cell or network takes."""
    return check.inputs(xs, cell.input_type(), describe(cell))


def _unroll(
    run: Run, name: str, xs: PyTree[Array], options: Options, mask: Flags | None, reverse: bool
) -> tuple[State, PyTree[Array]]:
    """`run` of checked inputs, the valid steps of a mask brought together before it and spread after it."""
    if mask is None:
        return _unroll_packed(run, name, xs, options, reverse)
    packing = Packing.of(mask, options.length)
    resets = options.resets
    if resets is not None:
        if options.length is not None:
            resets = resets & valid_steps(options.length, resets.shape[0])
        resets = packing.resets(resets, reverse)
    packed = options._replace(length=packing.length, resets=resets)
    last, ys = _unroll_packed(run, name, packing.pack(xs), packed, reverse)
    return last, packing.spread(ys)


def _unroll_packed(
    run: Run, name: str, xs: PyTree[Array], options: Options, reverse: bool
) -> tuple[State, PyTree[Array]]:
    """`run` of checked inputs in running order: safe values in ignored steps before it, zeros there after it."""
    length, resets = options.length, options.resets
    T = count_steps(xs)
    xs = fill(xs, length, T)
    if resets is not None and length is not None:
        resets = resets & valid_steps(length, T)
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
    """Run a network, which unrolls its layers."""
    if state is None:
        state = or_name_weight(network, network.initial)
    else:
        expected = jax.eval_shape(network.initial)
        state = or_name_weight(network, check.state, state, expected, describe(network))
    return network.run(state, xs, options._replace(engine=options.engine.within(network)))


def _run_cell(
    run: Callable[..., Any], cell: AbstractCell, state: State | None, xs: PyTree[Array], options: Options
) -> tuple[State, PyTree[Array]]:
    """Run one cell by `run`, which is `_run`, compiled."""
    initial = or_name_weight(cell, cell.initial)
    if state is not None:
        state = or_name_weight(cell, check.state, state, initial, describe(cell))
    start = initial if state is None else state
    return run(cell, start, xs, Marks(options.length, options.resets, initial), options.engine)


def _run(
    cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, engine: AbstractEngine
) -> tuple[State, PyTree[Array]]:
    """Run one cell in running order."""
    return _run_and_read(cell.readout, cell, state, xs, marks, engine)


def _run_to_states(
    cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, engine: AbstractEngine
) -> tuple[State, tuple[PyTree[Array], States]]:
    """The same; the states over time stand beside the outputs."""

    def read(states: States, xs: PyTree[Array]) -> tuple[PyTree[Array], States]:
        return cell.readout(states, xs), states

    return _run_and_read(read, cell, state, xs, marks, engine)


def _run_and_read(
    read: Read, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, engine: AbstractEngine
) -> tuple[State, PyTree[Array]]:
    """Run one cell, and `read` what it emits. With resets, values that are not finite are replaced: see `quarantine`.

    Its weights are checked here: once for each program that is traced, and never when it runs.
    """
    check_weights(cell)
    if count_steps(xs) == 0:
        return state, read(_emitted_by_no_step(cell, state, xs), xs)
    plan = plan_or_raise(engine, cell, xs)
    if marks.resets is None:
        last, emitted = plan.run(cell, state, xs, marks)
        return last, read(emitted, xs)
    safe = quarantine(xs, state, marks.length, marks.resets, marks.initial)
    last, emitted = plan.run(cell, safe.state, safe.xs, marks)
    last = mark_touched(safe.last_touched, last)
    if marks.length is not None:
        last = select(marks.length > 0, last, state)
    return last, mark_touched(safe.touched, read(emitted, safe.xs))


def _emitted_by_no_step(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree[Array]:
    """Arrays over a time of no steps, like those that a step emits."""

    def one_step(state: State, xs: PyTree[Array]) -> PyTree[Array]:
        return cell.emit(state, state, jax.tree.map(lambda leaf: leaf[0], cell.project(xs)))

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), xs)
    emitted = jax.eval_shape(one_step, state, one)
    return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), emitted)


_COMPILED, _COMPILED_TO_STATES = compiled(_run), compiled(_run_to_states)
