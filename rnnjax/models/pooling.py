"""Pooling: the outputs of all steps to one vector, `pooling(ys, length)`; steps from `length` on are ignored.

If no step is valid the pooled vector is zero. Ignored steps change no value and no gradient, even if they are NaN.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Length, carry_dtype, largest, shift
from ..marks import blank, valid_steps


def last(ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " O"]:
    """The output of the last valid step. The backward layer of a `Bidirectional` begins there: see `ends`."""
    T = ys.shape[0]
    if length is None:
        return ys[-1] if T else jnp.zeros(ys.shape[1:], ys.dtype)
    return jnp.where(jnp.arange(T)[:, None] == length - 1, ys, jnp.zeros_like(ys)).sum(0)


def ends(ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " O"]:
    """The final output of each direction of a `Bidirectional`: first half of the last step, second half of the first.

    For outputs that are concatenated, of two layers of the same width.
    """
    forward, backward = jnp.split(blank(ys, length, ys.shape[0]), 2, axis=-1)
    return jnp.concatenate([last(forward, length), backward[0] if ys.shape[0] != 0 else last(backward, length)])


def mean(ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " O"]:
    """The mean over the valid steps."""
    total = blank(ys, length, ys.shape[0]).sum(0, dtype=carry_dtype(ys.dtype))
    steps = jnp.asarray(ys.shape[0] if length is None else length)
    return (total / jnp.maximum(steps, 1).astype(total.dtype)).astype(ys.dtype)


def maximum(ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " O"]:
    """The maximum of each feature over the valid steps (Collobert & Weston 2008)."""
    T = ys.shape[0]
    if T == 0:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    if length is None:
        return largest(ys)
    valid = valid_steps(length, T)[:, None]
    top = largest(jnp.where(valid, ys, jnp.full_like(ys, -jnp.inf)))
    return jnp.where(length > 0, top, jnp.zeros_like(top))


def flatten(ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " T*O"]:
    """All steps, concatenated: for sequences of one length T, where each step has its own weights in the head."""
    return blank(ys, length, ys.shape[0]).reshape(-1)


class AttentionPooling(eqx.Module):
    """A weighted mean: Yang et al. 2016, "Hierarchical attention networks", NAACL.

    a_t = softmax over t of v . tanh(W y_t + b)                 pooled = sum over t of a_t y_t
    """

    weight: Float[Array, "O A"]
    bias: Float[Array, " A"]
    score: Float[Array, " A"]

    def __init__(self, size: int, attention_size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32):
        """`size` is the number of features of an output, `attention_size` that of the hidden layer of the score."""
        check.sizes(size=size, attention_size=attention_size)
        keys = random.split(key, 2)
        self.weight = initialise.lecun(keys[0], (size, attention_size), dtype)
        self.bias = random.zeros(attention_size, dtype)
        self.score = initialise.uniform(keys[1], (attention_size,), dtype)

    def alignment(self, ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " T"]:
        """a_t, in float32 or wider: they sum to 1, and are 0 at ignored steps."""
        T = ys.shape[0]
        ys = blank(ys, length, T)
        scores = (jnp.tanh(shift(ys @ self.weight, self.bias)) @ self.score).astype(carry_dtype(ys.dtype))
        return jax.nn.softmax(scores, where=None if length is None else valid_steps(length, T))

    def __call__(self, ys: Float[Array, "T O"], length: Length | None) -> Float[Array, " O"]:
        weights = self.alignment(ys, length).astype(ys.dtype)
        return weights @ blank(ys, length, ys.shape[0])
