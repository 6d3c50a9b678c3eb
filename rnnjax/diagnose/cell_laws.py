"""The laws of cells: each is two functions of (cell, state, xs) that must give the same values and gradients."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree, State, select
from ..cell import AbstractCell, AbstractDiagonalCell, AbstractLinearCell
from ..engine import AbstractEngine
from ..engines.associative import Associative
from ..engines.checkpointed import Checkpointed
from ..engines.chunked.chunked import Chunked
from ..engines.fused import Fused
from ..engines.newton.diagonal import Diagonal
from ..engines.newton.newton import Newton
from ..engines.scan import Scan
from ..gated_cell import AbstractGatedCell, recur
from ..unroll import unroll

T, CUT, BAD = 6, 4, 1  # steps; the first one after a length, a reset or a part; one whose input is NaN
ENGINES = {
    "Checkpointed": Checkpointed(segment=2),
    "Associative": Associative(),
    "Newton": Newton(),
    "Fused": Fused(),
    "Chunked": Chunked(size=2),
}
DIAGONAL = {"Newton(Diagonal())": Newton(Diagonal())}
Run = Callable[[AbstractCell, State, PyTree[Array]], PyTree]


class Law(NamedTuple):
    """What must be the same as what, and where to look in the cell if it is not."""

    name: str
    got: Run
    expected: Run
    look_at: str
    engine: AbstractEngine | None = None  # one that may refuse the cell


def laws_of(cell: AbstractCell) -> Iterator[Law]:
    """The laws of this cell, those of its family included."""
    yield Law("step", by_hand, whole, "project, step and readout must be pure functions of their arguments and weights")
    yield Law("streaming", in_two_parts, whole, EACH_STEP)
    yield Law("length", padded_with_nan, shorter, EACH_STEP)
    yield Law("resets", with_reset, as_two_sequences, f"initial must return the same state each time; {EACH_STEP}")
    yield Law("reverse", in_reverse, flipped, EACH_STEP)
    yield Law("vmap", mapped, one_by_one, "the batching rules of custom operations and callbacks in the cell")
    if isinstance(cell, AbstractGatedCell):
        advice = (
            "step, advance: leave them out, so that pointwise decides, or subclass AbstractCell, whose step is its own"
        )
        yield Law("pointwise", one_step, gated_step, advice)
    if isinstance(cell, AbstractLinearCell):
        advice = "step: it must be a * h + b of coefficients(u). Leave it out, or subclass AbstractCell"
        yield Law("coefficients", one_step, step_of(AbstractLinearCell), advice)
    if isinstance(cell, AbstractDiagonalCell):
        advice = "step: a unit sees the past of others. Make it elementwise in the state, or subclass AbstractCell"
        yield Law("diagonal", tangent_of_each_unit, tangent_unit_by_unit, advice)
    for name, engine in (ENGINES | DIAGONAL if isinstance(cell, AbstractDiagonalCell) else ENGINES).items():
        advice = "the laws above; if they hold, this may be a defect of rnnjax: report it with the cell"
        yield Law(f"engine {name}", partial(unroll, engine=engine), whole, advice, engine)


EACH_STEP = "project and readout must treat each step by itself; what a step needs of earlier ones belongs in the state"


run = partial(unroll, engine=Scan())


def whole(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    return run(cell, state, xs)


def by_hand(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    """Without an engine."""

    def step(before: State, u: PyTree[Array]) -> tuple[State, PyTree[Array]]:
        after = cell.step(before, u)
        return after, cell.emit(after, before, u)

    last, emitted = jax.lax.scan(step, state, cell.project(xs))
    return last, cell.readout(emitted, xs)


def one_step(cell: AbstractCell, state: State, xs: PyTree[Array]) -> State:
    return cell.step(state, _first(cell, xs))


def step_of(family: type) -> Run:
    """One step as the family of the cell defines it."""
    return lambda cell, state, xs: family.step(cell, state, _first(cell, xs))


def gated_step(cell: AbstractCell, state: State, xs: PyTree[Array]) -> State:
    """One step by `pointwise`, as kernels run it, whatever `step` and `advance` of the cell do."""
    assert isinstance(cell, AbstractGatedCell)
    v = recur(cell.recurrent_weight, state.h, len(cell.gates))
    return AbstractGatedCell.advance(cell, _first(cell, xs), v, state)


def _first(cell: AbstractCell, xs: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf[0], cell.project(xs))


def reached(cell: AbstractCell, xs: PyTree[Array]) -> State:
    """A state that the cell can be in."""
    return jax.lax.scan(lambda state, u: (cell.step(state, u), None), cell.initial(), cell.project(xs))[0]


def in_two_parts(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    state, first = run(cell, state, steps(xs, 0, CUT))
    state, second = run(cell, state, steps(xs, CUT, T))
    return state, joined(first, second)


def padded_with_nan(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    return run(cell, state, spoiled(xs, jnp.arange(T) >= CUT), length=CUT)


def shorter(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    state, ys = run(cell, state, steps(xs, 0, CUT))
    return state, padded(ys)


def with_reset(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    """All but the steps between the NaN and the reset, which are NaN."""
    steps_of_time = jnp.arange(T)
    last, ys = run(cell, state, spoiled(xs, steps_of_time == BAD), resets=steps_of_time == CUT)
    return last, joined(steps(ys, 0, BAD), steps(ys, CUT, T))


def as_two_sequences(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    _, before = run(cell, state, steps(xs, 0, BAD))
    last, after = run(cell, None, steps(xs, CUT, T))
    return last, joined(before, after)


def in_reverse(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    return run(cell, state, spoiled(xs, jnp.arange(T) >= CUT), length=CUT, reverse=True)


def flipped(cell: AbstractCell, state: State, xs: PyTree[Array]) -> tuple[State, PyTree]:
    last, ys = run(cell, state, backwards(steps(xs, 0, CUT)))
    return last, padded(backwards(ys))


def mapped(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), xs, backwards(xs))
    return jax.vmap(partial(run, cell, state))(both)


def one_by_one(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run(cell, state, each) for each in (xs, backwards(xs))))


def tangent_of_each_unit(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    """How a change of the state, of another size in each unit, changes the state after a step."""
    return _tangent(cell, state, xs, jax.tree.map(_sizes, state))


def tangent_unit_by_unit(cell: AbstractCell, state: State, xs: PyTree[Array]) -> PyTree:
    """The same if no unit sees another: the effect of a change of 1 in all units, times the size in its own unit."""
    effect = _tangent(cell, state, xs, jax.tree.map(jnp.ones_like, state))
    return jax.tree.map(lambda leaf: leaf * _sizes(leaf), effect)


def _tangent(cell: AbstractCell, state: State, xs: PyTree[Array], change: State) -> PyTree:
    u = _first(cell, xs)
    return jax.jvp(lambda state: cell.step(state, u), (state,), (change,))[1]


def _sizes(leaf: Array) -> Array:
    return jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)


def steps(tree: PyTree[Array], start: int, stop: int) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf[start:stop], tree)


def backwards(tree: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf[::-1], tree)


def joined(first: PyTree[Array], second: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)


def padded(ys: PyTree[Array]) -> PyTree[Array]:
    return joined(ys, jax.tree.map(lambda leaf: jnp.zeros((T - CUT, *leaf.shape[1:]), leaf.dtype), ys))


def spoiled(xs: PyTree[Array], where: Array) -> PyTree[Array]:
    """`xs` with NaN at these steps, in the arrays that can hold it."""
    nan = lambda leaf: jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf  # noqa: E731
    return select(where, jax.tree.map(nan, xs), xs)
