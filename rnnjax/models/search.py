"""Decoding of one sequence, token by token, inside jit: greedy, or sampled.

A model is `step(state, token) -> (state, logits, alignment)`: the state after a token, the logits [V] of the next, and
the weights [S] of attention, or None. The method `decoding` of a model returns such a step; you can pass any other
function of this form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import check
from ..arrays import IntegerLike, State, carry_dtype
from ..check import alike, show
from ..checked import Checked
from ..exporting import exportable
from .tokens import check_token

Step = Callable[[State, Array], tuple[State, Array, Array | None]]
Choose = Callable[[Array, Array], Array]


class Decoding(NamedTuple):
    """The arguments of a search: `step(state, token) -> (state, logits [V], alignment [S])`, state, and mask [S]."""

    step: Step
    state: State
    mask: Array


@exportable
class Hypothesis(NamedTuple):
    """The sequence of tokens that a search found, or several, on a leading axis.

    tokens       [L], `end` after the first `end`; -1 where the logits are NaN
    length       the number of tokens up to and including the first `end`; L if there is none
    score        the logarithm of their probability, with the penalties of the search
    alignments   [L, S], zeros from `length` on; None for a model without attention
    """

    tokens: Array
    length: Array
    score: Array
    alignments: Array | None


class Search(NamedTuple):
    """The state of a search: hypotheses, the model's state, and the last token of each."""

    t: Array
    state: State
    token: Array
    ended: Array
    found: Hypothesis


def greedy(
    step: Step, state: State, *, start: Checked[IntegerLike], end: Checked[IntegerLike], max_length: Checked[int]
) -> Hypothesis:
    """Take the most probable token at each step, after `start`, until `end` or `max_length` tokens.

    step, state   the model and its state before `start`; see the docstring of this file
    start, end    tokens; `start` is not among those returned
    max_length    L, known before tracing; the search stops when the sequence (all of them, under `vmap`) has ended

    Raises ValueError and TypeError for tokens outside of the vocabulary, and unless `max_length` is a positive integer.
    """

    def choose(logits: Array, t: Array) -> Array:
        del t
        return jnp.argmax(logits)

    return _search(step, state, start, end, max_length, choose)


def sample_sequence(
    step: Step,
    state: State,
    *,
    start: Checked[IntegerLike],
    end: Checked[IntegerLike],
    max_length: Checked[int],
    key: PRNGKeyArray,
    temperature: Checked[float | Array] = 1.0,
) -> Hypothesis:
    """Draw each token from the model's distribution, given the tokens before it; otherwise as `greedy`.

    temperature   divides the logits: below 1, likely tokens become more likely, and near 0 the most likely is taken.
                  The score is that of temperature 1. An array, which may be traced, may be 0, which is that limit;
                  where it is less, or NaN, tokens are -1 and the score is NaN
    """
    if not eqx.is_array(temperature) and not check.number("temperature", temperature) > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature!r}. Use `greedy` for the limit at 0")

    def known(state: State, token: Array) -> tuple[State, Array, Array | None]:
        state, logits, alignment = step(state, token)
        return state, jnp.where(jnp.asarray(temperature) >= 0, logits, jnp.nan), alignment

    def choose(logits: Array, t: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, t), at_temperature(logits, temperature))

    return _search(known if eqx.is_array(temperature) else step, state, start, end, max_length, choose)


def _search(step: Step, state: State, start: Any, end: Any, max_length: Any, choose: Choose) -> Hypothesis:
    """One sequence, each token chosen from the logits."""
    check_search(step, state, start, end, max_length)

    def grow(search: Search) -> Search:
        state, logits, alignment = step(search.state, search.token)
        log_probabilities = log_softmax(logits)
        chosen = choose(logits, search.t)
        score = search.found.score + log_probabilities[chosen]
        token = known_token(logits, chosen).astype(search.token.dtype)
        return extend(search, state, token, score, alignment, end)

    return until_ended(grow, begin(step, state, start, end, max_length), max_length).found


