"""Lyapunov exponents: how fast neighbouring states part, or meet."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import flat
from ..arrays import State
from .jacobian import FINITE
from .trajectory import enter, steps, vector_step


def lyapunov_exponents(
    cell: Any, state: State | None, xs: Any, *, count: int | None = None, skip: int = 0, every: int = 1
) -> Float[Array, " K"]:
    """The `count` largest Lyapunov exponents along `xs`, in nats per step, the largest first.

        Z_t = J_t Q_{t-1},        Q_t R_t = Z_t,        lambda_i = mean_t log |R_t[i, i]|

    Benettin et al. 1980 (Meccanica 15:9); of recurrent networks Engelken, Wolf & Abbott 2020, arXiv:2006.02427, and
    Vogt et al. 2022, arXiv:2006.14123. A largest exponent above zero is chaos, and gradients that explode; below zero,
    states forget where they started, and gradients vanish at that rate.

    cell, state, xs   as in `rnnjax.unroll`; zeros in xs make an autonomous system of it
    count             how many, at most the D numbers of a state (a complex one counts as two); None: all
    skip              so many steps first, without which Q and the state are not yet where they will stay
    every             orthogonalises every so many steps. More is faster; too many, and the columns of Z become parallel

    No Jacobian is built: a step is pushed forward along `count` columns. Raises, at run time, if one is not finite.
    """
    state, xs = enter(cell, state, xs)
    T, D = steps(xs), flat.pack(state).size
    count = D if count is None else count
    if not 1 <= count <= D:
        raise ValueError(f"count: expected from 1 to the D={D} numbers of a state, got {count}")
    if every < 1:
        raise ValueError(f"every: expected a number of steps, at least 1, got {every}")
    if not 0 <= skip <= T - every:
        raise ValueError(f"skip: expected from 0 to {T - every}, so that some of the T={T} steps count, got {skip}")
    us = cell.project(xs)
    vector, columns = flat.pack(state), jnp.eye(count, D, dtype=flat.pack(state).dtype)

    def push(carry: tuple[Array, Array], u: Any) -> tuple[tuple[Array, Array], None]:
        vector, columns = carry
        after, derivative = jax.linearize(vector_step(cell, u, state), vector)
        return (after, jax.vmap(derivative)(columns)), None

    def stretch(carry: tuple[Array, Array], us: Any) -> tuple[tuple[Array, Array], Array]:
        (vector, columns), _ = jax.lax.scan(push, carry, us)
        columns = eqx.error_if(columns, ~jnp.isfinite(columns).all(), FINITE)
        orthonormal, triangle = jnp.linalg.qr(columns.T)
        return (vector, orthonormal.T), jnp.log(jnp.abs(jnp.diagonal(triangle)))

    if skip:
        warm = jax.tree.map(lambda leaf: leaf[:skip, None], us)
        (vector, columns), _ = jax.lax.scan(stretch, (vector, columns), warm)
    groups = (T - skip) // every
    counted = jax.tree.map(lambda leaf: leaf[skip : skip + groups * every].reshape(groups, every, *leaf.shape[1:]), us)
    _, logarithms = jax.lax.scan(stretch, (vector, columns), counted)
    return jnp.sort(logarithms.mean(0) / every, descending=True)
