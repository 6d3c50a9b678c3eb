"""The best transcript of a transducer by a beam of prefixes, chunk by chunk if need be."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ... import check
from ...arrays import AnyArray, IntegerLike, State, select
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...exporting import exportable
from ...marks import valid_steps
from ..search import Hypothesis, log_softmax
from .labels import BLANK, number_of_steps
from .prefixes import Prefixes, check_beam, copies, rows_of
from .transducer import History, Transducer


@exportable
class ScoredPrefixes(NamedTuple):
    """Prefixes, the logarithms of their probabilities so far, and what the prediction network remembers of each."""

    prefixes: Prefixes
    score: Float[Array, " W"]
    history: History


@exportable
class TransducerBeam(NamedTuple):
    """The state of a beam search between two chunks of the input."""

    encoder: State
    beam: ScoredPrefixes


def transducer_beam_search(
    model: Transducer,
    state: TransducerBeam | None,
    xs: Checked[AnyArray],
    *,
    width: Checked[int],
    max_length: Checked[int],
    max_symbols: Checked[int],
    length: Checked[IntegerLike | None] = None,
    engine: AbstractEngine = Auto(),
) -> tuple[TransducerBeam, Hypothesis]:
    """The most probable prefix of a beam; inside `jit`; `jax.vmap` maps a batch.

    At each step every prefix may say up to `max_symbols` labels before it leaves the step by a blank; of equal prefixes
    that leave it the probabilities are summed (Graves 2012, section 2.4, with a beam at each of these labels, as in
    Saon et al. 2020, arXiv:2002.09750, "time-synchronous decoding").

    state          that after the chunk before; None: the empty prefix
    xs             [T, I], one sequence, or the next chunk of one. With an encoder that reads from the left, chunks of
                   any sizes give the same result as the whole
    width          W, how many prefixes are kept. Where it is as large as the number of prefixes, and `max_symbols` as
                   `max_length`, the result is exact
    max_length     L, labels of the longest transcript that is considered, from the first chunk on
    max_symbols    the most labels at one step
    length         the valid steps; None: T
    engine         how the encoder runs along time

    Returns the state, and the `Hypothesis` of all chunks so far: tokens [L], zeros after the transcript, and as the
    score the logarithm of its probability, over the paths that the beam kept. Tokens are -1 and the score is NaN if
    logits are NaN.
    """
    check_beam(width, max_length)
    check.sizes(max_symbols=max_symbols)
    before = _begin(model, width, max_length) if state is None else _check_state(state, width, max_length)
    encoder, heard = model.encode(before.encoder, xs, length=length, engine=engine)
    T = heard.shape[0]
    valid = valid_steps(number_of_steps(length, T), T)

    def step(beam: ScoredPrefixes, inputs: tuple[Array, Array]) -> tuple[ScoredPrefixes, None]:
        heard, valid = inputs
        return select(valid, _leave(model, beam, heard, max_symbols), beam), None

    beam, _ = jax.lax.scan(step, before.beam, (heard, valid))
    best = jnp.argmax(beam.score)
    score = beam.score[best]
    tokens = jnp.where(jnp.isnan(score), -1, beam.prefixes.labels[best])
    return TransducerBeam(encoder, beam), Hypothesis(tokens, beam.prefixes.length[best], score, None)


def _leave(model: Transducer, beam: ScoredPrefixes, heard: Float[Array, " J"], max_symbols: int) -> ScoredPrefixes:
    """The beam after one step: prefixes leave it after 0 to `max_symbols` labels; the most probable ones are kept."""
    width = len(beam.score)

    def say(beam: ScoredPrefixes, _: None) -> tuple[ScoredPrefixes, ScoredPrefixes]:
        log_p = _log_probabilities(model, beam, heard)
        full = beam.prefixes.length == beam.prefixes.labels.shape[1]
        longer = jnp.where(full[:, None], -jnp.inf, beam.score[:, None] + log_p[:, 1:])
        scores, places = jax.lax.top_k(longer.reshape(-1), min(width, longer.size))
        places = jnp.pad(places, (0, width - len(places)))
        scores = jnp.pad(scores, (0, width - len(scores)), constant_values=-jnp.inf)
        parents, labels = jnp.divmod(places.astype(int), longer.shape[1])
        labels = labels + 1
        prefixes = beam.prefixes.taken(parents).extended(labels, jnp.ones(width, bool))
        history = jax.vmap(model.say)(rows_of(beam.history.state, parents), labels)
        return ScoredPrefixes(prefixes, scores, history), beam._replace(score=beam.score + log_p[:, BLANK])

    beam, left = jax.lax.scan(say, beam, length=max_symbols)
    last = beam._replace(score=beam.score + _log_probabilities(model, beam, heard)[:, BLANK])
    every = jax.tree.map(lambda many, one: jnp.concatenate([many.reshape(-1, *one.shape[1:]), one]), left, last)
    every = every._replace(score=_merged(every))
    return rows_of(every, jax.lax.top_k(every.score, width)[1])


def _log_probabilities(model: Transducer, beam: ScoredPrefixes, heard: Float[Array, " J"]) -> Float[Array, "W V"]:
    """Of the classes at one step, after each prefix."""
    predicted = beam.history.predicted
    return log_softmax(model.joiner(jnp.broadcast_to(heard, predicted.shape), predicted))


def _merged(beam: ScoredPrefixes) -> Float[Array, " N"]:
    """The scores, where the first of equal prefixes has the sum of their probabilities and the others have none."""
    number = jnp.arange(len(beam.score))
    equal = beam.prefixes.equals(beam.prefixes)
    total = jax.nn.logsumexp(jnp.where(equal, beam.score[None], -jnp.inf), axis=1)
    return jnp.where(jnp.argmax(equal, axis=1) == number, total, -jnp.inf)


def _begin(model: Transducer, width: int, max_length: int) -> TransducerBeam:
    encoder, history = model.initial()
    form = jax.eval_shape(lambda: log_softmax(model.joiner(history.predicted, history.predicted)))
    score = jnp.full(width, -jnp.inf, form.dtype).at[0].set(0)
    return TransducerBeam(encoder, ScoredPrefixes(Prefixes.empty(width, max_length), score, copies(history, width)))


def _check_state(state: TransducerBeam, width: int, max_length: int) -> TransducerBeam:
    shape = state.beam.prefixes.labels.shape
    if shape != (width, max_length):
        raise ValueError(
            f"state: expected the beam of width={width} and max_length={max_length}, got one of {list(shape)}. "
            "Pass the same width and max_length for all chunks of a sequence"
        )
    return state
