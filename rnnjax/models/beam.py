"""Beam search: several hypotheses grown side by side, inside jit."""

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
    """The best of `width` hypotheses, which are grown side by side; else as `greedy`.

    At each step the likeliest continuations of those that have not ended are kept; one that has ended keeps its place,
    so that the beam narrows, down to none (Bahdanau et al. 2015). Of all, ended or as long as they may be, the one of
    the best score is returned (Wu et al. 2016, arXiv:1609.08144, eq. 14):

        log p / ((5 + n) / 6)^alpha + beta sum_s log(min(sum_t a_ts, 1))             n is the length, a the alignments

    width              from 1, which is `greedy`, to the vocabulary's size
    length_penalty     alpha: 0 prefers short hypotheses, 1 roughly the best probability per token
    coverage_penalty   beta: what it costs to leave steps of the source without attention
    mask               [S], which steps of the source count in it; None: all
    """
    vocabulary_size, S = check_search(step, state, start, end, max_length)
    _check_beam(width, vocabulary_size, coverage_penalty, S)
    mask = jnp.ones(S or 0, bool) if mask is None or S is None else check_mask(mask, S)
    one = begin(step, state, start, end, max_length)
    many: Search = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), one)
    only = jnp.where(jnp.arange(width) == 0, 0, -jnp.inf).astype(many.found.score.dtype)  # equal ones would tie
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

    Of what was never attended to the logarithm is that of the least positive number, not -inf.
    """
    scores = found.score
    lengths = (5 + found.length.astype(scores.dtype)) / 6
    scores = scores / lengths ** jnp.asarray(length_penalty, scores.dtype)
    if found.alignments is None:
        return scores
    coverage = jnp.clip(found.alignments.sum(1), jnp.finfo(scores.dtype).tiny, 1)
    return scores + jnp.asarray(coverage_penalty, scores.dtype) * jnp.log(coverage).sum(-1, where=mask)


def _widen(step: Step, search: Search, end: Any) -> Search:
    """All hypotheses of a beam one token further, each of them from the one it continues best."""
    states, logits, alignments = jax.vmap(step)(search.state, search.token)
    width, vocabulary_size = logits.shape
    scores = search.found.score[:, None] + log_softmax(logits)
    # One that has ended has one continuation, itself, which comes before all others: it keeps its place.
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
