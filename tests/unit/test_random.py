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
def key(implementation: str | None = None) -> jax.Array:
    with jax.ensure_compile_time_eval():  # also where it is first asked for inside of a trace
        return jax.random.key(3, impl=implementation)


def words(keys: Any) -> np.ndarray:
    return np.stack([np.asarray(jax.random.key_data(each)) for each in keys])


# Bits


def test_keys_are_split_as_jax_splits_them():
    np.testing.assert_array_equal(words(random.split(key(), 5)), jax.random.key_data(jax.random.split(key(), 5)))
    raw = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(np.stack(random.split(raw, 5)), jax.random.split(raw, 5))


def test_a_folded_key_is_a_split_one():
    """Attention draws its weights by the numbers of a split, as it did by folding them in."""
    folded = [jax.random.fold_in(key(), number) for number in range(3)]
    np.testing.assert_array_equal(words(random.split(key(), 3)), words(folded))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_are_those_of_jax(dtype):
    drawn = random.uniform(key(), (MANY,), dtype)
    expected = jax.jit(partial(jax.random.uniform, shape=(MANY,), dtype=jnp.dtype(dtype)))(key())
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn, expected)
    between = random.uniform(key(), (MANY,), dtype, -0.25, 0.5)
    np.testing.assert_allclose(between, 0.75 * drawn - 0.25, atol=2e-7)
    assert -0.25 <= between.min() < -0.249
    assert 0.499 < between.max() < 0.5


# Distributions

OF_ALL: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # whose numbers know nothing of their places
    "normal": (random.normal, jax.random.normal),
    "truncated_normal": (
        random.truncated_normal,
        lambda key, shape, dtype: jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype),
    ),
}
OF_FANS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "glorot": (initialise.glorot, jax.nn.initializers.glorot_uniform()),
    "lecun": (initialise.lecun, jax.nn.initializers.lecun_normal()),
    "orthogonal": (initialise.orthogonal, jax.nn.initializers.orthogonal()),
    "of_units": (
        initialise.normal,
        lambda key, shape, dtype: jax.random.normal(key, shape, dtype) * np.asarray(shape[-1] ** -0.5, dtype),
    ),
}
DRAWS = OF_ALL | OF_FANS
SHAPES = (5, 40), (40, 5), (2, 3, 7)  # wide, tall, and with an axis in front


@lru_cache
def of_jax(dtype: str) -> dict[tuple[str, tuple[int, ...]], jax.Array]:
    """The draws of JAX, as one program."""
    cases = [(name, shape) for name in DRAWS for shape in (SHAPES if name in OF_FANS else SHAPES[:1])]
    draw = lambda key: {(name, shape): DRAWS[name][1](key, shape, jnp.dtype(dtype)) for name, shape in cases}  # noqa: E731
    return jax.jit(draw)(key())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_jax(name, dtype):
    """To rounding."""
    cases = {shape: expected for (drawn, shape), expected in of_jax(dtype).items() if drawn == name}
    assert cases
    for shape, expected in cases.items():
        drawn = DRAWS[name][0](key(), shape, dtype)
        assert drawn.dtype == dtype
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=2e-5 if dtype == "float32" else 1e-12)


def test_distributions():
    uniform, normal, truncated = (
        np.asarray(draw(key(), (MANY,), "float64")) for draw in (random.uniform, random.normal, random.truncated_normal)
    )
    assert abs(uniform.mean() - 0.5) < 0.005
    assert abs(uniform.var() - 1 / 12) < 0.002
    assert abs(normal.mean()) < 0.02
    assert abs(normal.var() - 1) < 0.02
    assert np.abs(normal).max() > 3.5
    assert abs(truncated.mean()) < 0.02
    assert 1.99 < np.abs(truncated).max() < 2
    assert abs(truncated.std() - 0.8796) < 0.01


