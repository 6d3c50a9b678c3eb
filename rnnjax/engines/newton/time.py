"""Operations along time, be it whole or, where `axis` names an axis of a mesh, spread over its devices part by part.

In reverse, time runs from its end to its start, and `first` is the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from ...kernels.linear_scan.linear_scan import linear_scan
from .blocks import Blocks, Vectors, apply, multiply

Compose = Callable[[Any, Any], Any]  # of two maps, the earlier one first


def before(first: Inexact[Array, "..."], rows: Inexact[Array, "T ..."], axis: str | None) -> Inexact[Array, "T ..."]:
    """`rows` one step later, `first` before them."""
    if axis is not None:
        size = jax.lax.axis_size(axis)
        handed = jax.lax.ppermute(rows[-1], axis, [(one, one + 1) for one in range(size - 1)])
        first = jnp.where(jax.lax.axis_index(axis) == 0, first, handed)
    return jnp.concatenate([first[None], rows[:-1]])


def after(rows: Inexact[Array, "T ..."], last: Inexact[Array, "..."], axis: str | None) -> Inexact[Array, "T ..."]:
    """`rows` one step earlier, `last` after them."""
    if axis is not None:
        size = jax.lax.axis_size(axis)
        handed = jax.lax.ppermute(rows[0], axis, [(one + 1, one) for one in range(size - 1)])
        last = jnp.where(jax.lax.axis_index(axis) == size - 1, last, handed)
    return jnp.concatenate([rows[1:], last[None]])


def prefix(compose: Compose, elements: PyTree[Array], axis: str | None, *, reverse: bool = False) -> PyTree[Array]:
    """What `compose` makes of all elements up to each."""
    local = jax.lax.associative_scan(compose, elements, reverse=reverse)
    if axis is None:
        return local
    edge = 0 if reverse else -1
    totals = jax.lax.all_gather(jax.tree.map(lambda leaf: leaf[edge], local), axis)
    totals = jax.lax.associative_scan(compose, totals, reverse=reverse)
    earlier, is_first = _place(axis, reverse)
    carried = jax.tree.map(lambda leaf: leaf[earlier], totals)
    whole = jax.vmap(compose, (None, 0))(carried, local)
    return jax.tree.map(lambda one, other: jnp.where(is_first, one, other), local, whole)


def recurrence(
    a: Blocks, b: Vectors, initial: Vectors, axis: str | None, *, reverse: bool = False
) -> Vectors:
    """All states of `x_t = a_t x_{t-1} + b_t`, or in reverse of `x_t = a_t x_{t+1} + b_t`, from x = `initial`."""
    if a.shape[-1] == 1:
        scalars = a[..., 0, 0], b[..., 0], initial[..., 0]
        return _scalar_recurrence(*scalars, axis, reverse)[..., None]
    edge = -1 if reverse else 0
    start = apply(a[edge], initial)
    if axis is not None:
        start = jnp.where(_place(axis, reverse)[1], start, jnp.zeros_like(start))
    return prefix(_compose_affine, (a, b.at[edge].add(start)), axis, reverse=reverse)[1]


def _scalar_recurrence(a: Array, b: Array, initial: Array, axis: str | None, reverse: bool) -> Array:
    if axis is None:
        return linear_scan(a, b, initial, reverse=reverse)
    zero = jnp.zeros_like(initial)
    edge = 0 if reverse else -1
    mine = jnp.prod(a, 0), linear_scan(a, b, jnp.broadcast_to(zero, b.shape[1:]), reverse=reverse)[edge]
    products, lasts = jax.lax.all_gather(mine, axis)
    states = linear_scan(products, lasts, initial, reverse=reverse)
    earlier, is_first = _place(axis, reverse)
    return linear_scan(a, b, jnp.where(is_first, initial, states[earlier]), reverse=reverse)


def _place(axis: str, reverse: bool) -> tuple[Array, Array]:
    """Which part runs before mine (any, where none does), and whether mine is the first."""
    place, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    if reverse:
        return jnp.minimum(place + 1, size - 1), place == size - 1
    return jnp.maximum(place - 1, 0), place == 0


def _compose_affine(first: tuple[Blocks, Vectors], second: tuple[Blocks, Vectors]) -> tuple[Blocks, Vectors]:
    """The map `second(first(x))` of two maps x -> a x + b."""
    return multiply(second[0], first[0]), apply(second[0], first[1]) + second[1]


def total(x: Float[Array, "..."], axis: str | None) -> Float[Array, ""]:
    """The sum over all of time."""
    return x.sum() if axis is None else jax.lax.psum(x.sum(), axis)


def largest(x: Float[Array, "..."], axis: str | None) -> Float[Array, ""]:
    """The largest over all of time; NaN where there is one."""
    return x.max() if axis is None else jax.lax.pmax(x.max(), axis)
