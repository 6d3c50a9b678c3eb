"""Jacobians of single steps, their singular values, and the norms of their products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import flat
from ..arrays import PyTree, State, count_steps
from ..cell import AbstractCell
from ..checked import Checked
from ..compiled import compiled
from ..engine import AbstractEngine
from ..engines.auto import Auto
from .trajectory import befores, check_lags, enter, vector_step

FINITE = "the Jacobian of a step is not finite: state, inputs or weights are NaN or have overflowed by then. Shorten xs"


def jacobians(
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, "T D D"]:
    """J_t = ds_t/ds_{t-1} at every step, where D is the number of all real numbers of a state, two for a complex one.

    cell, state, xs   as in `rnnjax.unroll`; the fields of a state are concatenated, (h, c) for an LSTM
    engine            computes the states; the Jacobians are those of `cell.step`

    These are T D^2 numbers: `singular_values` and `product_norms` store only one Jacobian at a time.
    """
    return _along(_itself, cell, state, xs, engine)


def singular_values(
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, "T D"]:
    """The singular values of J_t = ds_t/ds_{t-1} at every step, the largest first. Arguments as in `jacobians`."""
    return _along(_singular_values, cell, state, xs, engine)


def product_norms(
    cell: Checked[AbstractCell],
    state: State | None,
    xs: Checked[PyTree[ArrayLike]],
    *,
    lags: Checked[int | None] = None,
    engine: Checked[AbstractEngine] = Auto(),
) -> Float[Array, " K"]:
    """The largest singular value of ds_T/ds_{T-k} = J_T J_{T-1} ... J_{T-k+1}, for every lag k from 0 to `lags`.

    It is an upper bound of the factor by which the norm of a gradient at the end changes over k steps back. Other
    arguments as in `jacobians`; `lags=None` goes back to the start. Infinite where a norm is too large for its dtype.
    """
    state, xs = enter(cell, state, xs)
    T = count_steps(xs)
    lags = check_lags(lags, T)
    us, states = cell.project(xs), befores(cell, state, xs, engine)
    recent = jax.tree.map(lambda leaf: leaf[T - lags :], (us, states))
    norms = _norms_backward(cell, flat.pack(state), recent)
    return jnp.concatenate([jnp.ones_like(norms, shape=1), norms[::-1]])


@compiled
def _norms_backward(cell: Any, vector: Float[Array, " D"], recent: Any) -> Float[Array, " K"]:
    """The norm of the product of all Jacobians from each step to the end."""

    def back(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Array]:
        product, norm = carry  # the product has norm 1, so that it neither overflows nor underflows
        product = product @ _jacobian(cell, inputs)
        growth = jnp.linalg.norm(product, 2)
        norm = jnp.where(growth > 0, norm * growth, jnp.zeros_like(norm))
        return (product / jnp.where(growth > 0, growth, jnp.ones_like(growth)), norm), norm

    identity = jnp.eye(vector.size, dtype=vector.dtype), jnp.ones((), vector.dtype)
    return jax.lax.scan(back, identity, recent, reverse=True)[1]


def _along(function: Any, cell: Any, state: Any, xs: Any, engine: Any) -> Array:
    """`function` of the Jacobian of each step, one step after the other."""
    state, xs = enter(cell, state, xs)
    return _map_jacobians(function, cell, (cell.project(xs), befores(cell, state, xs, engine)))


@compiled
def _map_jacobians(function: Any, cell: Any, inputs: Any) -> Array:
    return jax.lax.map(lambda inputs: function(_jacobian(cell, inputs)), inputs)


def _itself(jacobian: Float[Array, "D D"]) -> Float[Array, "D D"]:
    return jacobian


def _singular_values(jacobian: Float[Array, "D D"]) -> Float[Array, " D"]:
    return jnp.linalg.svd(jacobian, compute_uv=False)


def _jacobian(cell: Any, inputs: Any) -> Float[Array, "D D"]:
    u, before = inputs
    jacobian = jax.jacfwd(vector_step(cell, u, before))(flat.pack(before))
    return eqx.error_if(jacobian, ~jnp.isfinite(jacobian).all(), FINITE)
