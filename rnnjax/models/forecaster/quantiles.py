"""Quantiles, learned by the pinball loss."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...checked import Checked
from .distribution import AbstractDistribution, Outputs, Values


class Quantiles(AbstractDistribution):
    """The quantiles of a value at these levels, scale times the outputs (Koenker & Bassett 1978).

        loss = mean over levels p of max(p e, (p - 1) e)          e = (y - quantile) / scale

    So series of all sizes count alike. The loss is of the outputs as they are; elsewhere they are sorted, so that no
    two cross. Between levels the quantile is linear in the level, and beyond the outermost it is constant: mean and
    draws are of that distribution.
    """

    levels: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, levels: Checked[Sequence[float]]):
        """Raises ValueError unless `levels` increase and are between 0 and 1."""
        self.levels = tuple(map(float, levels))
        rises = all(low < high for low, high in itertools.pairwise((0.0, *self.levels, 1.0)))
        if not self.levels or not rises:
            raise ValueError(
                f"levels: expected at least one level, 0 < p < 1, each above the one before, got {list(levels)}. "
                "Write (0.025, 0.5, 0.975) for the median and a band of 95 %"
            )

    @property
    def size(self) -> int:
        return len(self.levels)

    def values(self, outputs: Checked[Outputs], scale: Values) -> Float[Array, "P ..."]:
        """The quantiles in the order of the levels, which is the first axis."""
        return jnp.sort(jnp.stack([scale.astype(output.dtype) * output for output in self.split(outputs)]), axis=0)

    def loss(self, outputs: Checked[Outputs], scale: Values, targets: Values) -> Values:
        parts = self.split(outputs)
        relative = targets.astype(parts[0].dtype) / scale.astype(parts[0].dtype)
        losses = [pinball(relative - part, level) for part, level in zip(parts, self.levels, strict=True)]
        return sum(losses[1:], start=losses[0]) / self.size

    def mean(self, outputs: Checked[Outputs], scale: Values) -> Values:
        values = self.values(outputs, scale)
        edges = np.concatenate([[0.0], (np.array(self.levels)[1:] + self.levels[:-1]) / 2, [1.0]])
        return jnp.tensordot(jnp.asarray(np.diff(edges), values.dtype), values, 1)

    def sample(self, outputs: Checked[Outputs], scale: Values, key: PRNGKeyArray) -> Values:
        values = self.values(outputs, scale)
        levels = jnp.asarray(self.levels, values.dtype)
        drawn = jax.random.uniform(key, values.shape[1:], values.dtype)
        flat = jax.vmap(jnp.interp, (0, None, 1))(drawn.ravel(), levels, values.reshape(self.size, -1))
        return flat.reshape(drawn.shape)


def pinball(error: Values, level: float) -> Values:
    """p e for an error above zero, (p - 1) e for one below it."""
    return jnp.maximum(level * error, (level - 1) * error)
