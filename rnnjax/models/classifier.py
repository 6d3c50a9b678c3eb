"""Many-to-one: a sequence's class, classes or value."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check
from ..arrays import AnyArray, IntegerLike, Length, PyTree
from ..cell import AbstractCell
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..exporting import exportable
from ..named import as_module
from ..network import AbstractNetwork
from ..unroll import unroll
from .batches import Batch, sequences
from .objectives import cross_entropy
from .pooling import last


@exportable
class Sequences(NamedTuple):
    """A batch of sequences and their targets: one for each sequence, or one for each step."""

    xs: PyTree[Array]  # [B, T, ...]
    targets: PyTree[Array]  # [B, ...] or [B, T, ...]
    lengths: Any = None  # [B]; None: all steps are valid


class Classifier(eqx.Module):
    """One answer for a sequence: `head(pooling(network(xs)))`.

    network    any cell or network, by any engine
    head       what makes the answer of the pooled vector: `eqx.nn.Linear`, `eqx.nn.MLP`, any function
    pooling    `last`, `ends`, `mean`, `maximum`, `flatten`, an `AttentionPooling`, or any `(ys, length) -> vector`

    A convolution for what is near, a recurrence for what is far, and a perceptron to decide:

        convolution = networks.CausalConvolution(28, 32, window=3, key=a)
        network = Stack([convolution, TimeDistributed(jax.nn.relu, 32), GRU(32, 64, key=b)])
        Classifier(network, eqx.nn.MLP(64, 10, 64, 1, key=c))

    What the answer means is up to the loss: logits of K classes, of which one is right (`cross_entropy`), K answers of
    yes or no (`binary_cross_entropy`), or a value (`squared_error`).

    `jax.jit`, `jax.grad` and optax take it as they take cells: functions without weights are no leaves of it. A layer
    that holds a function beside its weights, as `eqx.nn.MLP` does, wants `eqx.filter_jit` and `eqx.filter_grad`.
    """

    network: AbstractCell | AbstractNetwork
    head: Callable[[Array], Array] = eqx.field(converter=as_module)
    pooling: Callable[[Array, Length | None], Array] = eqx.field(converter=as_module)

    def __init__(
        self,
        network: AbstractCell | AbstractNetwork,
        head: Callable[[Array], Array],
        *,
        pooling: Callable[[Array, Length | None], Array] = last,
    ):
        """The parts as they are; nothing is drawn."""
        self.network = network
        self.head = head
        self.pooling = pooling

    def __call__(
        self,
        xs: PyTree[Array],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> Array:
        """The answer for one sequence; arguments as `unroll` takes them."""
        _, ys = unroll(self.network, None, xs, length=length, engine=engine, key=key)
        return self.head(self.pooling(ys, check.length(length, ys.shape[0])))


def classifier_loss(
    model: Callable[..., Array],
    carry: PyTree,
    batch: Checked[Batch],
    key: PRNGKeyArray | None,
    *,
    objective: Callable[[Array, Array], Array] = cross_entropy,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean of `objective(answer, target)` over a batch, and the carry: a loss for `fit`.

    model     a `Classifier`, or what is called like one, say with word vectors before it
    batch     `Sequences`, `(xs, targets, lengths)`, or `(xs, targets)` if all steps count: targets lead with the batch
    key       for dropout in the network, drawn anew for each sequence; None: nothing is dropped
    """
    xs, targets, lengths = sequences(batch)
    answers = run_batch(model, xs, lengths, key, engine)
    return objective(answers, targets).mean(), carry


def run_batch(
    model: Callable[..., Array],
    xs: PyTree[AnyArray],
    lengths: AnyArray | None,
    key: PRNGKeyArray | None,
    engine: AbstractEngine,
) -> Array:
    """`model` on every sequence of a batch, each with a key of its own."""
    B = jax.tree.leaves(xs)[0].shape[0]
    keys = None if key is None else jax.random.split(key, B)
    one = lambda xs, length, key: model(xs, length=length, engine=engine, key=key)  # noqa: E731
    return jax.vmap(one)(xs, lengths, keys)
