"""The equations that `Newton` solves: each state is one step after the state before it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array

from ...arrays import PyTree, State
from ...cell import AbstractCell
from ...engine import marked_step
from ...marks import StepMarks


class Problem(NamedTuple):
    """The equations x_t = step(x_{t-1}, u_t) for all t, with their marks, from x_0 = `start`."""

    cell: AbstractCell
    start: State
    us: PyTree[Array]
    initial: State  # the state after a reset
    marks: StepMarks

    def step(self, step: Callable[[State, PyTree], State], before: State, u: PyTree[Array], marks: StepMarks) -> State:
        """The state after one step with its marks applied, by `step`: the cell's own, or an approximation."""
        return marked_step(step, self.initial, before, (u, marks))[0]

    def over_time(self, function: Callable[..., PyTree], *rows: PyTree[Array]) -> PyTree:
        """`function` of the rows, inputs and marks of each step, all steps at once."""
        return jax.vmap(function)(*rows, self.us, self.marks)
