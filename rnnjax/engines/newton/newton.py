"""The engine `Newton`: any cell, parallel in time, by solving for its whole trajectory at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import check
from ...arrays import DType, IntegerLike, PyTree, Shaped, State
from ...cell import AbstractCell, AbstractLinearCell, describe
from ...checked import Checked
from ...engine import AbstractEngine, Plan, plan_or_raise, refuse_symbolic
from ...marks import Marks, counted, fill
from ...refusal import Refusal
from .dense import Dense
from .jacobian import AbstractJacobian
from .plan import NewtonPlan
from .solver import Settings, Solution


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

    A program of `jax.export` cannot hold the error of what did not converge: pass `fall_back=True` there.
    """

    jacobian: AbstractJacobian = Dense()
    iterations: int = eqx.field(static=True, default=100)
    tolerance: float | None = eqx.field(static=True, default=None)
    damping: float | None = eqx.field(static=True, default=None)
    fall_back: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not isinstance(self.jacobian, AbstractJacobian):
            raise TypeError(
                f"jacobian: expected Dense() or Diagonal(), got {self.jacobian!r}. "
                "Take Dense() for few units, and Diagonal() for diagonal cells"
            )
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(
                f"iterations: expected a positive integer, got {self.iterations!r}. "
                "Pass the most iterations to try, such as 100"
            )
        check.flags(fall_back=self.fall_back)
        for name in ("tolerance", "damping"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < float("inf")):
                raise ValueError(
                    f"{name}: expected a positive number or None, got {value!r}. "
                    "Pass None for steps without damping, or for the tolerance of the state's dtype"
                )

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        if self.fall_back and axis is not None:
            return Refusal(
                "Newton(fall_back=True) cannot run parts of time: no part steps alone. Use Sharded(Scan(), ...)."
            )
        symbolic = refuse_symbolic("Newton", cell, xs)
        if symbolic is not None:
            return symbolic
        state = jax.eval_shape(cell.initial)
        reason = _misfit(cell, state)
        if reason is None:
            reason = self.jacobian.refusal(state, jax.tree.leaves(xs)[0].shape[0], self.damping is not None)
        if reason is not None:
            return Refusal(f"Newton cannot run {describe(cell)}: {reason}.")
        epsilon = float(jnp.finfo(jax.tree.leaves(state)[0].dtype).eps)
        tolerance = epsilon**0.8 if self.tolerance is None else self.tolerance
        return NewtonPlan(Settings(self.jacobian, self.iterations, tolerance, self.damping, axis), self.fall_back)

    def solve(
        self,
        cell: Checked[AbstractCell],
        state: State | None,
        xs: Checked[PyTree[ArrayLike]],
        *,
        length: Checked[IntegerLike | None] = None,
        resets: Checked[ArrayLike | None] = None,
    ) -> Solution:
        """The states over time, the iterations they took, the last residual, and whether it is within the tolerance.

        Arguments as of `unroll`; nothing is raised at run time, and nothing falls back. Raises ValueError where
        `plan` is a refusal.
        """
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. Solve for each cell of a network apart")
        xs = check.inputs(xs, cell.input_type(), describe(cell))
        T = jax.tree.leaves(xs)[0].shape[0]
        if T == 0:
            raise ValueError("xs: expected at least one step, got T=0. Pass a longer sequence")
        plan = plan_or_raise(self, cell, xs)
        assert isinstance(plan, NewtonPlan)
        state = cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell))
        length, resets = check.length(length, T), check.resets(resets, T)
        if resets is not None and length is not None:
            resets = resets & counted(length, T)
        marks = Marks(length, resets, cell.initial())
        return plan.solve(cell, state, fill(xs, length, T), marks, fall_back=False)


def _misfit(cell: AbstractCell, state: State) -> str | None:
    """Why a cell with such a state has no equations of the kind that are solved here."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    if len(dtypes) != 1 or None in map(_kind, dtypes):
        names = " and ".join(sorted(dtype.name for dtype in dtypes)) or "empty"
        return f"it solves for numbers of one floating dtype, and the state is {names}. Use Scan()"
    if jnp.complexfloating in map(_kind, dtypes) and not isinstance(cell, AbstractLinearCell):
        return "its state is complex and it is not linear, so that it may have no complex derivative. Use Scan()"
    return None


def _kind(dtype: DType) -> Any:
    """Real or complex; None for what is no number with a derivative."""
    return next((kind for kind in (jnp.floating, jnp.complexfloating) if jnp.issubdtype(dtype, kind)), None)
