"""Normalisation of what the queries of a matrix mixer read, [N, V] at each step."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ... import check, random
from ...arrays import DType


class HeadNorm(eqx.Module):
    """RMSNorm of each head by itself; all heads share one weight [V]."""

    weight: Float[Array, " V"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, value_size: int, *, epsilon: float = 1e-5, dtype: DType):
        """The weight is one."""
        check.sizes(value_size=value_size)
        check.dtype(dtype)
        self.weight = random.array(np.ones(value_size), dtype)
        self.epsilon = epsilon

    def __call__(self, reads: Float[Array, "N V"]) -> Float[Array, "N V"]:
        return jax.vmap(_rms_norm, (0, None, None))(reads, self.weight, self.epsilon)


class GroupedNorm(eqx.Module):
    """RMSNorm of each group of heads, taken together; the weight has one number for each value of each head."""

    weight: Float[Array, " NV"]
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, groups: int = 1, *, epsilon: float = 1e-5, dtype: DType):
        """The weight is one; `size` is N V, a multiple of `groups`."""
        check.sizes(size=size, groups=groups)
        check.dtype(dtype)
        if size % groups:
            raise ValueError(
                f"groups: expected a divisor of size={size}, got {groups}. Give each group the same number of values"
            )
        self.weight = random.array(np.ones(size), dtype)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, reads: Float[Array, "N V"]) -> Float[Array, "N V"]:
        grouped, weights = (array.reshape(self.groups, -1) for array in (reads, self.weight))
        return jax.vmap(_rms_norm, (0, 0, None))(grouped, weights, self.epsilon).reshape(reads.shape)


def weighted_mean(reads: Float[Array, "N W"], epsilon: float = 1e-6) -> Float[Array, "N V"]:
    """The reads divided by the last of them, which is the sum of the weights."""
    return reads[:, :-1] / (reads[:, -1:] + epsilon)


def _rms_norm(values: Float[Array, " S"], weight: Float[Array, " S"], epsilon: float) -> Float[Array, " S"]:
    norm = eqx.nn.RMSNorm(values.shape, eps=epsilon, use_weight=False, use_bias=False)
    return weight.astype(values.dtype) * norm(values)
