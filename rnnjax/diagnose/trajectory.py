"""The states of a cell over time, and its steps as functions of vectors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import check, flat
from ..arrays import PyTree, State, States, count_steps
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..compiled import compiled
from ..engine import AbstractEngine, Plan, check_engine, plan_or_raise
from ..marks import Marks

Step = Callable[[Float[Array, " D"]], Float[Array, " D"]]


def enter(
    cell: Checked[AbstractCell], state: State | None, xs: Checked[PyTree[ArrayLike]]
) -> tuple[State, PyTree[Array]]:
    """State and inputs of one cell, checked."""
    if not isinstance(cell, AbstractCell):
        raise TypeError(
            f"cell: expected a cell, which has one Jacobian for each step, got {describe(cell)}. "
            "Pass one of a network's cells (of a Constrained network, its `cell`), or use gradient_by_input, which "
            "takes networks too"
        )
    xs = check.inputs(xs, cell.input_type(), describe(cell))
    if count_steps(xs) == 0:
        raise ValueError("xs: expected at least one step, got none. Pass a longer sequence")
    return cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell)), xs


def check_lags(lags: Checked[int | None], T: int) -> int:
    """How far to go back; None: to the start."""
    if lags is None:
        return T
    if not isinstance(lags, int | np.integer) or not 0 <= lags <= T:
        raise ValueError(
            f"lags: expected a number from 0 to the T={T} steps of xs, got {lags!r}. Pass a longer sequence"
        )
    return int(lags)


def befores(cell: AbstractCell, state: State, xs: PyTree[Array], engine: Checked[AbstractEngine]) -> States:
    """The state before each step, run by `engine`; step by step where a cell emits something else than its state."""
    check_engine(engine)
    return _befores(cell, state, xs, plan_or_raise(engine, cell, xs))


@compiled
def _befores(cell: AbstractCell, state: State, xs: PyTree[Array], plan: Plan) -> States:
    if cell.emits_states:
        _, states = plan.run(cell, state, xs, Marks(None, None, cell.initial()))
    else:
        _, states = jax.lax.scan(lambda before, u: (cell.step(before, u),) * 2, state, cell.project(xs))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), state, states)


def vector_step(cell: AbstractCell, u: PyTree[Array], before: State) -> Step:
    """The step with input `u` from the state `before`, as a function of that state packed into a real vector."""
    return lambda vector: flat.pack(cell.step(flat.unpack(vector, before), u))
