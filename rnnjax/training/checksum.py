"""A checksum of arrays: the same on any number of devices, and another one after any change of a single word.

The 32-bit words of an array are mixed with their places in it and added, modulo 2^32. Addition knows no order, so each
device adds up its own part. The mixing is the finaliser of MurmurHash3 (Appleby, 2011), a bijection of words.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from ..arrays import AnyArray

ODD = np.uint32(0x9E3779B9)  # so that each place has a number of its own


def checksums(arrays: Mapping[str, AnyArray]) -> dict[str, int]:
    """The checksum of each array, by its name. The arrays are JAX's, on any devices, or NumPy's."""
    if not arrays:
        return {}
    sums = np.asarray(_sums({name: _narrow(array) for name, array in arrays.items()}))
    return dict(zip(sorted(arrays), sums.tolist(), strict=True))


def _narrow(array: AnyArray) -> Array:
    """An array of NumPy, whose dtype JAX may not have, as words; one of JAX as it is."""
    if not isinstance(array, np.ndarray):
        return array
    words = array.reshape(array.shape or (1,)).view(f"u{min(array.dtype.itemsize, 4)}")
    return jnp.asarray(words.astype(np.uint32))


@jax.jit
def _sums(arrays: dict[str, Array]) -> UInt32[Array, " arrays"]:
    return jnp.stack([_sum(_words(arrays[name])) for name in sorted(arrays)])


def _sum(words: Array) -> UInt32[Array, ""]:
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words + _mix(place * ODD)), dtype=jnp.uint32)


def _mix(word: Array) -> Array:
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _words(array: Array) -> Array:
    """The bits of an array as words of 32, in its order."""
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], -1)
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, narrow).astype(jnp.uint32)
