"""Connectionist temporal classification: a network that labels every step, blanks included, and its loss."""

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check
from ...arrays import AnyArray, IntegerLike, PyTree, State
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...network import Layer
from ...unroll import unroll
from ..embedding import OutputLayer
from ..forms import encoded_form
from .ctc_likelihood import ctc_log_likelihood
from .labels import mean_loss


class CTC(eqx.Module):
    """The logits of a label, or of the blank, at every step (Graves et al. 2006).

        hs = network(xs)            logits = hs V^T + b            log p(target) = ctc_log_likelihood(logits, target)

    network    any cell or network of vectors, by any engine; `Bidirectional` where it may read the whole sequence
    head       the logits of V classes: class 0 is the blank, the labels are 1 to V - 1

        network = rnnjax.Bidirectional(rnnjax.LSTM(39, 100, key=a), rnnjax.LSTM(39, 100, key=b))
        model = CTC(62, network, key=c)

    `ctc_greedy` and `ctc_beam_search` read the transcript from the logits. Labels are independent of each other given
    the input: a `Transducer` models what follows what.
    """

    network: Layer
    head: OutputLayer

    def __init__(self, vocabulary_size: int, network: Layer, *, key: PRNGKeyArray):
        """Draw the output weights. `vocabulary_size` is V, the blank included.

        Raises ValueError for fewer than two classes, and for a network whose inputs or outputs are not vectors.
        """
        check_classes(vocabulary_size)
        ys = encoded_form(network).ys
        self.network = network
        self.head = OutputLayer(vocabulary_size, ys.shape[1], key=key, dtype=ys.dtype)

    def initial(self) -> State:
        """The network's state before the first step."""
        return self.network.initial()

    def logits(
        self,
        state: State | None,
        xs: Checked[AnyArray],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, Float[Array, "T V"]]:
        """The state after `xs`, and the logits of each step, in float32 or wider; arguments as in `unroll`."""
        state, hs = unroll(self.network, state, xs, length=length, engine=engine, key=key)
        return state, self.head(hs)


def ctc_loss(
    model: CTC,
    carry: PyTree,
    batch: Checked[tuple[PyTree[AnyArray], AnyArray, AnyArray, AnyArray]],
    key: PRNGKeyArray | None,
    *,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean of -log p(target) over the sequences of a batch, in nats, and `carry` as it was: a loss for `fit`.

    batch    (xs, length, target, target_length), or `Utterances`
    key      for dropout in the network, drawn for each sequence; None: nothing is dropped

    A target that does not fit into its sequence makes the loss infinite, at which `fit` stops: leave such pairs out.
    """

    def one(xs: PyTree, length: Array, target: Array, target_length: Array, key: PRNGKeyArray | None) -> Array:
        _, logits = model.logits(None, xs, length=length, engine=engine, key=key)
        return ctc_log_likelihood(logits, target, length=length, target_length=target_length)

    return mean_loss(one, batch, key), carry


def check_classes(vocabulary_size: int) -> None:
    """Raise unless there is a label beside the blank."""
    check.sizes(vocabulary_size=vocabulary_size)
    if vocabulary_size < 2:
        raise ValueError(
            f"vocabulary_size: expected 2 or more, the blank and at least one label, got {vocabulary_size}. "
            "Add one to the number of labels"
        )
