"""The transcript of a transducer by its most probable class at each node, chunk by chunk if need be."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ... import check
from ...arrays import AnyArray, IntegerLike, Length, select
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ..search import Hypothesis, log_softmax
from .labels import BLANK, number_of_steps
from .transducer import History, Transducer, TransducerState


class Walk(NamedTuple):
    """The node that is reached: the step, the labels said at it, and what led there."""

    t: Length
    symbols: Length
    history: History
    found: Hypothesis


def transducer_greedy(
    model: Transducer,
    state: TransducerState | None,
    xs: Checked[AnyArray],
    *,
    max_symbols: Checked[int],
    length: Checked[IntegerLike | None] = None,
    engine: AbstractEngine = Auto(),
) -> tuple[TransducerState, Hypothesis]:
    """Follow the most probable class at each node: a label is said, the blank leaves the step. Inside `jit`.

    state          that after the chunk before; None: `model.initial()`
    xs             [T, I], one sequence, or the next chunk of one. With an encoder that reads from the left, chunks of
                   any sizes give the same labels as the whole
    max_symbols    the most labels at one step: then the step is left
    length         the valid steps; None: T
    engine         how the encoder runs along time

    Returns the state, and the `Hypothesis` of this chunk: T * max_symbols tokens, zeros after the transcript, of which
    the score is the logarithm of this one path's probability. Tokens are -1 and the score is NaN from the first node on
    whose logits are NaN.
    """
    check.sizes(max_symbols=max_symbols)
    before = model.initial() if state is None else state
    encoder, heard = model.encode(before.encoder, xs, length=length, engine=engine)
    T = heard.shape[0]
    steps = number_of_steps(length, T)

    def advance(walk: Walk) -> Walk:
        log_p = log_softmax(model.joiner(heard[walk.t], walk.history.predicted))
        label = _choose(log_p, walk.symbols < max_symbols)
        says = label != BLANK
        history = select(says, model.say(walk.history.state, label), walk.history)
        symbols = jnp.where(says, walk.symbols + 1, 0)
        return Walk(jnp.where(says, walk.t, walk.t + 1), symbols, history, _appended(walk.found, label, log_p[label]))

    predicted = before.history.predicted
    dtype = jax.eval_shape(lambda: log_softmax(model.joiner(predicted, predicted))).dtype
    nothing = Hypothesis(jnp.full(T * max_symbols, BLANK, int), jnp.zeros((), int), jnp.zeros((), dtype), None)
    if T == 0:
        return TransducerState(encoder, before.history), nothing
    zero = jnp.zeros((), int)
    walk = jax.lax.while_loop(lambda walk: walk.t < steps, advance, Walk(zero, zero, before.history, nothing))
    return TransducerState(encoder, walk.history), walk.found


def _choose(log_p: Float[Array, " V"], may_say: Array) -> Int[Array, ""]:
    """The most probable class, or the blank if no label may be said; -1 where that is NaN."""
    best = jnp.where(may_say, jnp.argmax(log_p), BLANK).astype(int)
    return jnp.where(jnp.isnan(log_p[best]) & may_say, -1, best)


def _appended(found: Hypothesis, label: Array, log_p: Array) -> Hypothesis:
    says = label != BLANK
    tokens = found.tokens.at[jnp.where(says, found.length, len(found.tokens))].set(label, mode="drop")
    return Hypothesis(tokens, found.length + says.astype(int), found.score + log_p, None)
