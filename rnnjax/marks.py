"""Which steps of a sequence count, and where its state starts afresh. Every array here is in running order.

Ignored steps are ignored in the gradient too. A `where` after the fact is not enough: its zero cotangent still meets
the derivative at the ignored value, and 0 * NaN is NaN. So whatever is ignored is replaced by a safe value *before*
the cell sees it, and selected away after.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .arrays import Flags, Length, PyTree, State, select
from .compiled import compiled


class StepMarks(NamedTuple):
    """The marks of one step, or over time of all steps; None where no step has that mark."""

    ignored: Flags | Bool[Array, ""] | None
    reset: Flags | Bool[Array, ""] | None


class Marks(NamedTuple):
    """What an engine honours: steps from `length` on leave the state alone; `resets` put it back to `initial` first."""

    length: Length | None
    resets: Flags | None
    initial: State

    def over_time(self, T: int) -> StepMarks:
        """The marks step by step, to be scanned along with the inputs."""
        return StepMarks(None if self.length is None else ~counted(self.length, T), self.resets)


def counted(length: Length, T: int) -> Flags:
    """True at the steps before `length`."""
    return jnp.arange(T) < length


def blank(tree: PyTree, length: Length | None, T: int) -> PyTree:
    """`tree` over time with zeros from `length` on."""
    if length is None:
        return tree
    return select(counted(length, T), tree, jax.tree.map(jnp.zeros_like, tree))


def fill(tree: PyTree, length: Length | None, T: int) -> PyTree:
    """`tree` over time with its first step, which is a valid one, in place of those from `length` on.

    No constant would do: zero is no safe input to a function that takes its logarithm. Zeros where no step is valid.
    """
    if length is None or T == 0:
        return tree

    def leaf(values: Array) -> Array:
        first = jax.lax.stop_gradient(values[:1])
        safe = jnp.where(length > 0, first, jnp.zeros_like(first))
        return select(counted(length, T), values, jnp.broadcast_to(safe, values.shape))

    return jax.tree.map(leaf, tree)


def flip(tree: PyTree, length: Length | None) -> PyTree:
    """`tree` over time with its first `length` steps in reverse order; its own inverse on those steps.

    A flip and a roll, whose gradients are again a flip and a roll; a gather would differentiate into a scatter.
    """
    shift = 0 if length is None else length
    return jax.tree.map(lambda leaf: jnp.roll(jnp.flip(leaf, 0), shift, 0), tree)


class Quarantine(NamedTuple):
    """Safe inputs and state, and which steps (and the last state) were touched by what was not finite."""

    xs: PyTree[Array]
    state: State
    touched: Flags
    last_touched: Bool[Array, ""]


def quarantine(xs: PyTree[Array], state: State, length: Length | None, resets: Flags, initial: State) -> Quarantine:
    """Set aside inputs that are not finite and a state that is NaN, up to the reset that ends their influence.

    What comes before a reset cannot reach what comes after, but a NaN before it would reach the weights' gradient.
    So steps between a bad value and the next reset run on safe values here, and `mark_touched` shows them as NaN after.
    """
    T = resets.shape[0]
    bad = ~_finite(xs)
    bad_state = jnp.asarray([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(state) if _inexact(leaf)]).any()
    steps = jnp.arange(T)
    last_reset = jax.lax.cummax(jnp.where(resets, steps, -1))
    seen = bad if length is None else bad & counted(length, T)  # what fills the padding touches nothing
    last_bad = jax.lax.cummax(jnp.where(seen, steps, jnp.where(bad_state, -1, -2)))
    touched = last_bad >= last_reset
    return Quarantine(
        select(bad, jax.tree.map(jnp.zeros_like, xs), xs),
        select(bad_state, initial, state),
        touched,
        touched[-1],
    )


@compiled  # for a debugger of NaN, which looks at what comes out of each program: these may be selected away
def mark_touched(touched: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    """`tree` with NaN where `touched`, in the leaves that can hold one."""
    invalid = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan) if _inexact(leaf) else leaf, tree)
    return select(touched, invalid, tree)


def isolate(function: Callable[..., PyTree[Array]], *arguments: PyTree[Array]) -> PyTree[Array]:
    """`function` of arrays over time; a step at which they are not finite gives NaN and passes no gradient on."""
    bad = ~_finite(arguments)
    return mark_touched(bad, function(*select(bad, jax.tree.map(jnp.zeros_like, arguments), arguments)))


def _inexact(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _finite(tree: PyTree[Array]) -> Bool[Array, "..."]:
    """At which steps all is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _inexact(leaf)]
    reduced = [jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
    return jnp.stack(reduced).all(0) if reduced else jnp.asarray(True)
