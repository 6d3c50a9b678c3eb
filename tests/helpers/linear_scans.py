"""Diagonal linear recurrences to compute, and what a loop in double precision makes of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

WAYS = [(reverse, late) for reverse in (False, True) for late in (False, True)]
TOLERANCE = 2e-5


def draw(*shape: int, dtype: Any = "float64", seed: int = 0) -> np.ndarray:
    """Random numbers, none of them near zero; of the complex ones some are real, and some are imaginary."""
    random = np.random.default_rng(seed)
    size = random.uniform(0.2, 1, shape) * random.choice([-1, 1], shape)
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return size.astype(dtype)
    turned = size * np.exp(1j * random.uniform(-1, 1, shape))
    on_axes = np.choose(random.integers(0, 4, shape), [size, 1j * size, turned, turned])
    return on_axes.astype(dtype)


def operands(A: int, B: int, T: int, H: int, dtype: Any = "float64") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(A, T, H, dtype=dtype), draw(B, T, H, dtype=dtype, seed=1), draw(B, H, dtype=dtype, seed=2)


def by_loop(a: np.ndarray, b: np.ndarray, initial: np.ndarray, *, reverse: bool, late: bool) -> np.ndarray:
    """All states, step by step, in double precision."""
    a, b = np.broadcast_to(a, b.shape).astype("complex128"), b.astype("complex128")
    h, carry = np.zeros_like(b), initial.astype("complex128")
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        forgets = a[:, t] == 0
        h[:, t] = carry + b[:, t] if late else np.where(forgets, b[:, t], a[:, t] * carry + b[:, t])
        carry = np.where(forgets, 0, a[:, t] * h[:, t]) if late else h[:, t]
    return h


def gradients_by_loop(
    a: np.ndarray, b: np.ndarray, initial: np.ndarray, dh: np.ndarray, *, reverse: bool
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All states, and the cotangents of all operands, `dh` being those of the states."""
    h = by_loop(a, b, initial, reverse=reverse, late=False)
    db = by_loop(a, dh, np.zeros_like(initial), reverse=not reverse, late=True)
    first = -1 if reverse else 0
    before = np.roll(h, -1 if reverse else 1, 1)
    before[:, first] = initial
    return h, (db * before, db, a[:, first] * db[:, first])


def assert_same(got: Any, expected: np.ndarray) -> None:
    """Equal to the tolerance, and NaN in the same places."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(np.nan_to_num(got), np.nan_to_num(expected), rtol=0, atol=TOLERANCE)
