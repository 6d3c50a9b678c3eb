"""Decays of matrix mixers: how much of its state each step keeps."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from ... import random
from ...arrays import DType, Inputs, finite_exp
from .projected import Projected, by_row


class StepSizeDecay(eqx.Module):
    """exp(-exp(L) softplus(projection(x))): a step of that size of a decay at the rate exp(L), as in Mamba.

    `projection` has one column for each head, or one for each head and key.
    """

    projection: Callable[[Inputs], Float[Array, "T ND"]]
    log_rate: Float[Array, " N"]

    def __call__(self, projected: Projected) -> Float[Array, "T N D"]:
        sizes = by_row(softplus(self.projection(projected.x)), len(self.log_rate))
        return _decay(self.log_rate, sizes)


class WriteDecay(eqx.Module):
    """exp(-exp(L) write): the step size of Mamba-2 is also the strength of writing."""

    log_rate: Float[Array, " N"]

    def __call__(self, projected: Projected) -> Float[Array, "T N 1"]:
        if projected.write is None:
            raise ValueError("decay: expected a mixer with `write` for WriteDecay, got write=None. Pass write, too")
        return _decay(self.log_rate, projected.write)


class FixedDecay(eqx.Module):
    """A decay for each head, or with `angles` a complex one for each head and key: decay exp(-i angle)."""

    decays: tuple[float, ...] = eqx.field(static=True)
    angles: tuple[float, ...] | None = eqx.field(static=True, default=None)

    def __call__(self, projected: Projected) -> Inexact[Array, "T N D"]:
        values = np.asarray(self.decays)[:, None]
        if self.angles is not None:
            values = values * np.exp(-1j * np.asarray(self.angles))[None]
        return jnp.broadcast_to(jnp.asarray(values, projected.key.dtype)[None], (projected.x.shape[0], *values.shape))


def rest_of_key(projected: Projected) -> Float[Array, "T N K"]:
    """1 - key: the keys are input gates, and the decay is the forget gate."""
    return 1 - projected.key


def _decay(log_rate: Float[Array, " N"], sizes: Float[Array, "T N D"]) -> Float[Array, "T N D"]:
    return jnp.exp(-finite_exp(log_rate.astype(sizes.dtype))[None, :, None] * sizes)


def draw_log_rate(key: PRNGKeyArray, heads: int, least: float, dtype: DType) -> Float[Array, " N"]:
    """The logarithm of rates uniform from `least` to 16."""
    rates = random.uniform(key, (heads,), dtype, least, 16.0)
    return random.array(random.numpy_for(rates).log(rates), dtype)
