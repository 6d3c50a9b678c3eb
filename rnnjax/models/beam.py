"""Beam search: several hypotheses extended together, inside jit."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import check
from ..arrays import AnyArray, IntegerLike, State, select
from ..checked import Checked
from .attention import check_mask
from .search import Hypothesis, Search, Step, begin, check_search, extend, log_softmax, until_ended


def beam_search(
    step: Step,
    state: State,
    *,
    width: Checked[int],
    start: Checked[IntegerLike],
    end: Checked[IntegerLike],
    max_length: Checked[int],
    length_penalty: Checked[float | Array] = 0.0,
    coverage_penalty: Checked[float | Array] = 0.0,
    mask: Checked[AnyArray | None] = None,
) -> Hypothesis:
    """The best of `width` hypotheses, which are extended together; otherwise as `greedy`.

    At each step the most likely continuations of unfinished hypotheses are kept. A finished one keeps its place in the
    beam, so that the beam gets narrower until all are finished (Bahdanau et al. 2015). Of all hypotheses, finished or
    of `max_length`, the one with the best score is returned (Wu et al. 2016, arXiv:1609.08144, eq. 14):

        log p / ((5 + n) / 6)^alpha + beta sum_s log(min(sum_t a_ts, 1))             n is the length, a the alignments

    width              from 1, which is `greedy`, to the vocabulary's size
    length_penalty     alpha: 0 prefers short hypotheses, 1 roughly the best probability per token
    coverage_penalty   beta: the penalty on steps of the source that get little attention
    mask               [S], the valid steps of the source; None: all
    """
    vocabulary_size, S = check_search(step, state, start, end, max_length)
    _check_beam(width, vocabulary_size, coverage_penalty, S)
    mask = jnp.ones(S or 0, bool) if mask is None or S is None else check_mask(mask, S)
    one = begin(step, state, start, end, max_length)
    many: Search = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), one)
    only = jnp.where(jnp.arange(width) == 0, 0, -jnp.inf).astype(many.found.score.dtype)  # all others are copies of it
    search = many._replace(t=one.t, found=many.found._replace(score=only))
    search = until_ended(lambda search: _widen(step, search, end), search, max_length)
    found = search.found
    scores = penalised(found, length_penalty, coverage_penalty, mask)
    best = jnp.argmax(scores)
    return jax.tree.map(lambda leaf: leaf[best], found._replace(score=scores))


def penalised(
    found: Hypothesis,
    length_penalty: Checked[float | Array],
    coverage_penalty: Checked[float | Array],
    mask: Bool[Array, " S"],
) -> Float[Array, " W"]:
    """The scores of hypotheses whose `score` is the logarithm of their probability; see `beam_search`.

    For a step without any attention the logarithm is that of the smallest normal number, not -inf.
    """
    scores = found.score
    lengths = (5 + found.length.astype(scores.dtype)) / 6
    scores = scores / lengths ** jnp.asarray(length_penalty, scores.dtype)
    if found.alignments is None:
        return scores
    coverage = jnp.clip(found.alignments.sum(1), jnp.finfo(scores.dtype).tiny, 1)
    return scores + jnp.asarray(coverage_penalty, scores.dtype) * jnp.log(coverage).sum(-1, where=mask)


def _widen(step: Step, search: Search, end: Any) -> Search:
    """The beam extended by one token: the most likely of all continuations."""
    states, logits, alignments = jax.vmap(step)(search.state, search.token)
    width, vocabulary_size = logits.shape
    scores = search.found.score[:, None] + log_softmax(logits)
    # A finished hypothesis has one continuation, itself, which ranks before all others: it keeps its place.
    itself = jnp.where(jnp.arange(vocabulary_size) == end, jnp.inf, -jnp.inf).astype(scores.dtype)
    ranks = select(search.ended, jnp.broadcast_to(itself, scores.shape), scores)
    _, places = jax.lax.top_k(ranks.reshape(-1), width)
    parents, tokens = jnp.divmod(places, vocabulary_size)
    before, states, alignments = jax.tree.map(lambda leaf: leaf[parents], (search._replace(t=None), states, alignments))

    def one(before: Search, state: State, token: Array, score: Array, alignment: Array | None) -> Search:
        grown = extend(before._replace(t=search.t), state, token, score, alignment, end)
        return select(before.ended, before, grown._replace(t=None))

    scores = scores.reshape(-1)[places]
    tokens = jnp.where(jnp.isnan(scores), -1, tokens).astype(search.token.dtype)
    return jax.vmap(one)(before, states, tokens, scores, alignments)._replace(t=search.t + 1)


def _check_beam(width: Any, vocabulary_size: int, coverage_penalty: Any, S: int | None) -> None:
    check.sizes(width=width)
    if width > vocabulary_size:
        raise ValueError(
            f"width: expected a beam no wider than the vocabulary of {vocabulary_size} tokens, got {width}. "
            f"The first step has no more hypotheses than tokens. "
            f"Take width={vocabulary_size} or less"
        )
    if S is None and not (isinstance(coverage_penalty, int | float) and coverage_penalty == 0):
        raise ValueError(
            "coverage_penalty: expected 0 for a model that returns no alignments, and has none to cover. "
            "Leave coverage_penalty out, or use a model with attention"
        )
