"""Time in segments, one after the other, which the gradient computes a second time."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .arrays import PyTree, State, count_steps, widen
from .cell import AbstractCell
from .marks import Marks, StepMarks

Run = Callable[[AbstractCell, State, PyTree[Array], StepMarks], tuple[State, PyTree[Array]]]


def in_segments(
    run: Run, segment: int, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks
) -> tuple[State, PyTree[Array]]:
    """The last state, and the emitted values over time.

    `run(cell, state, xs, marks)` runs one segment, and returns the same of it. A segment has `segment` steps; the last
    one may be shorter. The gradient stores the inputs, and the states between segments.
    """
    T = count_steps(xs)
    whole = T - T % segment
    inputs = xs, marks.over_time(T)
    wide, narrow = widen(cell)

    # Each segment slices its steps out of the inputs: a scan over reshaped inputs would copy all of them first.
    def run_segment(steps: int, state: State, start: Int[Array, ""]) -> tuple[State, PyTree[Array]]:
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, steps), inputs)
        return run(narrow(wide), state, *part)

    starts = jnp.arange(0, whole, segment)
    state, folded = jax.lax.scan(jax.checkpoint(partial(run_segment, segment)), state, starts)
    emitted = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), folded)
    if whole == T:
        return state, emitted
    state, remainder = jax.checkpoint(partial(run_segment, T - whole))(state, jnp.asarray(whole))
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), emitted, remainder)
