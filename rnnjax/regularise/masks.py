"""Masks: which values are kept, and what is left of those that are not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree


def check_rate(name: str, rate: float) -> None:
    """Raise unless `rate` is a share that leaves something over."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{name}: expected a probability of dropping from 0 up to, not with, 1, got {rate!r}. "
            f"To keep a share p of the values, pass 1 - p"
        )


def keep(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability 1 - rate, value by value."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def scale(mask: Bool[Array, "..."], rate: float, values: Array) -> Array:
    """The values kept, divided by the probability of being kept so that their mean is as before; zero elsewhere."""
    return jnp.where(mask, values / (1 - rate), jnp.zeros_like(values))


def drop(key: PRNGKeyArray, rate: float, xs: PyTree[Array]) -> PyTree[Array]:
    """`xs` over time under one mask for all its steps."""
    leaves, structure = jax.tree.flatten(xs)
    keys = jax.random.split(key, len(leaves))
    dropped = [scale(keep(key, rate, leaf.shape[1:]), rate, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, dropped)
