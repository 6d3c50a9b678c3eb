"""Random numbers for initial weights: those of `jax.random`, computed by NumPy if the key is known.

Outside of `jax.jit` JAX compiles a program for each operation and each shape, which takes a second or more for one
cell. These functions compute the same numbers without compiling: they use the same random bits, and results may differ
in their last bits only. While a program is traced, and for generators other than threefry, `jax.random` is used.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray

from .arrays import DType, carry_dtype

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PIECE = 1 << 16  # counters that are computed at once, since they fit into a processor's cache
LAYOUT = {"float32": (np.uint32, 32 - 23), "float64": (np.uint64, 64 - 52)}  # its bits, and those beyond the mantissa

Words = tuple[np.uint32, np.uint32]  # a key
Hashed = tuple[np.ndarray, np.ndarray]
Drawn = Array | np.ndarray


def split(key: PRNGKeyArray, count: int) -> list[PRNGKeyArray]:
    """`jax.random.split`, as a list."""
    words = _words(key)
    if words is None:
        return list(jax.random.split(key, count))
    data = np.stack(_threefry(words, count), axis=1)
    with jax.ensure_compile_time_eval():  # the keys stay known even while something else is traced
        rows = [jax.device_put(row) for row in data]
        return (
            [jax.random.wrap_key_data(row, impl=jax.random.key_impl(key)) for row in rows] if _is_typed(key) else rows
        )


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType, least: float = 0.0, most: float = 1.0) -> Drawn:
    """Uniform in [least, most). Like all functions here, it draws in float32 or wider, whatever `dtype`."""
    dtype, words = _drawn(dtype), _words(key)
    if words is None:
        return jax.random.uniform(key, shape, dtype, least, most)
    return _uniform(words, shape, dtype, least, most)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType) -> Drawn:
    """Standard normal."""
    dtype, words = _drawn(dtype), _words(key)
    if words is None:
        return jax.random.normal(key, shape, dtype)
    least = float(np.nextafter(dtype.type(-1), dtype.type(0)))  # at -1 the quantile is infinite
    return _normal_quantile(_uniform(words, shape, dtype, least, 1.0))


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType) -> Drawn:
    """Standard normal, given that it is within two standard deviations."""
    dtype, words = _drawn(dtype), _words(key)
    if words is None:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    share = 0.9544997361036416  # of a normal distribution within two standard deviations
    inside = np.nextafter(dtype.type(2), dtype.type(0))
    return np.clip(_normal_quantile(_uniform(words, shape, dtype, -share, share)), -inside, inside)


def orthogonal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType) -> Drawn:
    """A matrix of orthonormal rows or columns, uniformly distributed; leading axes are rows, too."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    drawn = normal(key, (max(rows, columns), min(rows, columns)), dtype)
    xp = numpy_for(drawn)
    basis, triangle = xp.linalg.qr(drawn)
    basis = basis * xp.sign(xp.diagonal(triangle))
    return (basis.T if rows < columns else basis).reshape(shape)


def each(key: PRNGKeyArray, count: int, draw: Callable[[PRNGKeyArray], Array], axis: int = 0) -> Drawn:
    """`count` draws with different keys, stacked along `axis`."""
    if _words(key) is None:
        return jax.vmap(draw, out_axes=axis)(jax.random.split(key, count))
    return stack([draw(one) for one in split(key, count)], axis)


def stack(arrays: list[Drawn], axis: int = 0) -> Drawn:
    """Arrays stacked along a new axis."""
    return numpy_for(*arrays).stack(arrays, axis)


def array(values: Drawn, dtype: DType) -> Array:
    """Drawn values as an array of JAX, in `dtype`."""
    if isinstance(values, Tracer):
        return values.astype(dtype)
    return jax.device_put(np.asarray(values).astype(jax.dtypes.canonicalize_dtype(dtype)))  # jnp.asarray compiles


def known(values: Array) -> Drawn:
    """`values` in NumPy, whose arithmetic compiles nothing, unless they are traced."""
    return values if isinstance(values, Tracer) else np.asarray(values)


def zeros(shape: int | tuple[int, ...], dtype: DType) -> Array:
    """Zeros as an array of JAX."""
    return array(np.zeros(shape), dtype)


def numpy_for(*values: object) -> ModuleType:
    """NumPy if all values are known, `jax.numpy` if some are traced."""
    return jnp if any(isinstance(value, Tracer) for value in values) else np


def _drawn(dtype: DType) -> np.dtype:
    return np.dtype(jax.dtypes.canonicalize_dtype(carry_dtype(dtype)))


def _is_typed(key: PRNGKeyArray) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _words(key: PRNGKeyArray) -> Words | None:
    """The two words of a threefry key that is known; None for any other key, and while a program is traced.

    There the draw is part of the program, of which only the shape may be needed.
    """
    config: Any = jax.config  # type checkers do not know its flags
    if not config.jax_threefry_partitionable:
        return None
    typed = key if _is_typed(key) else jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(typed)) != "threefry2x32" or typed.shape != ():
        return None
    data = jax.random.key_data(typed)
    if isinstance(data, Tracer):
        return None
    first, second = np.asarray(data)
    return first, second


def _uniform(words: Words, shape: tuple[int, ...], dtype: np.dtype, least: float, most: float) -> np.ndarray:
    bits = _bits(words, math.prod(shape), dtype)
    kind, shift = LAYOUT[dtype.name]
    fractions = (bits >> kind(shift) | dtype.type(1).view(kind)).view(dtype) - dtype.type(1)
    low, high = dtype.type(least), dtype.type(most)
    return np.maximum(low, fractions * (high - low) + low).reshape(shape)


def _bits(words: Words, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` random integers with as many bits as `dtype`."""
    first, second = _threefry(words, count)
    if dtype.itemsize == 4:
        return first ^ second
    return first.astype(np.uint64) << np.uint64(32) | second


def _threefry(words: Words, count: int) -> Hashed:
    """The two words of threefry2x32 for each of the counters 0, 1, ... (Salmon et al. 2011, 20 rounds)."""
    hashed = np.empty((2, count), np.uint32)
    for start in range(0, count, PIECE):
        counters = np.arange(start, min(start + PIECE, count), dtype=np.uint64)
        hashed[:, start : start + PIECE] = _rounds(words, (counters >> np.uint64(32)).astype(np.uint32), counters)
    return hashed[0], hashed[1]


def _rounds(words: Words, high: np.ndarray, counters: np.ndarray) -> Hashed:
    keys = [np.full(1, word, np.uint32) for word in (*words, words[0] ^ words[1] ^ np.uint32(0x1BD11BDA))]
    x, y = high + keys[0], counters.astype(np.uint32) + keys[1]
    for number in range(5):
        for rotation in ROTATIONS[number % 2]:
            x += y
            y = (y << np.uint32(rotation) | y >> np.uint32(32 - rotation)) ^ x
        x += keys[(number + 1) % 3]
        y += keys[(number + 2) % 3] + np.uint32(number + 1)
    return x, y


def _normal_quantile(symmetric: np.ndarray) -> np.ndarray:
    """Standard normal numbers from numbers that are uniform in (-1, 1)."""
    from scipy.special import erfinv  # takes 0.1 s, and only drawing needs it

    return (erfinv(symmetric) * np.sqrt(2.0).astype(symmetric.dtype)).astype(symmetric.dtype)
