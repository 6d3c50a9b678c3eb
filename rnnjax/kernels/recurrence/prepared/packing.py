"""How the weights of a prepared cell are packed: in one layout for all machines, as they are or narrow.

Units are in Q blocks of P = 16, each of one head; the last block of a head is filled up with zeros. W is
[Q, I, G, P], and R is [Q, D, G, P]: what a step needs for a block stands together, in the order in which it is read.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ....arrays import DType, by_gate, by_head, carry_dtype, cast, largest
from ....gated_cell import AbstractGatedCell
from ..contract import PreparedWeights

PREPARED_UNITS = 16  # P, as in interface.h
LARGEST = 127  # of the integers of an int8 weight


@partial(jax.jit, static_argnums=1)
def pack(cell: AbstractGatedCell, stored: DType) -> PreparedWeights:
    """The weights of `cell`, its matrices in the dtype `stored`, without S."""
    gates, carried = len(cell.gates), carry_dtype(cell.dtype)
    R = by_gate(by_head(cell.recurrent_weight), gates)
    heads, _, _, units = R.shape
    W = by_gate(cell.input_weight, gates).reshape(-1, gates, heads, units).transpose(2, 0, 1, 3)
    (W, W_scale), (R, R_scale) = (_pack_matrix(matrix.astype(carried), stored) for matrix in (W, R))
    bias = jnp.zeros((gates, cell.hidden_size)) if cell.bias is None else by_gate(cell.bias, gates)
    vectors = jax.tree.leaves(cell.unit_parameters)
    stacked = jnp.stack(vectors) if vectors else jnp.zeros((0, cell.hidden_size))
    b, stacked, initial = cast((bias, stacked, jnp.stack(list(cell.initial()))), carried)
    return PreparedWeights(W, b, R, stacked, initial, W_scale, R_scale)


def _pack_matrix(
    matrix: Float[Array, "N K G D"], stored: DType
) -> tuple[Num[Array, "Q K G P"], Float[Array, "G H"] | None]:
    """The matrix in blocks, and the scales of its columns if it is stored as integers."""
    heads, depth, gates, units = matrix.shape
    scale = None
    if stored == jnp.int8:
        scale = _scales(matrix)
        matrix = jnp.round(matrix / jnp.where(scale == 0, 1, scale)[:, None])
        scale = scale.transpose(1, 0, 2).reshape(gates, heads * units)
    padded = jnp.pad(matrix.astype(stored), [(0, 0), (0, 0), (0, 0), (0, -units % PREPARED_UNITS)])
    blocks = padded.reshape(heads, depth, gates, -1, PREPARED_UNITS).transpose(0, 3, 1, 2, 4)
    return blocks.reshape(-1, depth, gates, PREPARED_UNITS), scale


def _scales(matrix: Float[Array, "N K G D"]) -> Float[Array, "N G D"]:
    """What one is worth in each column: NaN where a weight is not finite, so that its unit is NaN, too."""
    if matrix.shape[1] == 0:
        return jnp.zeros_like(matrix, shape=(matrix.shape[0], *matrix.shape[2:]))
    scale = largest(jnp.abs(matrix).swapaxes(0, 1)) / LARGEST
    return jnp.where(jnp.isfinite(scale), scale, jnp.nan)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def multiply(
    matrix: Num[Array, "Q K G P"],
    scale: Float[Array, "G H"] | None,
    rows: Float[Array, "T N K"],
    heads: int,
    units: int,
) -> Float[Array, "T G H"]:
    """The product of a packed matrix with rows: those of each head, or, where N is 1, those of all `heads`."""
    blocks, depth, gates, _ = matrix.shape
    T, width = rows.shape[0], blocks // heads * PREPARED_UNITS  # T may be a symbol
    left = jnp.repeat(rows.swapaxes(0, 1), blocks // rows.shape[1], axis=0)
    sums = jnp.matmul(left, matrix.reshape(blocks, depth, gates * PREPARED_UNITS).astype(rows.dtype))
    by_head = sums.reshape(heads, blocks // heads, T, gates, PREPARED_UNITS).transpose(2, 3, 0, 1, 4)
    products = by_head.reshape(T, gates, heads, width)[..., :units].reshape(T, gates, heads * units)
    return products if scale is None else products * scale


@multiply.defjvp
def _refuse_gradient(heads: int, units: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    del heads, units, primals, tangents
    raise ValueError(NO_GRADIENT)


NO_GRADIENT = (
    "cell: expected one with a gradient, got a prepared cell, whose weights are packed for inference. "
    "Take the gradient of the cell that rnnjax.prepare was given"
)


def input_product(weights: PreparedWeights, xs: Float[Array, "T I"]) -> Float[Array, "T G H"]:
    """`us = W xs + b` of all steps."""
    return multiply(weights.W, weights.W_scale, xs[:, None], *_heads(weights)) + weights.b


def state_product(weights: PreparedWeights, h: Float[Array, " H"]) -> Float[Array, "G H"]:
    """`v = R h` of one step."""
    heads, units = _heads(weights)
    return multiply(weights.R, weights.R_scale, h.reshape(1, heads, units), heads, units)[0]


def _heads(weights: PreparedWeights) -> tuple[int, int]:
    """N and D."""
    units = weights.R.shape[1]
    return weights.b.shape[1] // units, units
