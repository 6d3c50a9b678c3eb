"""Weights on their way between two layouts: arrays read and placed, the gates of a matrix or of a bias in order.

A matrix [in, G H] and a vector [G H] hold one block for each gate, side by side. An order of gates is a string of
their letters: `ifgo` of an LSTM, `rzn` of a GRU; another library may call g c or j, and n h or a.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .. import check, random
from ..arrays import DType

Weight = np.ndarray | Array  # of JAX only where it is traced: NumPy compiles nothing


def reorder(weight: Weight, given: str, wanted: str) -> Weight:
    """The blocks of the last axis from the order `given` to the order `wanted`, which may leave some out."""
    blocks = by_letter(weight, given)
    return join([blocks[gate] for gate in wanted])


def by_letter(weight: Weight, gates: str) -> dict[str, Weight]:
    """The blocks of the last axis by the letters of their gates."""
    return dict(zip(gates, random.numpy_for(weight).split(weight, len(gates), axis=-1), strict=True))


def join(blocks: list[Weight]) -> Weight:
    """Blocks side by side along the last axis."""
    return random.numpy_for(*blocks).concatenate(blocks, axis=-1)


def absent(weight: Weight) -> Weight:
    """An array of -0.0, shaped as `weight`: a sum with it changes no bit, not even the sign of a zero."""
    return random.numpy_for(weight).full_like(weight, -0.0)


def read(values: object) -> Weight:
    """An array of JAX or NumPy, for arithmetic that compiles nothing."""
    return values if isinstance(values, Tracer) else np.asarray(values)


def place(name: str, weight: Weight) -> Array:
    """A weight as an array of JAX, of its own memory, in its own dtype. Raises where JAX would narrow it."""
    check.dtype(weight.dtype)
    if jax.dtypes.canonicalize_dtype(weight.dtype) != weight.dtype:
        raise ValueError(
            f"{name}: expected float32 or narrower while float64 is disabled in JAX, got {weight.dtype}. "
            'Call jax.config.update("jax_enable_x64", True) first, or cast the weights to float32'
        )
    return random.array(weight, weight.dtype)


def one_dtype(weights: Mapping[str, Weight]) -> DType:
    """The dtype that all of them have."""
    dtypes = {name: str(weight.dtype) for name, weight in weights.items()}
    if len(set(dtypes.values())) != 1:
        raise ValueError(f"weights: expected one dtype, got {dtypes}. Cast them to one")
    return next(iter(weights.values())).dtype
