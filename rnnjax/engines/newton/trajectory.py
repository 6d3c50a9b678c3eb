"""The solution as a function of the problem: batched under `jax.vmap`, and with an exact derivative."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...arrays import PyTree, State, States, select
from ...engine import marked_step
from .problem import Problem
from .solver import Settings, Solution, befores, solve


@eqx.filter_custom_jvp
def trajectory(problem: Problem, *, settings: Settings, fall_back: bool) -> Solution:
    """The solution of one problem; under `jax.vmap`, many are solved at once."""
    arrays, static = eqx.partition(problem, eqx.is_array)

    def solve_rows(axes: PyTree[int | None], rows: int, arrays: Problem) -> Solution:
        solved = solve(settings, eqx.combine(arrays, static), axes, rows)
        return _step_by_step(eqx.combine(arrays, static), axes, rows, solved) if fall_back else solved

    @jax.custom_batching.custom_vmap
    def one(arrays: Problem) -> Solution:
        return jax.tree.map(lambda leaf: leaf[0], solve_rows(jax.tree.map(lambda _: None, arrays), 1, arrays))

    @one.def_vmap
    def many(rows: int, mapped: list[PyTree[bool]], arrays: Problem) -> tuple[Solution, Solution]:
        solution = solve_rows(jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped[0]), rows, arrays)
        return solution, jax.tree.map(lambda _: True, solution)

    return one(arrays)


def _step_by_step(problem: Problem, axes: PyTree[int | None], rows: int, solved: Solution) -> Solution:
    """The solution, where rows that have not converged are run step by step; if all have, nothing is run."""

    def run(problem: Problem) -> States:
        step = partial(marked_step, problem.cell.step, problem.initial)
        return jax.lax.scan(step, problem.start, (problem.us, problem.marks))[1]

    def replaced() -> States:
        states = jax.vmap(run, in_axes=(axes,), axis_size=rows)(problem)
        return select(solved.converged, solved.states, states)

    return solved._replace(states=jax.lax.cond(solved.converged.all(), lambda: solved.states, replaced))


@trajectory.def_jvp
def _move(
    primals: tuple[Problem], tangents: tuple[Problem], *, settings: Settings, fall_back: bool
) -> tuple[Solution, Solution]:
    """The tangent of the solution: t_t = J_t t_{t-1} + (the tangent of step t by the problem), J at the solution."""
    (problem,), (moves,) = primals, tangents
    jacobian = settings.jacobian
    solution = trajectory(problem, settings=settings, fall_back=fall_back)
    at = befores(settings, problem, jax.vmap(jacobian.pack)(solution.states))

    def steps(problem: Problem) -> Array:
        one = lambda x, u, marks: jacobian.flat(problem, problem.cell.step, u, marks)(x)  # noqa: E731
        return problem.over_time(one, at)

    fixed = jax.tree.map(lambda _: None, problem.start)  # its tangent enters through the recurrence
    moved = eqx.filter_jvp(steps, (problem,), (moves._replace(start=fixed),))[1]
    start = jacobian.pack(_zeros_for_none(moves.start, problem.start))
    states = jacobian.propagate(problem, at, moved, start, settings.axis)
    unpacked = jax.vmap(lambda x: jacobian.unpack(x, problem.start))(states)
    none: Any = None  # the tangent of fields that are not differentiable
    return solution, Solution(unpacked, none, none, none)


def _zeros_for_none(tangent: PyTree, primal: State) -> State:
    return jax.tree.map(
        lambda moved, leaf: jnp.zeros_like(leaf) if moved is None else moved,
        tangent,
        primal,
        is_leaf=lambda leaf: leaf is None,
    )
