"""Lyapunov exponents: how fast neighbouring states diverge or converge."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import flat
from ..arrays import DType, PyTree, State, count_steps
from ..cell import AbstractCell
from ..checked import Checked
from ..compiled import compiled
from .jacobian import FINITE
from .trajectory import enter, vector_step

OVERFLOWN = f"{FINITE}, or pass a smaller every: columns grow or turn parallel between two orthogonalisations"


def lyapunov_exponents(
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    count: Checked[int | None] = None,
    skip: Checked[int] = 0,
    every: Checked[int] = 1,
) -> Float[Array, " K"]:
    """The `count` largest Lyapunov exponents along `xs`, in nats per step, the largest first.

        Z_t = J_t Q_{t-1},        Q_t R_t = Z_t,        lambda_i = mean_t log |R_t[i, i]|

    Benettin et al. 1980 (Meccanica 15:9); for recurrent networks Engelken, Wolf & Abbott 2020, arXiv:2006.02427, and
    Vogt et al. 2022, arXiv:2006.14123. If the largest exponent is above zero, the network is chaotic and gradients
    explode; if it is below zero, states become independent of the initial state, and gradients vanish at that rate.

    cell, state, xs   as in `rnnjax.unroll`; with zeros as xs it is an autonomous system
    count             the number of exponents, at most D, the real numbers of a state (two for a complex one); None: D
    skip              steps to run before, until Q and the state have converged
    every             orthogonalise after this many steps. A large number is faster; with too large a number the columns
                      of Z become parallel, overflow or decay to zero

    No Jacobian is built: each step is differentiated along `count` columns. Raises, at run time, if one is not finite.
    """
    state, xs = enter(cell, state, xs)
    T, D = count_steps(xs), flat.pack(state).size
    count = D if count is None else count
    if not isinstance(count, int | np.integer) or not 1 <= count <= D:
        raise ValueError(
            f"count: expected a number from 1 to the D={D} numbers of a state, got {count!r}. "
            f"Pass None for all {D} exponents"
        )
    if not isinstance(every, int | np.integer) or not 1 <= every <= T:
        raise ValueError(
            f"every: expected a number of steps from 1 to T={T}, got {every!r}. "
            "Pass 1 to orthogonalise after every step"
        )
    if not isinstance(skip, int | np.integer) or not 0 <= skip <= T - every:
        raise ValueError(
            f"skip: expected from 0 to {T - every}, so that some of the T={T} steps count, got {skip!r}. "
            "Skip fewer steps, or pass a longer sequence"
        )
    columns = _frame(int(count), D, flat.pack(state).dtype)
    return _exponents(cell, state, cell.project(xs), columns, int(skip), int(every))


@compiled
def _exponents(cell: Any, state: State, us: Any, columns: Array, skip: int, every: int) -> Float[Array, " K"]:
    """The growth of the columns along `us`, orthogonalised after every `every` steps."""

    def push(carry: tuple[State, Array], u: Any) -> tuple[tuple[State, Array], None]:
        before, columns = carry
        _, derivative = jax.linearize(vector_step(cell, u, before), flat.pack(before))
        return (cell.step(before, u), jax.vmap(derivative)(columns)), None

    def stretch(carry: tuple[State, Array], us: Any) -> tuple[tuple[State, Array], Array]:
        (state, columns), _ = jax.lax.scan(push, carry, us)
        columns = eqx.error_if(columns, ~jnp.isfinite(columns).all(), FINITE if every == 1 else OVERFLOWN)
        orthonormal, triangle = jnp.linalg.qr(columns.T)
        return (state, orthonormal.T), jnp.log(jnp.abs(jnp.diagonal(triangle)))

    if skip:
        warm = jax.tree.map(lambda leaf: leaf[:skip, None], us)
        (state, columns), _ = jax.lax.scan(stretch, (state, columns), warm)
    groups = (count_steps(us) - skip) // every
    measured = jax.tree.map(lambda leaf: leaf[skip : skip + groups * every].reshape(groups, every, *leaf.shape[1:]), us)
    _, logarithms = jax.lax.scan(stretch, (state, columns), measured)
    return jnp.sort(logarithms.mean(0) / every, descending=True)


def _frame(count: int, D: int, dtype: DType) -> Float[Array, "K D"]:
    """Initial orthonormal rows. Fewer than D are random: along the axes, those of a diagonal cell would not change."""
    if count == D:
        return jnp.eye(D, dtype=dtype)
    return jnp.linalg.qr(jax.random.normal(jax.random.key(0), (D, count), dtype))[0].T
