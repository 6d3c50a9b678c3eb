"""What the layers of RWKV share: a map of low rank, the token shift, and a state."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...arrays import Inputs, carry_dtype
from ...exporting import exportable
from ..window import Remembered


@exportable
class RWKVState(NamedTuple):
    """The state of a time mixing: the last input, for the token shift, and a matrix for each head."""

    inputs: Remembered  # [1, I]
    S: Float[Array, "N K V"]


class LowRank(eqx.Module):
    """offset + activation(x A) B: a map of I features to H by R numbers, R much smaller; the offset may be missing."""

    down: Float[Array, "I R"]  # A
    up: Float[Array, "R H"]  # B
    offset: Float[Array, " H"] | None

    def __call__(self, xs: Inputs, activation: Callable[[Array], Array]) -> Float[Array, "T H"]:
        """Of inputs over time, in float32 or wider."""
        mapped = product(activation(product(xs, self.down)), self.up)
        return mapped if self.offset is None else mapped + row(self.offset, mapped)


def product(xs: Float[Array, "T I"], weight: Float[Array, "I H"]) -> Float[Array, "T H"]:
    """`xs W`, multiplied in the dtype of W; the result is float32 or wider."""
    return (xs.astype(weight.dtype) @ weight).astype(carry_dtype(weight.dtype))


def row(vector: Float[Array, " H"], like: Float[Array, "T H"]) -> Float[Array, "1 H"]:
    """A vector to be broadcast over time, in the dtype of `like`, in which its gradient is summed."""
    return vector.astype(like.dtype)[None]


def mixed(xs: Inputs, before: Inputs, share: Float[Array, " I"]) -> Inputs:
    """The token shift: of each feature the given share is that of the step before."""
    return xs + row(share, xs) * (before - xs)


def by_head(flat: Float[Array, "T H"], heads: int) -> Float[Array, "T N K"]:
    """The features of each head."""
    return flat.reshape(flat.shape[0], heads, -1)


def normalised(norm: eqx.nn.GroupNorm, reads: Float[Array, "T N V"]) -> Float[Array, "T H"]:
    """What the heads read, each normalised, side by side."""
    return jax.vmap(norm)(reads.reshape(reads.shape[0], -1))


def bonus_read(
    weight: Float[Array, " H"], query: Float[Array, "T N K"], key: Float[Array, "T N K"], value: Float[Array, "T N V"]
) -> Float[Array, "T N V"]:
    """(q . (u * k)) v: what each head reads of its own step, outside of the recurrence."""
    u = weight.astype(query.dtype).reshape(1, *query.shape[1:])
    return jnp.sum(u * query * key, axis=-1, keepdims=True) * value
