"""The engine `Newton`: any cell, parallel in time, by solving for its whole trajectory at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ... import check
from ...arrays import Shaped, State, States, select
from ...cell import AbstractCell, AbstractLinearCell, describe
from ...engine import AbstractEngine, refusal_of_symbolic
from ...marks import Marks, counted, fill, quarantine
from .dense import Dense
from .jacobian import AbstractJacobian
from .problem import Problem
from .solver import Settings, Solution
from .trajectory import trajectory


class Newton(AbstractEngine):
    """All states at once, as the solution of `state_t = step(state_{t-1}, u_t)` for all t, by Newton's method.

    An iteration is one step of the cell at every t side by side, and one linear recurrence: a few iterations stand for
    T steps (DEER, Lim et al. 2024, arXiv:2309.12252; ParaRNN, Danieli et al. 2025, arXiv:2510.21450). The recurrence is
    a tree of depth log T; with one number to a unit it is that of a linear cell, run as `Associative()` runs it. It
    pays where a device is wider than the work of one step: over long sequences, on accelerators.

    jacobian     `Dense()`: few units, fewest iterations; `Diagonal()`: exact for diagonal cells, else quasi-Newton
    iterations   the most that are tried
    tolerance    solved is where |step(state_{t-1}) - state_t| / (1 + |state_t|) is nowhere larger; None: eps^0.8 of
                 the state's dtype, 3e-6 in float32 and 3e-13 in float64. One more step is taken after
    damping      None: Newton's own steps, which overflow where long products of Jacobians do. A number, such as 0.1:
                 the most damping in a trust region (ELK, Gonzalez et al. 2024, arXiv:2407.19115), which adapts
    fall_back    what has not converged is run step by step; without it, it is an error at run time

    `solve` returns iterations, residual and convergence. The gradient, in either mode, is one linear recurrence with
    the Jacobians at the solution. Entries of their long products are held below the root of the largest number of their
    dtype, lest infinity times zero be NaN; where one is larger, the gradient may be wrong. Under `jax.vmap` no row
    iterates beyond its own solution, and once no more than a quarter of the rows is left, those go on among themselves.

    What is not finite is no trajectory to be solved for: from such an input on, or a state to begin with that is NaN,
    the states are NaN by decree, in all units, and so is the gradient. Step by step a gate may close on infinity.
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
        check.flags(fall_back=self.fall_back)
        for name in ("tolerance", "damping"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < float("inf")):
                raise ValueError(f"{name}: expected a positive number or None, got {value!r}")

    def refusal(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        symbolic = refusal_of_symbolic("Newton", cell, xs)
        if symbolic is not None:
            return symbolic
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(cell.initial))}
        if len(dtypes) != 1 or None in map(_kind, dtypes):
            names = " and ".join(sorted(dtype.name for dtype in dtypes)) or "empty"
            reason = f"it solves for numbers of one floating dtype, and the state is {names}. Use Scan()"
        elif jnp.complexfloating in map(_kind, dtypes) and not isinstance(cell, AbstractLinearCell):
            reason = "its state is complex and it is not linear, so that it may have no complex derivative. Use Scan()"
        else:
            steps = jax.tree.leaves(xs)[0].shape[0]
            reason = self.jacobian.refusal(cell, steps, self.damping is not None)
        return None if reason is None else f"Newton cannot run {describe(cell)}: {reason}."

    def solve(self, cell: Any, state: State | None, xs: Any, *, length: Any = None, resets: Any = None) -> Solution:
        """The states over time, the iterations they took, the last residual, and whether it is within the tolerance.

        Arguments as of `unroll`; nothing is raised at run time, and nothing falls back. Raises ValueError where
        `refusal` has a reason.
        """
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. Solve for each cell of a network apart")
        xs = check.inputs(xs, cell.input_type(), describe(cell))
        T = jax.tree.leaves(xs)[0].shape[0]
        if T == 0:
            raise ValueError("xs: expected at least one step, got T=0")
        reason = self.refusal(cell, xs)
        if reason is not None:
            raise ValueError(f"engine: {reason}")
        state = cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell))
        length, resets = check.length(length, T), check.resets(resets, T)
        if resets is not None and length is not None:
            resets = resets & counted(length, T)
        marks = Marks(length, resets, cell.initial())
        return self._solve(cell, state, fill(xs, length, T), marks, None, fall_back=False)

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = jax.tree.leaves(xs)[0].shape[0]
        resets = jnp.zeros(T, bool) if marks.resets is None else marks.resets
        safe = quarantine(xs, state, marks.length, resets, marks.initial)
        last, states = self._run(cell, safe.state, safe.xs, marks, None)
        if marks.length is None:
            return _spoil(safe.last_touched, last), _spoil(safe.touched, states)
        taken = marks.length > 0
        last = select(taken, _spoil(safe.last_touched & taken, last), state)
        return last, _spoil(safe.touched & taken, states)

    def refusal_of_part(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        if self.fall_back:
            return "Newton(fall_back=True) cannot run parts of time: no part steps alone. Use Sharded(Scan(), ...)."
        return self.refusal(cell, xs)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        """All parts iterate together: an iteration exchanges a state and a map from device to device."""
        return self._run(cell, state, xs, marks, axis)

    def _run(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str | None
    ) -> tuple[State, States]:
        solution = self._solve(cell, state, xs, marks, axis, self.fall_back)
        states = solution.states if self.fall_back else self._insist(cell, solution)
        return jax.tree.map(lambda leaf: leaf[-1], states), states

    def _solve(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str | None, fall_back: bool
    ) -> Solution:
        T = jax.tree.leaves(xs)[0].shape[0]
        problem = Problem(cell, state, cell.project(xs), marks.initial, marks.over_time(T))
        epsilon = float(jnp.finfo(jax.tree.leaves(state)[0].dtype).eps)
        tolerance = epsilon**0.8 if self.tolerance is None else self.tolerance
        settings = Settings(self.jacobian, self.iterations, tolerance, self.damping, axis)
        return trajectory(problem, settings=settings, fall_back=fall_back)

    def _insist(self, cell: AbstractCell, solution: Solution) -> States:
        """The states, once they are known to be a solution."""
        remedies = "raise `iterations`" if self.damping else "pass damping=0.1, raise `iterations`"
        return eqx.error_if(
            solution.states,
            ~solution.converged,
            f"Newton did not solve {describe(cell)} within {self.iterations} iterations: {remedies} or `tolerance`, "
            "pass fall_back=True, or use Scan(). Newton.solve tells the residual; NaN in the weights has none",
        )


def _spoil(touched: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    """`tree` with NaN where `touched`, in its gradient, too: a product passes it on, which a choice would not."""

    def leaf(values: Array) -> Array:
        if jnp.iscomplexobj(values):
            return jax.lax.complex(leaf(values.real), leaf(values.imag))
        factor = jnp.where(touched, jnp.nan, 1.0).astype(values.dtype)
        return values * factor.reshape(factor.shape + (1,) * (values.ndim - factor.ndim))

    return jax.tree.map(leaf, tree)


def _kind(dtype: Any) -> Any:
    """Real or complex; None for what is no number with a derivative."""
    return next((kind for kind in (jnp.floating, jnp.complexfloating) if jnp.issubdtype(dtype, kind)), None)
