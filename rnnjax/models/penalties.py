"""Scores of hypotheses: the logarithms of their probabilities, with penalties on their lengths and alignments."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .search import Hypothesis


class Penalties(NamedTuple):
    """alpha, beta, and the valid steps of the source; see `beam_search`."""

    length: float | Array
    coverage: float | Array
    mask: Bool[Array, " S"]

    def score(self, found: Hypothesis) -> Float[Array, " W"]:
        """The scores of hypotheses whose `score` is the logarithm of their probability.

        For a step without any attention the logarithm is that of the smallest normal number, not -inf.
        """
        scores = found.score / self._divisor(found.length, found.score)
        if found.alignments is None:
            return scores
        coverage = jnp.clip(found.alignments.sum(1), jnp.finfo(scores.dtype).tiny, 1)
        return scores + jnp.asarray(self.coverage, scores.dtype) * jnp.log(coverage).sum(-1, where=self.mask)

    def bound(self, found: Hypothesis, max_length: int) -> Float[Array, " W"]:
        """The largest scores that unfinished hypotheses may still get.

        Their probabilities only decrease. The divisor is largest at the next length or at the last one; a coverage
        penalty is 0 at most, unless beta is negative.
        """
        last = jnp.full_like(found.length, max_length)
        divisors = (self._divisor(length, found.score) for length in (found.length + 1, last))
        bound = found.score / jnp.maximum(*divisors)
        if found.alignments is None:
            return bound
        return bound + jnp.where(jnp.asarray(self.coverage, bound.dtype) < 0, jnp.inf, 0)

    def _divisor(self, length: Array, like: Array) -> Array:
        """((5 + n) / 6)^alpha."""
        return ((5 + length.astype(like.dtype)) / 6) ** jnp.asarray(self.length, like.dtype)
