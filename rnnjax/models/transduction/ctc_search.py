"""The transcripts of CTC's logits: by the most probable classes, or by a beam of prefixes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...arrays import AnyArray, IntegerLike, select
from ...checked import Checked
from ...marks import blank, valid_steps
from ..search import Decoding, Hypothesis, log_softmax
from .labels import BLANK, check_logits, number_of_steps
from .language import Text, check_language
from .prefixes import Prefixes, check_beam, copies, rows_of


def ctc_greedy(logits: Checked[AnyArray], *, length: Checked[IntegerLike | None] = None) -> Hypothesis:
    """The transcript of the most probable class of each step: repeated classes merged, then blanks removed.

    logits    [T, V], of one sequence; steps from `length` on may be anything
    length    None: T

    Returns a `Hypothesis` of T tokens, zeros after the transcript, of which the score is the logarithm of this one
    alignment's probability. If any valid logit is NaN, the score is NaN, and the tokens of such steps are -1.
    """
    logits = check_logits(logits, "[T, V]")
    T = logits.shape[0]
    length = number_of_steps(length, T)
    log_p = log_softmax(blank(logits, length, T))
    valid = valid_steps(length, T)
    best = jnp.argmax(log_p, -1).astype(int)
    score = jnp.take_along_axis(log_p, best[:, None], axis=1)[:, 0]
    best = jnp.where(jnp.isnan(score), -1, best)
    before = jnp.pad(best[:-1], (min(T, 1), 0), constant_values=BLANK)
    begins = valid & (best != BLANK) & (best != before)
    places = jnp.where(begins, jnp.cumsum(begins) - 1, T)
    tokens = jnp.full(T, BLANK, int).at[places].set(best, mode="drop")
    return Hypothesis(tokens, begins.sum().astype(int), jnp.where(valid, score, 0).sum(), None)


class Beam(NamedTuple):
    """Prefixes, and the logarithm of the probability of their alignments so far, by the class they end with."""

    prefixes: Prefixes
    blank: Float[Array, " W"]
    label: Float[Array, " W"]
    text: Text

    def total(self) -> Float[Array, " W"]:
        return jnp.logaddexp(self.blank, self.label)


def ctc_beam_search(
    logits: Checked[AnyArray],
    *,
    width: Checked[int],
    length: Checked[IntegerLike | None] = None,
    max_length: Checked[int | None] = None,
    language: Checked[Decoding | None] = None,
    language_weight: Checked[float | Array | None] = None,
) -> Hypothesis:
    """The best transcript of a beam of prefixes, whose alignments are summed; inside `jit`; `jax.vmap` maps a batch.

    The prefix search of Graves 2012 (Supervised Sequence Labelling, section 7.5) with a beam (Hannun et al. 2014,
    arXiv:1408.2873). With a language model it maximises

        log p(y | xs) + language_weight log p(y, end)                                               (shallow fusion)

    logits             [T, V], of one sequence; steps from `length` on may be anything
    width              W, how many prefixes are kept at each step. Where it is as large as the number of prefixes, the
                       result is exact
    length             the valid steps; None: T
    max_length         L, labels of the longest transcript that is considered; None: T
    language           `model.decoding()` of a `LanguageModel`, or any other `Decoding`, of V tokens. Its token 0,
                       which no transcript holds, stands for the start and for the end of a text
    language_weight    its weight; None without a language model

    Returns a `Hypothesis`: tokens [L], zeros after the transcript; score, the sum above over the alignments that the
    beam kept. Tokens are -1 and the score is NaN if a valid logit is NaN.
    """
    logits = check_logits(logits, "[T, V]")
    T, V = logits.shape
    L = max(T, 1) if max_length is None else max_length
    check_beam(width, L)
    decoding, weight = check_language(language, language_weight, V)
    length = number_of_steps(length, T)
    log_p = log_softmax(blank(logits, length, T))
    first = Text.begin(decoding, weight.astype(log_p.dtype))
    nothing = jnp.full(width, -jnp.inf, log_p.dtype)
    beam = Beam(Prefixes.empty(width, L), nothing.at[0].set(0), nothing, copies(first, width))

    def step(beam: Beam, inputs: tuple[Array, Array]) -> tuple[Beam, None]:
        log_p, valid = inputs
        return select(valid, _advance(decoding, beam, log_p), beam), None

    beam, _ = jax.lax.scan(step, beam, (log_p, valid_steps(length, T)))
    scores = beam.total() + beam.text.ended()
    best = jnp.argmax(scores)
    labels = beam.prefixes.labels[best]
    tokens = jnp.where(jnp.isnan(scores[best]), -1, labels)
    return Hypothesis(tokens, beam.prefixes.length[best], scores[best], None)


def _advance(decoding: Decoding, beam: Beam, log_p: Float[Array, " V"]) -> Beam:
    """The beam after one more step: prefixes that stay as they are, and those that get a label more."""
    width, V = len(beam.blank), len(log_p)
    stay, grown = _stay(beam, log_p), _grown(beam, log_p)
    stay, grown = _merged(beam, stay, grown)
    scores = jnp.logaddexp(*stay)[:, None] + beam.text.score[:, None]
    longer = grown[:, 1:] + beam.text.extended()[:, 1:]
    _, places = jax.lax.top_k(jnp.concatenate([scores, longer], axis=1).reshape(-1), width)
    parents, labels = jnp.divmod(places.astype(int), V)
    extends = labels != BLANK
    prefixes = beam.prefixes.taken(parents).extended(labels, extends)
    by_blank = jnp.where(extends, -jnp.inf, stay[0][parents])
    by_label = jnp.where(extends, grown[parents, labels], stay[1][parents])
    return Beam(prefixes, by_blank, by_label, rows_of(beam.text, parents).said(decoding, labels, extends))


def _stay(beam: Beam, log_p: Float[Array, " V"]) -> tuple[Float[Array, " W"], Float[Array, " W"]]:
    """Log probabilities of unchanged prefixes: after a blank, and after their last label again."""
    repeated = jnp.where(beam.prefixes.length > 0, beam.label + log_p[beam.prefixes.last], -jnp.inf)
    return beam.total() + log_p[BLANK], repeated


def _grown(beam: Beam, log_p: Float[Array, " V"]) -> Float[Array, "W V"]:
    """Log probabilities of prefixes with each label appended; between two equal labels there must be a blank."""
    classes = jnp.arange(len(log_p))
    equal = classes == beam.prefixes.last[:, None]
    grown = jnp.where(equal, beam.blank[:, None], beam.total()[:, None]) + log_p[None]
    full = beam.prefixes.length == beam.prefixes.labels.shape[1]
    return jnp.where(full[:, None] | (classes == BLANK), -jnp.inf, grown)


def _merged(
    beam: Beam, stay: tuple[Array, Array], grown: Float[Array, "W V"]
) -> tuple[tuple[Array, Array], Float[Array, "W V"]]:
    """The alignments that make one prefix of the beam into another of it are counted with that other."""
    prefixes, width = beam.prefixes, len(beam.blank)
    alive = beam.total() > -jnp.inf
    child = prefixes.equals(prefixes.shortened()) & alive[:, None] & alive  # [i, j]: j is i with a label more
    arriving = jnp.where(child, grown[jnp.arange(width)[:, None], prefixes.last], -jnp.inf)
    by_label = jnp.logaddexp(stay[1], jax.nn.logsumexp(arriving, axis=0))
    counted = (child[:, :, None] & (jnp.arange(grown.shape[1]) == prefixes.last[:, None])).any(1)
    return (stay[0], by_label), jnp.where(counted, -jnp.inf, grown)
