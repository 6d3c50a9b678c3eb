"""The transducer: an encoder of the input, a prediction network of the labels so far, and a joiner of both."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ... import random
from ...arrays import AnyArray, IntegerLike, Length, PyTree, State
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...exporting import exportable
from ...network import Layer
from ...unroll import unroll
from ..embedding import Embedding
from ..forms import encoded_form
from .ctc import check_classes
from .joiner import Joiner
from .labels import BLANK, check_target, mean_loss, number_of_steps
from .lattice import Arcs, lattice_log_likelihood
from .transducer_likelihood import arcs_by_step, label_times


@exportable
class History(NamedTuple):
    """What a prediction network remembers of the labels so far: its state, and B g for the next label."""

    state: State
    predicted: Float[Array, " J"]


@exportable
class TransducerState(NamedTuple):
    """The state of a model between two chunks of its input: of the encoder, and after the labels so far."""

    encoder: State
    history: History


class Transducer(eqx.Module):
    """The distribution of labels given the input and the labels before (Graves 2012, arXiv:1211.3711): RNN-T.

        hs = encoder(xs)                 gs = prediction(embedding([blank, target]))
        logits[t, u] = joiner(h_t, g_u)                   at step t, after u labels; class 0, the blank, leaves the step

    encoder       any cell or network of vectors. Where it reads from the left alone, the model streams: the state
                  that a search returns is passed to the next call with the next chunk
    prediction    any cell or network of vectors that reads from the left, so never `Bidirectional`; it takes embedded
                  labels, and the blank stands for the start

        encoder = rnnjax.Stack([rnnjax.LSTM(39, 100, key=a), rnnjax.LSTM(100, 100, key=b)])
        model = Transducer(62, encoder, rnnjax.LSTM(32, 64, key=c), joint_size=64, key=d)

    `transducer_greedy` and `transducer_beam_search` transcribe; `transducer_loss` is a loss for `fit`.
    """

    encoder: Layer
    embedding: Embedding  # [V, E]
    prediction: Layer
    joiner: Joiner

    def __init__(self, vocabulary_size: int, encoder: Layer, prediction: Layer, *, joint_size: int, key: PRNGKeyArray):
        """Draw the embedding and the joiner. `vocabulary_size` is V, the blank included; `joint_size` is J.

        Raises ValueError for fewer than two classes, for networks whose inputs or outputs are not vectors, and for
        networks of different dtypes.
        """
        check_classes(vocabulary_size)
        hs, gs = encoded_form(encoder).ys, encoded_form(prediction).ys
        step = prediction.input_type()
        if gs.dtype != hs.dtype:
            raise ValueError(
                f"prediction: expected a network of {hs.dtype}, as the encoder is, got {gs.dtype}. "
                f"Build both with dtype=jnp.{hs.dtype}"
            )
        keys = random.split(key, 2)
        self.encoder = encoder
        self.embedding = Embedding(vocabulary_size, *step.shape, key=keys[0], dtype=step.dtype)
        self.prediction = prediction
        self.joiner = Joiner(hs.shape[1], gs.shape[1], joint_size, vocabulary_size, key=keys[1], dtype=hs.dtype)

    def encode(
        self,
        state: State | None,
        xs: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T J"]]:
        """The encoder's state after `xs`, and A h + a of each step; arguments as in `unroll`."""
        state, hs = unroll(self.encoder, state, xs, length=length, engine=engine, key=key)
        return state, self.joiner.heard(hs)

    def predict(
        self, labels: Int[Array, " U"], *, engine: AbstractEngine = Auto(), key: PRNGKeyArray | None = None
    ) -> Float[Array, "U1 J"]:
        """B g after 0 to U labels, which are known to be in the vocabulary."""
        embedded = self.embedding.rows(jnp.pad(labels, (1, 0), constant_values=BLANK))
        return self.joiner.predicted(unroll(self.prediction, None, embedded, engine=engine, key=key)[1])

    def initial(self) -> TransducerState:
        """The state before the first step and the first label."""
        return TransducerState(self.encoder.initial(), self.say(self.prediction.initial(), jnp.asarray(BLANK, int)))

    def say(self, state: State, label: Int[Array, ""]) -> History:
        """The history after one more label, which is known to be in the vocabulary."""
        state, gs = unroll(self.prediction, state, self.embedding.rows(label[None]))
        return History(state, self.joiner.predicted(gs[0]))

    def log_likelihood(
        self,
        xs: Checked[AnyArray],
        target: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        target_length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, ""]:
        """log p(target | xs), as `transducer_log_likelihood` defines it; its arguments, and those of `unroll`.

        The logits of one step at a time are made, and made again for the gradient: there is no array [T, U + 1, V].
        """
        return lattice_log_likelihood(*self._lattice(xs, target, length, target_length, engine, key))

    def align(
        self,
        xs: Checked[AnyArray],
        target: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        target_length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
    ) -> Float[Array, "T U"]:
        """The probability that label u of `target` is said at step t; arguments as in `log_likelihood`.

        Each valid label's column sums to one, where `target` is possible; others are zero.
        """
        lattice, length, target_length = self._lattice(xs, target, length, target_length, engine, None)
        return label_times(lattice, length, target_length)[: xs.shape[0]]

    def _lattice(
        self,
        xs: AnyArray,
        target: AnyArray,
        length: IntegerLike | None,
        target_length: IntegerLike | None,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> tuple[Arcs, Length, Length]:
        """The arcs of T + 1 steps, of which the last is ignored, and the lengths."""
        checked = check_target(target, target_length, self.embedding.vocabulary_size)
        keys = (None, None) if key is None else jax.random.split(key)
        _, heard = self.encode(None, xs, length=length, engine=engine, key=keys[0])
        T = heard.shape[0]
        predicted = self.predict(checked.labels, engine=engine, key=keys[1])
        steps = jnp.pad(heard, ((0, 1), (0, 0)))
        valid = number_of_steps(length, T)
        return arcs_by_step(self.joiner, steps, predicted, checked), valid, checked.length


def transducer_loss(
    model: Transducer,
    carry: PyTree,
    batch: Checked[tuple[PyTree[AnyArray], AnyArray, AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean of -log p(target) over the sequences of a batch, in nats, and `carry` as it was: a loss for `fit`.

    batch    (xs, length, target, target_length), or `Utterances`
    key      for dropout in both networks, drawn for each sequence; None: nothing is dropped
    """

    def one(xs: Array, length: Array, target: Array, target_length: Array, key: PRNGKeyArray | None) -> Array:
        return model.log_likelihood(xs, target, length=length, target_length=target_length, engine=engine, key=key)

    return mean_loss(one, batch, key), carry
