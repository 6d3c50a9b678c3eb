"""Random numbers for initial weights are those of `jax.random`, with a key that is known or traced."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import initialise, random

MANY = random.PIECE + 3  # more than are computed at once


@lru_cache
def key(seed: int = 3) -> jax.Array:
    return jax.random.key(seed)


def words(keys: Any) -> np.ndarray:
    return np.stack([np.asarray(jax.random.key_data(each)) for each in keys])


def test_keys_are_split_as_jax_splits_them():
    np.testing.assert_array_equal(words(random.split(key(), 5)), jax.random.key_data(jax.random.split(key(), 5)))
    raw = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(np.stack(random.split(raw, 3)), jax.random.split(raw, 3))


def test_a_folded_key_is_a_split_one():
    """Attention draws its weights by the numbers of a split, as it did by folding them in."""
    folded = [jax.random.fold_in(key(), number) for number in range(3)]
    np.testing.assert_array_equal(words(random.split(key(), 3)), words(folded))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_are_those_of_jax(dtype):
    expected = jax.random.uniform(key(), (MANY,), dtype)
    np.testing.assert_array_equal(random.uniform(key(), (MANY,), dtype), expected)
    between = random.uniform(key(), (MANY,), dtype, -0.25, 0.5)
    np.testing.assert_allclose(between, 0.75 * np.asarray(expected) - 0.25, atol=2e-7)
    assert -0.25 <= between.min() < -0.249
    assert 0.499 < between.max() < 0.5


DRAWS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "normal": (random.normal, jax.random.normal),
    "truncated_normal": (
        random.truncated_normal,
        lambda key, shape, dtype: jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype),
    ),
    "glorot": (initialise.glorot, jax.nn.initializers.glorot_uniform()),
    "lecun": (initialise.lecun, jax.nn.initializers.lecun_normal()),
    "orthogonal": (initialise.orthogonal, jax.nn.initializers.orthogonal()),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_jax(name, dtype):
    """To rounding; of matrices that are wide, tall, and have axes in front."""
    ours, theirs = DRAWS[name]
    for shape in ((5, 40), (40, 5), (2, 3, 7)):
        drawn = ours(key(), shape, dtype)
        assert drawn.dtype == dtype
        expected = jax.jit(partial(theirs, shape=shape, dtype=jnp.dtype(dtype)))(key())
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=2e-5 if dtype == "float32" else 1e-12)


def test_distributions():
    normal, truncated = (
        np.asarray(draw(key(), (MANY,), "float64")) for draw in (random.normal, random.truncated_normal)
    )
    assert abs(normal.mean()) < 0.02
    assert abs(normal.var() - 1) < 0.02
    assert np.abs(normal).max() > 3.5
    assert 1.99 < np.abs(truncated).max() < 2
    assert abs(truncated.std() - 0.8796) < 0.01
    assert abs(np.var(initialise.lecun(key(), (200, 300))) - 1 / 200) < 0.02 / 200
    assert abs(np.var(initialise.glorot(key(), (200, 300))) - 2 / 500) < 0.02 * 2 / 500
    assert abs(np.var(initialise.normal(key(), (200, 300))) - 1 / 300) < 0.02 / 300


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_orthogonal_rows_or_columns(shape):
    matrix = np.asarray(initialise.orthogonal(key(), shape, jnp.float64))
    narrow = matrix if shape[0] > shape[1] else matrix.T
    np.testing.assert_allclose(narrow.T @ narrow, np.eye(30), atol=1e-13)


def build(key: Any, dtype: Any = jnp.float32) -> rnnjax.LSTM:
    chrono = initialise.chrono(20)
    return rnnjax.LSTM(3, 4, key=key, heads=2, peepholes=True, bias_initialiser=chrono, dtype=dtype)


def assert_alike(one: Any, other: Any, atol: float = 2e-6) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(np.asarray(left, float), np.asarray(right, float), atol=atol)


def test_a_traced_key_gives_the_weights_of_a_known_one():
    """Traced, closed over by what is traced, mapped, and of no value at all."""
    known = build(key())
    assert_alike(eqx.filter_jit(build)(key()), known)
    assert_alike(eqx.filter_jit(lambda: build(key()))(), known)
    many = eqx.filter_jit(eqx.filter_vmap(build))(jax.random.split(key(), 3))
    assert_alike(jax.tree.map(lambda leaf: np.asarray(leaf)[1], many), build(random.split(key(), 3)[1]))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), known)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), eqx.filter_eval_shape(build, key()))


@pytest.mark.parametrize("make", [rnnjax.LRU, rnnjax.S5])
def test_a_traced_key_gives_the_weights_of_a_state_space(make):
    assert_alike(eqx.filter_jit(lambda key: make(3, 4, key=key))(key()), make(3, 4, key=key()), 1e-5)


def test_keys_of_other_kinds():
    """A raw key is the typed one of the same seed; another generator draws other numbers, by JAX."""
    assert_alike(build(jax.random.PRNGKey(3)), build(key()))
    other = build(jax.random.key(3, impl="rbg"))
    assert not np.allclose(other.input_weight, build(key()).input_weight)
    assert np.isfinite(other.recurrent_weight).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_wide_ones_rounded(dtype):
    narrow, wide = build(key(), jnp.dtype(dtype)), build(key())
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), wide)
    assert_alike(narrow, rounded, 0)


def test_float64_where_it_is_switched_off():
    with jax.enable_x64(False):
        drawn = initialise.glorot(key(), (3, 4), jnp.float64)
    assert drawn.dtype == "float32"
