"""The marks of a sequence: which steps are valid, and before which the state is reset. All arrays are in running order.

A step is valid or ignored. Ignored steps are ignored in the gradient, too. A `where` after the computation is not
enough: its zero cotangent is still multiplied by the derivative at the ignored value, and 0 * NaN is NaN. So ignored
inputs are replaced by safe values *before* the cell runs, and ignored results are replaced after.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .arrays import Flags, Length, PyTree, State, count_steps, select
from .compiled import compiled


class StepMarks(NamedTuple):
    """The marks of one step, or of all steps over time; None if no step has that mark."""

    ignored: Flags | Bool[Array, ""] | None
    reset: Flags | Bool[Array, ""] | None


class Marks(NamedTuple):
    """The marks that an engine applies: steps from `length` on leave the state alone; `resets` set it to `initial`."""

    length: Length | None
    resets: Flags | None
    initial: State

    def over_time(self, T: int) -> StepMarks:
        """The marks of all steps, to be scanned together with the inputs."""
        return StepMarks(None if self.length is None else ~valid_steps(self.length, T), self.resets)


def valid_steps(length: Length, T: int) -> Flags:
    """True at valid steps, which are those before `length`."""
    return jnp.arange(T) < length


def blank(tree: PyTree, length: Length | None, T: int) -> PyTree:
    """`tree` over time with zeros at ignored steps, which are those from `length` on."""
    if length is None:
        return tree
    return select(valid_steps(length, T), tree, jax.tree.map(jnp.zeros_like, tree))


def fill(tree: PyTree, length: Length | None, T: int) -> PyTree:
    """`tree` over time with its first step in place of ignored ones; zeros if no step is valid.

    A constant is not always safe: a function may take the logarithm of its input.
    """
    if length is None or T == 0:
        return tree

    def leaf(values: Array) -> Array:
        first = jax.lax.stop_gradient(values[:1])
        safe = jnp.where(length > 0, first, jnp.zeros_like(first))
        return select(valid_steps(length, T), values, jnp.broadcast_to(safe, values.shape))

    return jax.tree.map(leaf, tree)


def padded(xs: PyTree[Array], marks: Marks, steps: int) -> tuple[PyTree[Array], Marks]:
    """The inputs with their last step, which is safe, repeated `steps` times, and marks by which these are ignored."""
    if steps == 0:
        return xs, marks
    length = jnp.asarray(count_steps(xs)) if marks.length is None else marks.length
    resets = None if marks.resets is None else jnp.pad(marks.resets, (0, steps))  # none in ignored steps
    repeat = lambda leaf: jnp.pad(leaf, [(0, steps)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")  # noqa: E731
    return jax.tree.map(repeat, xs), marks._replace(length=length, resets=resets)


def flip(tree: PyTree, length: Length | None) -> PyTree:
    """`tree` over time with its first `length` steps in reverse order; its own inverse on those steps.

    A flip and a roll, whose gradients are again a flip and a roll; a gather would differentiate into a scatter.
    """
    shift = 0 if length is None else length
    return jax.tree.map(lambda leaf: jnp.roll(jnp.flip(leaf, 0), shift, 0), tree)


class Quarantine(NamedTuple):
    """Safe inputs and state, and which steps (and whether the last state) depend on values that are not finite."""

    xs: PyTree[Array]
    state: State
    touched: Flags
    last_touched: Bool[Array, ""]


def quarantine(xs: PyTree[Array], state: State, length: Length | None, resets: Flags, initial: State) -> Quarantine:
    """Replace inputs that are not finite, and a state that is NaN, by safe values, up to the next reset.

    Steps before a reset do not change the states after it, but NaN there would make the weights' gradient NaN. So the
    steps from a bad value to the next reset run on safe values, and `mark_touched` makes their results NaN afterwards.
    """
    T = resets.shape[0]
    bad = ~_finite(xs)
    # behind a barrier, since XLA takes seconds to fold this of a large state that is constant
    opaque = jax.lax.optimization_barrier(jax.lax.stop_gradient(state))
    bad_state = jnp.asarray([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(opaque) if _inexact(leaf)]).any()
    steps = jnp.arange(T)
    last_reset = jax.lax.cummax(jnp.where(resets, steps, -1))
    seen = bad if length is None else bad & valid_steps(length, T)  # ignored steps have no effect
    last_bad = jax.lax.cummax(jnp.where(seen, steps, jnp.where(bad_state, -1, -2)))
    touched = last_bad >= last_reset
    return Quarantine(
        select(bad, jax.tree.map(jnp.zeros_like, xs), xs),
        select(bad_state, initial, state),
        touched,
        touched[-1],
    )


@compiled  # `jax_debug_nans` checks the results of each program, and these NaN may be replaced later
def mark_touched(touched: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    """`tree` with NaN where `touched`, in its floating and complex leaves, there in both parts."""
    invalid = jax.tree.map(lambda leaf: jnp.full_like(leaf, _nan(leaf)) if _inexact(leaf) else leaf, tree)
    return select(touched, invalid, tree)


def poisoned(
    run: Callable[[State, PyTree[Array], Marks], tuple[State, PyTree[Array]]],
    state: State,
    xs: PyTree[Array],
    marks: Marks,
) -> tuple[State, PyTree[Array]]:
    """`run(state, xs, marks)` of safe values; NaN, in the gradient too, from the first that is not finite to a reset.

    For engines that compute many steps at once, where a value that is not finite would reach earlier steps.
    """
    resets = jnp.zeros(count_steps(xs), bool) if marks.resets is None else marks.resets
    safe = quarantine(xs, state, marks.length, resets, marks.initial)
    last, emitted = run(safe.state, safe.xs, marks)
    if marks.length is None:
        return _poison(safe.last_touched, last), _poison(safe.touched, emitted)
    any_valid = marks.length > 0
    last = select(any_valid, _poison(safe.last_touched & any_valid, last), state)
    return last, _poison(safe.touched & any_valid, emitted)


def _poison(touched: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    """`tree` with NaN where `touched`, in its gradient, too: a product with NaN does both, and `where` would not."""

    def leaf(values: Array) -> Array:
        if not _inexact(values):
            return values
        if jnp.iscomplexobj(values):
            return jax.lax.complex(leaf(values.real), leaf(values.imag))
        factor = jnp.where(touched, jnp.nan, 1.0).astype(values.dtype)
        return values * factor.reshape(factor.shape + (1,) * (values.ndim - factor.ndim))

    return jax.tree.map(leaf, tree)


def isolate(function: Callable[..., PyTree[Array]], *arguments: PyTree[Array]) -> PyTree[Array]:
    """`function` of arrays over time. A step whose arguments are not finite gives NaN and passes on no gradient."""
    bad = ~_finite(arguments)
    return mark_touched(bad, function(*select(bad, jax.tree.map(jnp.zeros_like, arguments), arguments)))


def _nan(leaf: Array) -> float | complex:
    return complex(jnp.nan, jnp.nan) if jnp.iscomplexobj(leaf) else jnp.nan


def _inexact(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _finite(tree: PyTree[Array]) -> Bool[Array, "..."]:
    """The steps at which all values are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _inexact(leaf)]
    reduced = [jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
    return jnp.stack(reduced).all(0) if reduced else jnp.asarray(True)
