"""Dropout masks: drawing them and applying them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ..arrays import PyTree


def keep(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability 1 - rate, value by value."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def scale(mask: Bool[Array, "..."], rate: float, values: Array) -> Array:
    """`values` / (1 - rate) where `mask`, so that the mean does not change; zero elsewhere."""
    return jnp.where(mask, values / (1 - rate), jnp.zeros_like(values))


def drop(name: str, key: PRNGKeyArray, rate: float, xs: PyTree[Array]) -> PyTree[Array]:
    """`xs` over time with one mask for all its steps; a dropped value is zero even if it was NaN."""
    if rate == 0:
        return xs
    leaves, structure = jax.tree.flatten(xs)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name}: expected floating or complex values to drop, got {leaf.dtype}. "
                f"Drop what an embedding makes of them: drop_embedding, or the inputs of the layer above"
            )
    keys = jax.random.split(key, len(leaves))
    dropped = [scale(keep(key, rate, leaf.shape[1:]), rate, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, dropped)
