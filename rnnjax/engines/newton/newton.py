"""The engine `Newton`: any cell, parallel in time, by solving for all of its states at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import check
from ...arrays import DType, IntegerLike, PyTree, Shaped, State, count_steps
from ...cell import AbstractCell, AbstractLinearCell, describe
from ...checked import Checked
from ...engine import AbstractEngine, Plan, plan_or_raise, refuse_symbolic
from ...kernels.recurrence.prepared.cell import PreparedCell
from ...marks import Marks, fill, valid_steps
from ...refusal import Refusal
from .dense import Dense
from .jacobian import AbstractJacobian
from .plan import NewtonPlan
from .solver import Settings, Solution


class Newton(AbstractEngine):
    """All states at once, as the solution of `state_t = step(state_{t-1}, u_t)` for all t, by Newton's method.

    Each iteration computes one step of the cell at every t in parallel, and one linear recurrence. A few iterations
    replace T sequential steps (DEER, Lim et al. 2024, arXiv:2309.12252; ParaRNN, Danieli et al. 2025,
    arXiv:2510.21450). The recurrence is a tree of depth log T; if the Jacobian has one number per unit, it is computed
    as `Associative()` does. The engine pays off if the device is not fully used by one step: for long sequences, on
    accelerators.

    jacobian     `Dense()`: few units, fewest iterations; `Diagonal()`: exact for diagonal cells, else quasi-Newton
    iterations   the maximal number of iterations
    tolerance    the largest |step(state_{t-1}) - state_t| / (1 + |state_t|) of a solution; None: eps^0.8 of the state's
                 dtype, 3e-6 in float32 and 3e-13 in float64. One more step is taken after it is reached
    damping      None: Newton's own steps, which overflow where long products of Jacobians do. A number, such as 0.1:
                 the most damping in a trust region (ELK, Gonzalez et al. 2024, arXiv:2407.19115), which adapts
    fall_back    run sequences that have not converged step by step; if false, they are an error at run time, which
                 says whether the iterations were too few, or overflowed, and at which iteration

    `solve` returns iterations, residual and convergence. The gradient, in either mode, is one linear recurrence with
    the Jacobians at the solution. Entries of their long products are clipped to the square root of the largest number
    of their dtype, since infinity times zero is NaN; where an entry is larger, the gradient may be wrong. Under
    `jax.vmap` each row stops at its own solution, and once no more than a quarter of the rows is left, only those are
    computed.

    From the first non-finite input on, or if the given state is NaN, all states and their gradients are NaN, in all
    units. (Step by step, a gate could still close and hide it.)

    A program of `jax.export`, or of several devices but for `Sharded`, cannot raise the error of what did not converge:
    there its states are NaN, unless `fall_back=True`.
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
        remedy = "Pass the most iterations to try, such as 100"
        check.positive("iterations", self.iterations, "a positive integer", remedy)
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
            reason = self.jacobian.refusal(state, count_steps(xs), self.damping is not None)
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
        """The states over time, the number of iterations, the last residual, and whether it is within the tolerance.

        Arguments as in `unroll`. A sequence that does not converge is neither an error nor run step by step. Raises
        ValueError if `plan` is a refusal.
        """
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. Solve for each cell of a network apart")
        xs = check.inputs(xs, cell.input_type(), describe(cell))
        T = count_steps(xs)
        if T == 0:
            raise ValueError("xs: expected at least one step, got T=0. Pass a longer sequence")
        plan = plan_or_raise(self, cell, xs)
        assert isinstance(plan, NewtonPlan)
        state = cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell))
        length, resets = check.length(length, T), check.steps("resets", resets, T)
        if resets is not None and length is not None:
            resets = resets & valid_steps(length, T)
        marks = Marks(length, resets, cell.initial())
        return plan.solve(cell, state, fill(xs, length, T), marks, fall_back=False)


def _misfit(cell: AbstractCell, state: State) -> str | None:
    """Why the engine cannot solve for states of this kind; None if it can."""
    if isinstance(cell, PreparedCell):
        return "its weights are prepared for inference, and Newton's method takes derivatives. Use Scan()"
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    if len(dtypes) != 1 or None in map(_kind, dtypes):
        names = " and ".join(sorted(dtype.name for dtype in dtypes)) or "empty"
        return f"it solves for numbers of one floating dtype, and the state is {names}. Use Scan()"
    if jnp.complexfloating in map(_kind, dtypes) and not isinstance(cell, AbstractLinearCell):
        return "its state is complex and it is not linear, so that it may have no complex derivative. Use Scan()"
    return None


def _kind(dtype: DType) -> Any:
    """Real or complex; None for dtypes that are not differentiable."""
    return next((kind for kind in (jnp.floating, jnp.complexfloating) if jnp.issubdtype(dtype, kind)), None)
