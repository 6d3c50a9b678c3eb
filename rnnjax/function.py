"""A plain function `(state, x) -> (state, y)` as a cell."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import check
from .arrays import PyTree, State, States
from .cell import AbstractCell, describe
from .checked import Checked
from .compiled import compiled

StepFunction: TypeAlias = Callable[[State, PyTree[Array]], tuple[State, PyTree[Array]]]


class FunctionState(NamedTuple):
    """The state of a plain function, and its last output."""

    state: State
    y: PyTree[Array]


class FunctionCell(AbstractCell):
    """A function `(state, x) -> (state, y)` as a cell: its state includes y, for the readout."""

    function: Callable[..., Any]  # the arrays it closes over are leaves of it
    start: FunctionState
    input: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    run: Callable[..., Any] = eqx.field(static=True)  # runs it for `unroll`, compiled for this function alone
    __name__: str = eqx.field(static=True)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.input

    def initial(self) -> FunctionState:
        return self.start

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def step(self, state: FunctionState, u: PyTree[Array]) -> FunctionState:
        return FunctionState(*self.function(state.state, u))

    def readout(self, states: States, xs: PyTree[Array]) -> PyTree[Array]:
        del xs
        return states.y


def as_cell(
    function: Checked[StepFunction], state: State, xs: PyTree[Array], run: Callable[..., PyTree]
) -> FunctionCell:
    """`function` as a cell that starts from `state` and is run by `run`. Raises unless it keeps the state's shapes."""
    if isinstance(function, type):
        raise TypeError(f"cell: expected a cell, got the class {function.__name__}. Write {function.__name__}(...)")
    if not callable(function):
        raise TypeError(
            f"cell: expected a cell, a network or a function (state, x) -> (state, y), got {function!r}. "
            "Write def step(state, x): return state, y"
        )
    if state is None:
        raise ValueError(
            f"state: expected the state before the first step, since {describe(function)} is a function. "
            "Pass it as the second argument of unroll"
        )
    if isinstance(function, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        raise TypeError(
            f"cell: expected a function (state, x) -> (state, y), got {describe(function)} of Equinox, which takes the "
            "input first and returns the state alone. Write def step(state, x): state = cell(x, state); return state, "
            "state"
        )
    state = jax.tree.map(jnp.asarray, state)
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    given = jax.eval_shape(lambda: state)
    answer = jax.eval_shape(lambda *arguments: function(*arguments), given, x)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise ValueError(
            f"cell: expected {describe(function)} to return (state, y), got {check.show(answer)}. "
            "Return the new state and the output of the step; without an output, (state, None)"
        )
    if not check.alike(answer[0], given):
        raise ValueError(
            f"cell: expected {describe(function)} to return a state like the one it was given, {check.show(given)}, "
            f"got {check.show(answer[0])}. "
            "Return the shapes and dtypes of the state given, or start from a state like the one returned"
        )
    start = FunctionState(state, jax.tree.map(jnp.zeros_like, answer[1]))
    traced, run = _trace(function, given, x, run)
    return FunctionCell(traced, start, x, run, describe(function))


class _Known(NamedTuple):
    """The compiled programs of one function, which exist as long as it does."""

    run: Callable[..., Any]
    forms: dict[str, Any]  # its traced forms, by the text of their programs


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def _trace(
    function: Callable[..., Any], state: PyTree, x: PyTree, run: Callable[..., Any]
) -> tuple[Any, Callable[..., Any]]:
    """`function` as a pytree of the arrays it closes over, and the compiled `run`.

    It is traced at every call, since it may close over different arrays, or tracers, than before. Everything else in
    the pytree is the same object from call to call, so that nothing is compiled again.
    """
    # A new function each time: JAX would reuse the trace of the same function, with its old arrays.
    traced: Any = eqx.filter_closure_convert(lambda *arguments: function(*arguments), state, x)
    arrays, form = eqx.partition(traced, eqx.is_array)
    try:
        known = _KNOWN.get(function) or _KNOWN.setdefault(function, _Known(compiled(run), {}))
    except TypeError:  # no hash, or no weak reference to it
        return traced, run
    return eqx.combine(arrays, known.forms.setdefault(str(form.jaxpr), form)), known.run
