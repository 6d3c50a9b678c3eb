"""A beam that keeps its width: finished hypotheses move from it to a list."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import IntegerLike
from .penalties import Penalties
from .search import Hypothesis, Search, Step, lengthen, log_softmax


def search_full_beam(
    step: Step, search: Search, end: IntegerLike, max_length: int, penalties: Penalties, number: int
) -> Hypothesis:
    """Twice as many hypotheses as `search` has, by their scores: finished ones, and those of `max_length`.

    search   the beam before the first token
    number   how many of the best must be found
    """
    width = len(search.token)
    finished = search.found._replace(score=jnp.full_like(search.found.score, -jnp.inf))

    def goes_on(carry: tuple[Search, Hypothesis]) -> Array:
        search, finished = carry
        settled = finished.score[number - 1] >= penalties.bound(search.found, max_length).max()
        return (search.t < max_length) & ~settled  # NaN is never settled

    def grow(carry: tuple[Search, Hypothesis]) -> tuple[Search, Hypothesis]:
        search, finished = carry
        search, ended = _grow(step, search, end)
        both = _joined(finished, ended._replace(score=penalties.score(ended)))
        return search, _taken(both, jax.lax.top_k(both.score, width)[1])

    search, finished = jax.lax.while_loop(goes_on, grow, (search, finished))
    whole = search.t == max_length  # otherwise none of the unfinished can be among the best
    scores = jnp.where(whole, penalties.score(search.found), -jnp.inf)
    return _joined(finished, search.found._replace(score=scores))


def _grow(step: Step, search: Search, end: Any) -> tuple[Search, Hypothesis]:
    """The most likely continuations that do not end, and those that do; -inf is the score of none."""
    states, logits, alignments = jax.vmap(step)(search.state, search.token)
    width, vocabulary_size = logits.shape
    likelihoods = (search.found.score[:, None] + log_softmax(logits)).reshape(-1)
    # At most `width` of them end, one for each hypothesis: twice as many hold enough that do not.
    scores, places = jax.lax.top_k(likelihoods, min(2 * width, len(likelihoods)))
    parents, tokens = jnp.divmod(places, vocabulary_size)
    tokens = jnp.where(jnp.isnan(scores), -1, tokens).astype(search.token.dtype)
    ends = tokens == end

    def grown(rows: Array, scores: Array) -> Hypothesis:
        before, aligned = _taken(search.found, parents[rows]), _taken(alignments, parents[rows])
        return jax.vmap(lengthen, (0, None, 0, 0, 0))(before, search.t, tokens[rows], scores[rows], aligned)

    first = jnp.arange(width)
    rest = jnp.argsort(ends, stable=True)[:width]
    finished = grown(first, jnp.where(ends, scores, -jnp.inf))
    found = grown(rest, jnp.where(ends, -jnp.inf, scores))
    states = _taken(states, parents[rest])
    return Search(search.t + 1, states, tokens[rest], search.ended, found), finished


def _taken(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _joined(first: Hypothesis, second: Hypothesis) -> Hypothesis:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)