def until_ended(grow: Callable[[Search], Search], search: Search, max_length: int) -> Search:
    """Extend the hypotheses until all have ended, or have `max_length` tokens."""
    return jax.lax.while_loop(lambda search: (search.t < max_length) & ~search.ended.all(), grow, search)


def begin(step: Step, state: State, start: Checked[IntegerLike], end: Checked[IntegerLike], max_length: int) -> Search:
    """The search before the first token."""
    token = jnp.asarray(start, int)
    _, logits, alignment = jax.eval_shape(step, state, token)
    alignments = None if alignment is None else jnp.zeros((max_length, *alignment.shape), alignment.dtype)
    found = Hypothesis(
        jnp.full(max_length, end, int), jnp.zeros((), int), jnp.zeros((), carry_dtype(logits.dtype)), alignments
    )
    return Search(jnp.zeros((), int), jax.tree.map(jnp.asarray, state), token, jnp.zeros((), bool), found)


def extend(
    search: Search, state: State, token: Array, score: Array, alignment: Array | None, end: Checked[IntegerLike]
) -> Search:
    """The search extended by one token, for a hypothesis that has not ended."""
    t = search.t
    return Search(t + 1, state, token, token == end, lengthen(search.found, t, token, score, alignment))


def lengthen(found: Hypothesis, t: Array, token: Array, score: Array, alignment: Array | None) -> Hypothesis:
    """A hypothesis that has not ended, with its token number t."""
    alignments = None if found.alignments is None else found.alignments.at[t].set(alignment)
    return Hypothesis(found.tokens.at[t].set(token), found.length + 1, score, alignments)


def known_token(logits: Array, token: Array) -> Array:
    """The token chosen by these logits; -1 if they are NaN, of which the first, or any, would be the largest."""
    return jnp.where(jnp.isnan(logits[token]), -1, token)


def at_temperature(logits: Array, temperature: float | Array) -> Array:
    """How far the logits are below the largest, divided by a temperature; -inf stays -inf.

    Without overflow and without rounding away what is drawn: near 0 the most likely token is drawn, of several one of
    them; at infinity each that has a probability is as likely as the others.
    """
    wide = carry_dtype(logits.dtype)
    logits, temperature = logits.astype(wide), jnp.asarray(temperature, wide)
    largest = jnp.nanmax(logits)
    below = jnp.where(logits == largest, 0, logits - largest)
    divided = below / jnp.maximum(temperature, jnp.finfo(wide).tiny)
    return jnp.where(logits == -jnp.inf, -jnp.inf, divided)


def log_softmax(logits: Array) -> Array:
    """The logarithms of the probabilities, in float32 or wider."""
    return jax.nn.log_softmax(logits.astype(carry_dtype(logits.dtype)), axis=-1)


def check_search(
    step: Step, state: State, start: Checked[IntegerLike], end: Checked[IntegerLike], max_length: Checked[int]
) -> tuple[int, int | None]:
    """The sizes of the vocabulary and of the alignments. Raises for wrong arguments of a search."""
    check.sizes(max_length=max_length)
    answer = jax.eval_shape(step, state, jnp.zeros((), int))
    if not (isinstance(answer, tuple) and len(answer) == 3) or getattr(answer[1], "ndim", None) != 1:
        raise ValueError(
            f"step: expected it to return (state, logits [V], alignment [S] or None), got {show(answer)}. "
            "Return None as the alignment of a model without attention"
        )
    if not alike(answer[0], jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))):
        raise ValueError(
            f"step: expected a state like the one it was given, {show(state)}, got {show(answer[0])}. "
            "Return the shapes and dtypes of the state given"
        )
    vocabulary_size = answer[1].shape[0]
    check_token("start", start, vocabulary_size)
    check_token("end", end, vocabulary_size)
    return vocabulary_size, None if answer[2] is None else answer[2].shape[0]
