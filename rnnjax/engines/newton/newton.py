"""The engine `Newton`: any cell, parallel in time, by solving for its whole trajectory at once."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ... import check
from ...arrays import State, States, select
from ...cell import AbstractCell, describe
from ...engine import AbstractEngine, marked_step
from ...marks import Marks, fill
from .jacobian import AbstractJacobian, Dense
from .problem import Problem
from .solver import Settings, Solution, befores, solve


class Newton(AbstractEngine):
    """All states at once, as the solution of `state_t = step(state_{t-1}, u_t)` for all t, by Newton's method.

    An iteration is one step of the cell at every t side by side, and one linear recurrence, whose depth is log T: a few
    iterations stand for T steps (DEER, Lim et al. 2024, arXiv:2309.12252; ParaRNN, Danieli et al. 2025,
    arXiv:2510.21450). It pays where a device is wider than the work of one step: over long sequences, on accelerators.

    jacobian     `Dense()`: few units, fewest iterations; `Diagonal()`: exact for diagonal cells, else quasi-Newton
    iterations   the most that are tried
    tolerance    solved is where |step(state_{t-1}) - state_t| / (1 + |state_t|) is nowhere larger; None: eps^0.8 of
                 the state's dtype, 3e-6 in float32 and 3e-13 in float64. One more step is taken after
    damping      None: Newton's own steps, which overflow where long products of Jacobians do. A number, such as 0.1:
                 the most damping in a trust region (ELK, Gonzalez et al. 2024, arXiv:2407.19115), which adapts
    fall_back    what has not converged is run step by step; without it, it is an error at run time

    `solve` returns iterations, residual and convergence. The gradient, in either mode, is one linear recurrence with
    the Jacobians at the solution. Under `jax.vmap` no row iterates beyond its own solution, and once no more than a
    quarter of the rows is left, those go on among themselves.
    """

    jacobian: AbstractJacobian = Dense()
    iterations: int = eqx.field(static=True, default=100)
    tolerance: float | None = eqx.field(static=True, default=None)
    damping: float | None = eqx.field(static=True, default=None)
    fall_back: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not isinstance(self.jacobian, AbstractJacobian):
            raise TypeError(f"jacobian: expected Dense() or Diagonal(), got {self.jacobian!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"iterations: expected a positive integer, got {self.iterations!r}")
        for name in ("tolerance", "damping"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 < value < float("inf")):
                raise ValueError(f"{name}: expected a positive number or None, got {value!r}")

    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(cell.initial))}
        if len(dtypes) != 1 or not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
            names = " and ".join(sorted(dtype.name for dtype in dtypes)) or "empty"
            reason = f"it solves for numbers of one floating dtype, and the state is {names}. Use Scan()"
        else:
            reason = self.jacobian.refusal(cell, jax.tree.leaves(xs)[0].shape[0])
        return None if reason is None else f"Newton cannot run {describe(cell)}: {reason}."

    def solve(
        self, cell: AbstractCell, state: State | None, xs: Any, *, length: Any = None, resets: Any = None
    ) -> Solution:
        """The states over time, the iterations they took, the last residual, and whether it is within the tolerance.

        Arguments as of `unroll`; nothing is raised at run time, and nothing falls back. Raises ValueError where
        `refusal` has a reason.
        """
        xs = check.inputs(xs, cell.input_type(), describe(cell))
        T = jax.tree.leaves(xs)[0].shape[0]
        if T == 0:
            raise ValueError("xs: expected at least one step, got T=0")
        reason = self.refusal(cell, xs)
        if reason is not None:
            raise ValueError(f"engine: {reason}")
        state = cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell))
        length, resets = check.length(length, T), check.resets(resets, T)
        marks = Marks(length, resets, cell.initial())
        return self._solve(cell, state, fill(xs, length, T), marks, None)

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        return self._run(cell, state, xs, marks, None)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        """All parts iterate together: an iteration exchanges a state and a map from device to device."""
        if self.fall_back:
            raise ValueError("fall_back: expected False over parts of time, got True. Use Sharded(Scan(), ...) instead")
        return self._run(cell, state, xs, marks, axis)

    def _run(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str | None
    ) -> tuple[State, States]:
        solution = self._solve(cell, state, xs, marks, axis)
        states = solution.states if self.fall_back else self._insist(cell, solution)
        return jax.tree.map(lambda leaf: leaf[-1], states), states

    def _solve(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str | None) -> Solution:
        T = jax.tree.leaves(xs)[0].shape[0]
        problem = Problem(cell, state, cell.project(xs), marks.initial, marks.over_time(T))
        epsilon = float(jnp.finfo(jax.tree.leaves(state)[0].dtype).eps)
        tolerance = epsilon**0.8 if self.tolerance is None else self.tolerance
        settings = Settings(self.jacobian, self.iterations, tolerance, self.damping, axis)
        return _trajectory(problem, settings=settings, fall_back=self.fall_back)

    def _insist(self, cell: AbstractCell, solution: Solution) -> States:
        """The states, once they are known to be a solution."""
        remedies = "raise `iterations`" if self.damping else "pass damping=0.1, raise `iterations`"
        return eqx.error_if(
            solution.states,
            ~solution.converged,
            f"Newton did not solve {describe(cell)} within {self.iterations} iterations: {remedies} or `tolerance`, "
            "pass fall_back=True, or use Scan(). Newton.solve tells the residual",
        )


@eqx.filter_custom_jvp
def _trajectory(problem: Problem, *, settings: Settings, fall_back: bool) -> Solution:
    """The solution of one problem; under `jax.vmap`, of many at once."""
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
    """The solution, with what has not converged run step by step instead; if all has, nothing is run."""

    def run(problem: Problem) -> States:
        step = partial(marked_step, problem.cell.step, problem.initial)
        return jax.lax.scan(step, problem.start, (problem.us, problem.marks))[1]

    def replaced() -> States:
        states = jax.vmap(run, in_axes=(axes,), axis_size=rows)(problem)
        return select(solved.converged, solved.states, states)

    return solved._replace(states=jax.lax.cond(solved.converged.all(), lambda: solved.states, replaced))


@_trajectory.def_jvp
def _move(
    primals: tuple[Problem], tangents: tuple[Problem], *, settings: Settings, fall_back: bool
) -> tuple[Solution, Solution]:
    """How the trajectory moves with what makes it: t_t = J_t t_{t-1} + (what moves step t), J at the solution."""
    (problem,), (moves,) = primals, tangents
    jacobian = settings.jacobian
    solution = _trajectory(problem, settings=settings, fall_back=fall_back)
    at = befores(settings, problem, jax.vmap(jacobian.pack)(solution.states))

    def steps(problem: Problem) -> Array:
        one = lambda x, u, marks: jacobian.flat(problem, problem.cell.step, u, marks)(x)  # noqa: E731
        return problem.over_time(one, at)

    fixed = jax.tree.map(lambda _: None, problem.start)  # enters through the recurrence
    moved = eqx.filter_jvp(steps, (problem,), (moves._replace(start=fixed),))[1]
    start = jacobian.pack(_zeros_for_none(moves.start, problem.start))
    states = jacobian.propagate(problem, at, moved, start, settings.axis)
    unpacked = jax.vmap(lambda x: jacobian.unpack(x, problem.start))(states)
    none: Any = None  # a tangent of what is not differentiated
    return solution, Solution(unpacked, none, none, none)


def _zeros_for_none(tangent: PyTree, primal: State) -> State:
    return jax.tree.map(
        lambda moved, leaf: jnp.zeros_like(leaf) if moved is None else moved,
        tangent,
        primal,
        is_leaf=lambda leaf: leaf is None,
    )
