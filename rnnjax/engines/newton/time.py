"""Operations along time. If `axis` names an axis of a mesh, time is spread over its devices, part by part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ...arrays import PyTree
from ...kernels.linear_scan.primitive import linear_scan
from ...kernels.linear_scan.sharded import scan_part
from .blocks import Blocks, Vectors, apply, clip, multiply

Compose = Callable[[Any, Any], Any]  # of two maps, the earlier one first


def before(first: Inexact[Array, "..."], rows: Inexact[Array, "T ..."], axis: str | None) -> Inexact[Array, "T ..."]:
    """`rows` one step later, `first` before them."""
    if axis is not None:
        size = jax.lax.axis_size(axis)
        handed = jax.lax.ppermute(rows[-1], axis, [(one, one + 1) for one in range(size - 1)])
        first = jnp.where(jax.lax.axis_index(axis) == 0, first, handed)
    return jnp.concatenate([first[None], rows[:-1]])


def prefix(compose: Compose, elements: PyTree[Array], axis: str | None) -> PyTree[Array]:
    """The composition of all elements up to each one."""
    local = jax.lax.associative_scan(compose, elements)
    if axis is None:
        return local
    totals = jax.lax.all_gather(jax.tree.map(lambda leaf: leaf[-1], local), axis)
    totals = jax.lax.associative_scan(compose, totals)
    part = jax.lax.axis_index(axis)
    carried = jax.tree.map(lambda leaf: leaf[jnp.maximum(part - 1, 0)], totals)
    whole = jax.vmap(compose, (None, 0))(carried, local)
    return jax.tree.map(lambda one, other: jnp.where(part == 0, one, other), local, whole)


def recurrence(a: Blocks, b: Vectors, initial: Vectors, axis: str | None) -> Vectors:
    """All states of `x_t = a_t x_{t-1} + b_t`, from x_0 = `initial`."""
    if a.shape[-1] == 1:
        scalars = a[..., 0, 0], b[..., 0], initial[..., 0]
        return (linear_scan(*scalars) if axis is None else scan_part(*scalars, axis))[..., None]
    start = apply(a[0], initial)
    if axis is not None:
        start = jnp.where(jax.lax.axis_index(axis) == 0, start, jnp.zeros_like(start))
    return prefix(_compose_affine, (a, b.at[0].add(start)), axis)[1]


def _compose_affine(first: tuple[Blocks, Vectors], second: tuple[Blocks, Vectors]) -> tuple[Blocks, Vectors]:
    """The map `second(first(x))` of two maps x -> a x + b.

    Products are clipped so that a product of two of them is finite, since infinity times zero is NaN: a long product
    may grow without bound while it multiplies zeros, such as the cotangents of a loss on the first steps alone.
    """
    return clip(multiply(second[0], first[0])), apply(second[0], first[1]) + second[1]


def total(x: Float[Array, "..."], axis: str | None) -> Float[Array, ""]:
    """The sum over all of time."""
    return x.sum() if axis is None else jax.lax.psum(x.sum(), axis)


def largest(x: Float[Array, "..."], axis: str | None) -> Float[Array, ""]:
    """The maximum over all of time; NaN if a value is not finite, which a maximum alone may ignore."""
    top = jnp.where(jnp.isfinite(x).all(), x.max(), jnp.inf)
    top = top if axis is None else jax.lax.pmax(top, axis)
    return jnp.where(jnp.isfinite(top), top, jnp.nan)
