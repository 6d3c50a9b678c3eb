"""Problems for a kernel: weights, some of them shared by all groups, sequences, marks, and random numbers for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from rnnjax.arrays import by_gate, by_head
from rnnjax.kernels.recurrence.contract import Weights

S, B, T, I, H = 2, 4, 6, 3, 8  # noqa: E741

LENGTH = np.asarray([[0, 1, 4, T], [T, 3, 0, 2]], np.int32)
RESETS = np.random.default_rng(0).random((S, B, T)) < 0.4
MARKS = {"plain": (None, None), "length": (LENGTH, None), "resets": (None, RESETS), "both": (LENGTH, RESETS)}


def draw(like: PyTree, seed: int) -> PyTree:
    """Random arrays of the shapes and dtypes of `like`, which may be shapes alone."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (generator.normal(size=leaf.shape) / 2).astype(leaf.dtype), like)


def shapes(cell: Any, *, batch: int = B, steps: int = T) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Weights, some of them shared by all groups, inputs and states."""
    gates, blocks = len(cell.gates), by_gate(by_head(cell.recurrent_weight), len(cell.gates)).shape
    fields, unit_parameters = len(cell.state_type._fields), len(jax.tree.leaves(cell.unit_parameters))
    leading = {"W": (1, I, gates, H), "b": (S, gates, H), "R": (S, *blocks), "unit_parameters": (1, unit_parameters, H)}
    weights = Weights(**{name: np.zeros(shape) for name, shape in leading.items()}, initial=np.zeros((S, fields, H)))
    return weights, np.zeros((S, batch, steps, I)), np.zeros((S, batch, fields, H))


def dot(one: PyTree, other: PyTree) -> Array:
    return sum(jnp.vdot(left, right) for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
