"""The plan of `Newton` for one cell: all states as a solution, and NaN from the first value that is not finite."""

from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array

from ...arrays import PyTree, State, States, count_steps
from ...cell import AbstractCell, describe
from ...engine import Plan, before_step
from ...marks import Marks, poisoned
from .failure import insist
from .problem import Problem
from .solver import Settings, Solution
from .solver import befores as befores_of
from .trajectory import trajectory


@dataclass(frozen=True)
class NewtonPlan(Plan):
    """Parts of time iterate together: an iteration exchanges a state and a map from device to device."""

    settings: Settings
    fall_back: bool

    def __str__(self) -> str:
        name, most, axis = type(self.settings.jacobian).__name__, self.settings.iterations, self.settings.axis
        parts = "" if axis is None else f", all parts along {axis!r} together"
        fall_back = ", then step by step where it has not converged" if self.fall_back else ""
        return f"Newton: all steps at once with {name}(), in at most {most} iterations{fall_back}{parts}"

    @property
    def part_axis(self) -> str | None:
        return self.settings.axis

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        if self.settings.axis is not None:
            return self._run(cell, state, xs, marks)
        return poisoned(partial(self._run, cell), state, xs, marks)

    def solve(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, *, fall_back: bool) -> Solution:
        """The solution, which may not have converged."""
        return trajectory(_problem(cell, state, xs, marks), settings=self.settings, fall_back=fall_back)

    def _run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        problem = _problem(cell, state, xs, marks)
        solution = trajectory(problem, settings=self.settings, fall_back=self.fall_back)
        states = solution.states if self.fall_back else insist(solution, describe(cell), self.settings)
        return jax.tree.map(lambda leaf: leaf[-1], states), self._emitted(problem, states)

    def _emitted(self, problem: Problem, states: States) -> PyTree[Array]:
        """What the cell emits at each step of the solution."""
        if problem.cell.emits_states:
            return states
        jacobian = self.settings.jacobian
        befores = befores_of(self.settings, problem, jax.vmap(jacobian.pack)(states))
        befores = jax.vmap(lambda x: jacobian.unpack(x, problem.start))(befores)
        befores = before_step(problem.marks, problem.initial, befores)
        return jax.vmap(problem.cell.emit)(states, befores, problem.us)


def _problem(cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> Problem:
    return Problem(cell, state, cell.project(xs), marks.initial, marks.over_time(count_steps(xs)))
