"""Distributions of a forecast value, by the outputs of a network: normal, and Student's t."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import softplus
from jaxtyping import Array, Float, PRNGKeyArray

from ...arrays import carry_dtype
from ...checked import Checked

Outputs = Float[Array, "... O"]  # unconstrained numbers, so many for each value
Values = Float[Array, "..."]


class AbstractDistribution(eqx.Module):
    """A family of distributions: which one a value has is said by `size` outputs of a network, and by a scale.

    outputs   [..., size], any real numbers
    scale     [...], positive: that of the series, by which its values were divided before the network read them
    targets   [...], in the unit of the series

    Subclass requirements: `size`, `loss`, `mean` and `sample`, in float32 or wider.
    """

    size: eqx.AbstractVar[int] | eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def loss(self, outputs: Checked[Outputs], scale: Values, targets: Values) -> Values:
        """The loss of each target: -log p(target) in nats, of densities or of probabilities."""

    @abc.abstractmethod
    def mean(self, outputs: Checked[Outputs], scale: Values) -> Values:
        """The mean of each value."""

    @abc.abstractmethod
    def sample(self, outputs: Checked[Outputs], scale: Values, key: PRNGKeyArray) -> Values:
        """A draw of each value."""

    def split(self, outputs: Checked[Outputs]) -> tuple[Values, ...]:
        """The `size` outputs of each value, one array for each, in float32 or wider."""
        if outputs.ndim == 0 or outputs.shape[-1] != self.size:
            raise ValueError(
                f"outputs: expected [..., {self.size}] for {type(self).__name__}, got {list(outputs.shape)}. "
                f"Give the head {self.size} outputs for each value"
            )
        return tuple(jnp.moveaxis(outputs.astype(carry_dtype(outputs.dtype)), -1, 0))


class Normal(AbstractDistribution):
    """y ~ N(scale a, (scale softplus(b))^2), of outputs a, b."""

    size: ClassVar[int] = 2

    def loss(self, outputs: Checked[Outputs], scale: Values, targets: Values) -> Values:
        location, deviation = self._parameters(outputs, scale)
        return -jax.scipy.stats.norm.logpdf(targets.astype(location.dtype), location, deviation)

    def mean(self, outputs: Checked[Outputs], scale: Values) -> Values:
        return self._parameters(outputs, scale)[0]

    def sample(self, outputs: Checked[Outputs], scale: Values, key: PRNGKeyArray) -> Values:
        location, deviation = self._parameters(outputs, scale)
        return location + deviation * jax.random.normal(key, location.shape, location.dtype)

    def _parameters(self, outputs: Checked[Outputs], scale: Values) -> tuple[Values, Values]:
        a, b = self.split(outputs)
        scale = scale.astype(a.dtype)
        return scale * a, scale * positive(b)


class StudentT(AbstractDistribution):
    """(y - scale a) / (scale softplus(b)) has Student's t distribution with 2 + softplus(c) degrees of freedom.

    Outputs a, b, c. Its tails are heavier than the normal ones; the variance is finite.
    """

    size: ClassVar[int] = 3

    def loss(self, outputs: Checked[Outputs], scale: Values, targets: Values) -> Values:
        freedom, location, width = self._parameters(outputs, scale)
        distance = (targets.astype(location.dtype) - location) / width
        # The beta function keeps what the difference of two large gamma functions would lose in float32.
        normaliser = jnp.log(freedom) / 2 + jax.scipy.special.betaln(jnp.full_like(freedom, 0.5), freedom / 2)
        return jnp.log(width) + normaliser + (freedom + 1) / 2 * jnp.log1p(distance**2 / freedom)

    def mean(self, outputs: Checked[Outputs], scale: Values) -> Values:
        return self._parameters(outputs, scale)[1]

    def sample(self, outputs: Checked[Outputs], scale: Values, key: PRNGKeyArray) -> Values:
        freedom, location, width = self._parameters(outputs, scale)
        return location + width * jax.random.t(key, freedom, location.shape, location.dtype)

    def _parameters(self, outputs: Checked[Outputs], scale: Values) -> tuple[Values, Values, Values]:
        a, b, c = self.split(outputs)
        scale = scale.astype(a.dtype)
        return 2 + softplus(c), scale * a, scale * positive(b)


def positive(output: Values) -> Values:
    """softplus(x), but never so small that a logarithm or a quotient of it is not finite."""
    return softplus(output) + jnp.finfo(output.dtype).eps
