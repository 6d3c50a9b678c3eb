"""The noun *engine*: how a cell is run along time."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from .arrays import State, States, select
from .cell import AbstractCell
from .marks import Marks, StepMarks


class AbstractEngine(eqx.Module):
    """A way to run a cell along one sequence. Options live on the object.

    Subclass requirements: `run`, the same function whatever the engine, in value and in gradient; and `refusal`, which
    says of every cell that `run` would not serve why not and what to use instead. Inputs arrive checked, T >= 1, with
    safe values in ignored steps; `marks` are to be honoured (`marked_step` does so for one that goes step by step).
    """

    @abc.abstractmethod
    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        """Why this engine cannot run `cell` on `xs`, and what can; None if it can."""

    @abc.abstractmethod
    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        """The last state, and all states over time.

        Both are given, so that one who uses the last state alone does not pay for the others: XLA drops them.
        """


def marked_step(
    step: Callable[[State, Any], State], initial: State, before: State, inputs: tuple[PyTree[Array], StepMarks]
) -> tuple[State, State]:
    """One step, such as `cell.step`, under its marks, as a body for `lax.scan`: the new state, twice."""
    u, marks = inputs
    if marks.reset is not None:
        before = select(marks.reset, initial, before)
    if marks.ignored is None:
        after = step(before, u)
    else:
        after = select(marks.ignored, before, step(select(marks.ignored, initial, before), u))
    return after, after
