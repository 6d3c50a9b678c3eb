"""The negative binomial distribution, of counts."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, PRNGKeyArray

from ...checked import Checked
from ...runtime_error import error_where
from .distribution import AbstractDistribution, Outputs, Values, positive

LEAST_SHAPE = 1e-4  # below it float32 loses the logarithms of factorials


class NegativeBinomial(AbstractDistribution):
    """Counts of mean m = scale softplus(a) and variance m + m^2 alpha, alpha = softplus(b) / sqrt(scale) (DeepAR).

    Outputs a, b. Draws end at 2^31 - 1. A negative or fractional target has no probability, and is an error: a
    ValueError if the targets are known, and under `jit` an error at run time. (In programs of `jax.export` and of
    several devices, its loss is NaN.)
    """

    size: ClassVar[int] = 2

    def loss(self, outputs: Checked[Outputs], scale: Values, targets: Values) -> Values:
        mean, shape = self._parameters(outputs, scale)
        counts = targets.astype(mean.dtype)
        valid = _is_count(counts)
        losses = _loss(mean, shape, jnp.where(valid, counts, 0))
        message = (
            "targets: expected counts, 0 or more, for NegativeBinomial, got a negative or fractional value. "
            "Use Normal or StudentT for such a series"
        )
        if not isinstance(valid, Tracer) and not valid.all():
            raise ValueError(message)
        return error_where(losses, ~valid, message)

    def mean(self, outputs: Checked[Outputs], scale: Values) -> Values:
        return self._parameters(outputs, scale)[0]

    def sample(self, outputs: Checked[Outputs], scale: Values, key: PRNGKeyArray) -> Values:
        mean, shape = self._parameters(outputs, scale)
        of_rate, of_count = jax.random.split(key)
        rate = jax.random.gamma(of_rate, 1 / shape, dtype=mean.dtype) * shape * mean
        drawn = jax.random.poisson(of_count, rate).astype(mean.dtype)  # -1 for NaN
        return jnp.where(jnp.isnan(rate), rate, drawn)

    def _parameters(self, outputs: Checked[Outputs], scale: Values) -> tuple[Values, Values]:
        a, b = self.split(outputs)
        scale = scale.astype(a.dtype)
        return scale * positive(a), LEAST_SHAPE + positive(b) / jnp.sqrt(scale)


def _loss(mean: Values, shape: Values, counts: Values) -> Values:
    """-log p(counts). Quotients near 1 and differences of large gamma functions would lose it in float32.

    With n = 1 / shape and x = mean shape, p(y) = x^y (1 + x)^-(y + n) / ((y + n) B(y + 1, n)).
    """
    n, x = 1 / shape, mean * shape
    factor = jax.scipy.special.betaln(counts + 1, n) + jnp.log(counts + n)
    return n * jnp.log1p(x) + counts * jnp.log1p(1 / x) + factor


def _is_count(values: Values) -> Bool[Array, "..."]:
    return (values >= 0) & (values == jnp.floor(values)) & jnp.isfinite(values)
