"""Beam search: several hypotheses extended together, inside jit."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import check
from ..arrays import AnyArray, IntegerLike, State, select
from ..checked import Checked
from .attention import check_mask
from .full_beam import search_full_beam
from .penalties import Penalties
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
    number: Checked[int | None] = None,
    keep_width: bool = False,
) -> Hypothesis:
    """The best of `width` hypotheses, which are extended together, or the `number` best; otherwise as `greedy`.

    At each step the most likely continuations of unfinished hypotheses are kept. By default a finished one keeps its
    place in the beam, which gets narrower until all are finished (Bahdanau et al. 2015). Of all hypotheses, finished or
    of `max_length`, those with the best scores are returned (Wu et al. 2016, arXiv:1609.08144, eq. 14):

        log p / ((5 + n) / 6)^alpha + beta sum_s log(min(sum_t a_ts, 1))             n is the length, a the alignments

    width              from 1, which is `greedy`, to the vocabulary's size
    length_penalty     alpha: 0 prefers short hypotheses, 1 roughly the best probability per token
    coverage_penalty   beta: the penalty on steps of the source that get little attention
    mask               [S], the valid steps of the source; None: all
    number             N: returns the N best, from 1 to `width` of them, best first, on a leading axis [N]. They differ
                       from each other; where fewer have a probability above 0, the scores of the others are -inf. None:
                       returns the best one, without that axis
    keep_width         True: a finished hypothesis leaves the beam, which stays `width` wide to the end, as in fairseq,
                       or in transformers with early_stopping=False. It counts if it is among the `width` most likely
                       continuations of its step; the `width` best of all steps are held in a list. The search ends at
                       `max_length`, or when no unfinished hypothesis can reach the score of those to be returned
                       (Huang et al. 2017, arXiv:1809.00069)
    """
    vocabulary_size, S = check_search(step, state, start, end, max_length)
    _check_beam(width, vocabulary_size, coverage_penalty, S)
    check.flags(keep_width=keep_width)
    if number is not None:
        check.count("number", number)
    if number is not None and number > width:
        raise ValueError(f"number: expected no more than width={width}, got {number}. Make the beam wider")
    mask = jnp.ones(S or 0, bool) if mask is None or S is None else check_mask(mask, S)
    penalties = Penalties(length_penalty, coverage_penalty, mask)
    one = begin(step, state, start, end, max_length)
    many: Search = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), one)
    only = jnp.where(jnp.arange(width) == 0, 0, -jnp.inf).astype(many.found.score.dtype)  # all others are copies of it
    search = many._replace(t=one.t, found=many.found._replace(score=only))
    if keep_width:
        found = search_full_beam(step, search, end, max_length, penalties, number or 1)
    else:
        found = until_ended(lambda search: _widen(step, search, end), search, max_length).found
        found = found._replace(score=penalties.score(found))
    best = jnp.argmax(found.score) if number is None else jax.lax.top_k(found.score, number)[1]
    return jax.tree.map(lambda leaf: leaf[best], found)


def _widen(step: Step, search: Search, end: Any) -> Search:
    """The beam extended by one token: the most likely of all continuations."""
    states, logits, alignments = jax.vmap(step)(search.state, search.token)
    width, vocabulary_size = logits.shape
    scores = search.found.score[:, None] + log_softmax(logits)
    # A finished hypothesis has one continuation, itself, which ranks before all others: it keeps its place. Where the
    # others have too few, copies of it fill the beam up: their score of -inf says that they are none.
    found = search.found.score[:, None] > -jnp.inf
    itself = jnp.where((jnp.arange(vocabulary_size) == end) & found, jnp.inf, -jnp.inf).astype(scores.dtype)
    ranks, places = jax.lax.top_k(select(search.ended, itself, scores).reshape(-1), width)
    parents, tokens = jnp.divmod(places, vocabulary_size)
    before, states, alignments = jax.tree.map(lambda leaf: leaf[parents], (search._replace(t=None), states, alignments))

    def one(before: Search, state: State, token: Array, score: Array, alignment: Array | None) -> Search:
        grown = extend(before._replace(t=search.t), state, token, score, alignment, end)
        return select(before.ended, before, grown._replace(t=None))

    scores = scores.reshape(-1)[places]
    tokens = jnp.where(jnp.isnan(scores), -1, tokens).astype(search.token.dtype)
    after = jax.vmap(one)(before, states, tokens, scores, alignments)
    score = jnp.where(ranks == -jnp.inf, -jnp.inf, after.found.score)
    return after._replace(t=search.t + 1, found=after.found._replace(score=score))


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