@pytest.mark.parametrize(
    ("draw", "variance"), [(initialise.lecun, 1 / 200), (initialise.glorot, 2 / 500), (initialise.normal, 1 / 300)]
)
def test_variances(draw, variance):
    drawn = np.asarray(draw(key(), (200, 300)))
    assert abs(drawn.mean()) < 0.02 * variance**0.5
    assert abs(drawn.var() - variance) < 0.02 * variance


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_orthogonal_rows_or_columns(shape):
    matrix = np.asarray(initialise.orthogonal(key(), shape, jnp.float64))
    narrow = matrix if shape[0] > shape[1] else matrix.T
    np.testing.assert_allclose(narrow.T @ narrow, np.eye(30), atol=1e-13)


# Keys


def build(key: Any, dtype: Any = jnp.float32) -> rnnjax.LSTM:
    chrono = initialise.chrono(20)
    return rnnjax.LSTM(3, 4, key=key, heads=2, peepholes=True, bias_initialiser=chrono, dtype=dtype)


def assert_alike(one: Any, other: Any, atol: float = 2e-6) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(np.asarray(left, float), np.asarray(right, float), atol=atol)


def test_a_traced_key_gives_the_weights_of_a_known_one():
    """Traced, mapped, and of no value at all; and a known one that is closed over by what is traced."""

    @eqx.filter_jit
    def traced(one: jax.Array, many: jax.Array) -> Any:
        return build(one), build(key()), eqx.filter_vmap(build)(many)

    known, keys = build(key()), random.split(key(), 3)
    by_argument, closed_over, many = traced(key(), jax.random.split(key(), 3))
    assert_alike(by_argument, known)
    assert_alike(closed_over, known)
    for number, each in enumerate(keys):
        assert_alike(jax.tree.map(lambda leaf, number=number: np.asarray(leaf)[number], many), build(each))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), known)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), eqx.filter_eval_shape(build, key()))


def test_nothing_is_drawn_where_only_shapes_are_asked_for(monkeypatch):
    monkeypatch.setattr(random, "_threefry", None)
    with pytest.raises(TypeError):
        build(key())
    assert eqx.filter_eval_shape(lambda: build(key())).input_weight.shape == (3, 4 * 4)


def test_a_traced_key_gives_the_weights_of_a_state_space():
    makers = rnnjax.LRU, rnnjax.S5
    traced = eqx.filter_jit(lambda key: [make(3, 4, key=key) for make in makers])(key())
    assert_alike(traced, [make(3, 4, key=key()) for make in makers], 1e-5)


def test_a_raw_key_is_the_typed_one_of_its_seed():
    assert_alike(build(jax.random.PRNGKey(3)), build(key()), 0)


def test_another_generator_draws_other_numbers_by_jax():
    other = key("rbg")
    np.testing.assert_array_equal(words(random.split(other, 3)), jax.random.key_data(jax.random.split(other, 3)))
    drawn = initialise.glorot(other, (5, 40))
    expected = jax.jit(partial(jax.nn.initializers.glorot_uniform(), shape=(5, 40), dtype=jnp.float32))(other)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert not np.allclose(drawn, initialise.glorot(key(), (5, 40)))
    small = lambda key: rnnjax.MinGRU(3, 4, key=key)  # noqa: E731
    assert_alike(small(other), eqx.filter_jit(small)(other))


# Dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_wide_ones_rounded(dtype):
    narrow, wide = build(key(), jnp.dtype(dtype)), build(key())
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), wide)
    assert_alike(narrow, rounded, 0)


@pytest.mark.parametrize("draw", [draw for draw, _ in DRAWS.values()])
def test_float64_where_it_is_switched_off(draw):
    """It is float32, without a warning, which would be an error here."""
    with jax.enable_x64(False):
        drawn = draw(key(), (3, 4), jnp.float64)
        expected = draw(key(), (3, 4), jnp.float32)
    assert drawn.dtype == "float32"
    np.testing.assert_array_equal(drawn, expected)


def test_a_cell_of_float64_where_it_is_switched_off():
    with jax.enable_x64(False):
        assert_alike(build(key(), jnp.float64), build(key()), 0)
