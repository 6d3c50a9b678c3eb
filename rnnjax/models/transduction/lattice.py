"""The lattice of a transducer: the sum over all alignments of T steps with U labels, diagonal by diagonal.

A node (t, u) is the state before step t is left with u labels said. Two arcs leave it:

    blank[t, u]   to (t + 1, u): the step is left           label[t, u]   to (t, u + 1): label u + 1 is said

All nodes of a diagonal t + u = d depend on the diagonal before alone, so that one scan of T + U steps visits all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...arrays import Length, carry_dtype
from .labels import BLANK, FLOOR, floored_log, impossible_as_infinity


class Arcs(NamedTuple):
    """The logarithms of the probabilities of the arcs."""

    blank: Float[Array, "... U1"]  # [T, U + 1]
    label: Float[Array, "... U"]  # [T, U]


def arcs(logits: Float[Array, "... U1 V"], labels: Int[Array, " U"]) -> Arcs:
    """The arcs of a lattice, or of one of its steps, by the logits after 0 to U labels."""
    log_p = floored_log(jax.nn.log_softmax(logits.astype(carry_dtype(logits.dtype))))
    index = labels.reshape((1,) * (log_p.ndim - 2) + (-1, 1))
    return Arcs(log_p[..., BLANK], jnp.take_along_axis(log_p[..., :-1, :], index, axis=-1)[..., 0])


def lattice_log_likelihood(arcs: Arcs, length: Length, target_length: Length) -> Float[Array, ""]:
    """The logarithm of the sum over all paths from (0, 0) to (length, target_length) of the product of their arcs.

        alpha[t, u] = log(exp(alpha[t - 1, u] + blank[t - 1, u]) + exp(alpha[t, u - 1] + label[t, u - 1]))

    It is alpha[length - 1, target_length] + blank[length - 1, target_length], in O(T U) operations; only one diagonal
    of alpha is held at a time. What JAX keeps for the gradient are arrays of T + U diagonals, none of which has an axis
    of classes. Arcs beyond the lengths may be any finite numbers. -inf if no path has a probability above 0.
    """
    T, states = arcs.blank.shape
    blanks, labels = _diagonals(arcs.blank), _diagonals(jnp.pad(arcs.label, ((0, 0), (0, 1))))
    last = length - 1 + target_length  # the diagonal of the node that is read
    nowhere = jnp.full((1,), FLOOR, blanks.dtype)

    def advance(alpha: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        diagonal, blank, label = inputs
        said_one = jnp.concatenate([nowhere, (alpha + label)[:-1]])
        after = jnp.logaddexp(alpha + blank, said_one)
        return jnp.where(diagonal < last, after, alpha), None

    start = jnp.full(states, FLOOR, blanks.dtype).at[0].set(0)
    alpha, _ = jax.lax.scan(advance, start, (jnp.arange(T + states - 1), blanks, labels))
    whole = alpha[target_length] + arcs.blank[jnp.maximum(length - 1, 0), target_length]
    nothing = jnp.where(target_length == 0, 0, FLOOR).astype(whole.dtype)
    return impossible_as_infinity(jnp.where(length > 0, whole, nothing))


def _diagonals(values: Float[Array, "T U1"]) -> Float[Array, "D U1"]:
    """The values by diagonals, [T + U, U + 1]: `result[d, u] = values[d - u, u]`, and `FLOOR` where that is outside.

    Each column is moved down by u: padded to T + U + 1 rows, and cut after T + U of them, the columns follow each other
    one row later each time. A gather would differentiate into a scatter.
    """
    T, columns = values.shape
    rows = T + columns - 1
    padded = jnp.pad(values.T, ((0, 0), (0, columns)), constant_values=FLOOR)
    return padded.reshape(-1)[: columns * rows].reshape(columns, rows).T
