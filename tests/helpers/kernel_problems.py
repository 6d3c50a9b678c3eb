"""Problems for a kernel: weights, some of them shared by all groups, sequences, marks, and random numbers for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rnnjax.kernel import Weights

S, B, T, I, H = 2, 4, 6, 3, 8  # noqa: E741

LENGTH = jnp.asarray([[0, 1, 4, T], [T, 3, 0, 2]], jnp.int32)
RESETS = jnp.asarray(np.random.default_rng(0).random((S, B, T)) < 0.4)
MARKS = {"plain": (None, None), "length": (LENGTH, None), "resets": (None, RESETS), "both": (LENGTH, RESETS)}


def draw(like: PyTree, seed: int) -> PyTree:
    """Random arrays of the shapes and dtypes of `like`."""
    leaves, form = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.5 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(form, drawn)


def shapes(cell: Any) -> tuple[Weights, Array, Array]:
    """Weights, some of them shared by all groups, inputs and states."""
    gates, heads = cell.input_weight.shape[1], cell.recurrent_weight.shape
    fields, gains = len(jax.tree.leaves(cell.initial())), len(jax.tree.leaves(cell.gains))
    leading = {"W": (1, I, gates, H), "b": (S, gates, H), "R": (S, *heads), "gains": (1, gains, H)}
    weights = Weights(**{name: jnp.zeros(shape) for name, shape in leading.items()}, initial=jnp.zeros((S, fields, H)))
    return weights, jnp.zeros((S, B, T, I)), jnp.zeros((S, B, fields, H))


def dot(one: PyTree, other: PyTree) -> Array:
    return sum(jnp.vdot(left, right) for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
