"""Attention: scores of a memory against a query, and the mean of the memory with these weights.

A memory has S steps of M features; a query has Q features, and a key K.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import AnyArray, DType, carry_dtype, select
from ..checked import Checked
from ..exporting import exportable


class AbstractScore(eqx.Module):
    """The score of each step of a memory for a query.

    Subclass requirements: `keys`, all computations that need no query, done once for all queries; and `__call__`.
    """

    @abc.abstractmethod
    def keys(self, values: Float[Array, "S M"]) -> Float[Array, "S K"]:
        """The keys, with which queries are compared."""

    @abc.abstractmethod
    def __call__(self, query: Float[Array, " Q"], keys: Float[Array, "S K"]) -> Float[Array, " S"]:
        """The scores, in float32 or wider."""


class Additive(AbstractScore):
    """Bahdanau et al. 2015, arXiv:1409.0473: score(q, m) = v^T tanh(W q + U m).

    Luong's *concat*, v^T tanh(W [q; m]), is the same function: its W is W and U concatenated.
    """

    query_weight: Float[Array, "Q K"]
    memory_weight: Float[Array, "M K"]
    output_weight: Float[Array, " K"]

    def __init__(self, query_size: int, memory_size: int, size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32):
        """Draw the weights. `query_size`, `memory_size` and `size` are Q, M and K."""
        check.sizes(query_size=query_size, memory_size=memory_size, size=size)
        check.dtype(dtype)
        self.query_weight = _draw(key, 0, (query_size, size), dtype)
        self.memory_weight = _draw(key, 1, (memory_size, size), dtype)
        self.output_weight = random.array(random.known(_draw(key, 2, (size, 1), dtype))[:, 0], dtype)

    def keys(self, values: Checked[Array]) -> Float[Array, "S K"]:
        _check_features("memory", values, self.memory_weight.shape[0])
        return values @ self.memory_weight

    def __call__(self, query: Checked[Array], keys: Float[Array, "S K"]) -> Float[Array, " S"]:
        _check_features("query", query, self.query_weight.shape[0])
        energies = jnp.tanh(query.astype(keys.dtype) @ self.query_weight + keys)
        return jnp.matmul(energies, self.output_weight, preferred_element_type=carry_dtype(keys.dtype))


class Dot(AbstractScore):
    """Luong et al. 2015, arXiv:1508.04025: score(q, m) = q^T m, for Q = M. It has no weights."""

    def keys(self, values: Checked[Array]) -> Float[Array, "S K"]:
        return values

    def __call__(self, query: Checked[Array], keys: Float[Array, "S K"]) -> Float[Array, " S"]:
        _check_features("query", query, keys.shape[-1])
        return jnp.matmul(keys, query.astype(keys.dtype), preferred_element_type=carry_dtype(keys.dtype))


class General(AbstractScore):
    """Luong et al. 2015, arXiv:1508.04025: score(q, m) = q^T W m."""

    weight: Float[Array, "M Q"]

    def __init__(self, query_size: int, memory_size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32):
        """Draw W. `query_size` and `memory_size` are Q and M."""
        check.sizes(query_size=query_size, memory_size=memory_size)
        check.dtype(dtype)
        self.weight = _draw(key, 0, (memory_size, query_size), dtype)

    def keys(self, values: Checked[Array]) -> Float[Array, "S K"]:
        _check_features("memory", values, self.weight.shape[0])
        return values @ self.weight

    def __call__(self, query: Checked[Array], keys: Float[Array, "S K"]) -> Float[Array, " S"]:
        return Dot()(query, keys)


@exportable
class Memory(NamedTuple):
    """The memory of an attention: values [S, M], zeros at ignored steps, their keys [S, K], and the valid steps [S]."""

    values: Array
    keys: Array
    mask: Array


def remember(score: AbstractScore, values: Any, mask: Any) -> Memory:
    """The memory of `values`, [S, M], for any number of queries. Values are ignored where `mask`, [S], is false.

    Raises ValueError and TypeError for values and a mask that do not fit each other or the score.
    """
    if jnp.ndim(values) != 2 or not jnp.issubdtype(jnp.result_type(values), jnp.floating):
        raise ValueError(
            f"memory: expected floating values [S, M], got {check.show(values)}. "
            "Pass the outputs of the encoder for one sequence"
        )
    mask = check_mask(mask, values.shape[0])
    values = select(mask, values, jnp.zeros_like(values))
    return Memory(values, score.keys(values), mask)


def align(score: AbstractScore, query: Checked[Array], memory: Memory) -> Float[Array, " S"]:
    """The weights of all steps: a softmax of the scores over the valid ones, zero elsewhere; float32 or wider.

    They sum to one, or to zero if no step is valid.
    """
    scores = score(query, memory.keys)
    largest = jnp.max(scores, initial=jnp.finfo(scores.dtype).min, where=memory.mask)
    weights = jnp.exp(jnp.where(memory.mask, scores - stop_gradient(largest), -jnp.inf))
    total = weights.sum()
    return weights / jnp.where(total == 0, jnp.ones_like(total), total)  # NaN stays


def attend(
    score: AbstractScore, query: Checked[Array], memory: Memory
) -> tuple[Float[Array, " M"], Float[Array, " S"]]:
    """The context, which is the weighted mean of the values, [M], and the weights, [S]; see `align`.

    The softmax is over the valid steps alone, in float32 or wider. If no step is valid both are zeros.
    """
    alignment = align(score, query, memory)
    return weigh(alignment, memory.values), alignment


def weigh(alignments: Float[Array, "*T S"], values: Array) -> Array:
    """The sums of `values`, [S, ...], weighted by `alignments`, in the dtype of the values."""
    return jnp.tensordot(alignments.astype(values.dtype), values, 1)


def check_mask(mask: Checked[AnyArray], S: int) -> Bool[Array, " S"]:
    """`mask` as booleans [S]."""
    if jnp.shape(mask) != (S,) or jnp.result_type(mask) != jnp.bool_:
        raise ValueError(
            f"mask: expected booleans [{S}], one for each step of the source, got {check.show(mask)}. "
            f"Write jnp.arange({S}) < length"
        )
    return jnp.asarray(mask)


def _check_features(name: str, array: Array, size: int) -> None:
    if array.shape[-1] != size:
        raise ValueError(
            f"{name}: expected {size} features, the size that its attention was built with, got {array.shape[-1]}. "
            f"Build the score with {name}_size={array.shape[-1]}; Dot needs two equal sizes"
        )


def _draw(key: PRNGKeyArray, number: int, shape: tuple[int, int], dtype: DType) -> Array:
    return initialise.glorot(random.split(key, number + 1)[number], shape, dtype)
