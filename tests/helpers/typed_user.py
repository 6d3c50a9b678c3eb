"""A user's program, typed as pyright's strict mode asks: what the library takes and returns is known to a checker."""

# pyright: strict
# Not the library's: optax has no stubs, and functions of jax, equinox and optax have parameters without types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import rnnjax


class Batch(NamedTuple):
    """Sequences, a class for each, and how many of their steps count."""

    xs: np.ndarray  # [B, T, 3]
    labels: np.ndarray  # [B]
    lengths: np.ndarray  # [B]


class Reader(eqx.Module):
    """A network and a linear layer on its last hidden state."""

    network: rnnjax.networks.Stack
    head: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        cells, head = jax.random.split(key)
        first, second = jax.random.split(cells)
        self.network = rnnjax.Stack([rnnjax.LSTM(3, 4, key=first), rnnjax.MinGRU(4, 4, key=second)], dropout=0.1)
        self.head = eqx.nn.Linear(4, 2, key=head)

    def __call__(self, xs: Array, length: Array, key: PRNGKeyArray) -> Array:
        last, _ = rnnjax.unroll(self.network, None, xs, length=length, engine=rnnjax.Scan(), key=key)
        return self.head(last[-1].h)


def loss(model: Reader, carry: None, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], None]:
    """The cross-entropy of a batch, and a penalty."""
    keys = jax.random.split(key, len(batch.labels))
    logits = jax.vmap(model)(jnp.asarray(batch.xs), jnp.asarray(batch.lengths), keys)
    return rnnjax.models.cross_entropy(logits, batch.labels).mean() + rnnjax.regularise.l2_penalty(model), carry


def add(total: Array, x: Array) -> tuple[Array, Array]:
    """A plain function as a cell: the sum so far, and the double of it."""
    return total + x, 2 * total


def run(key: PRNGKeyArray) -> None:
    """Cells, networks and functions, by several engines."""
    xs = np.ones((5, 3), np.float32)
    cell = rnnjax.GRU(3, 4, key=key, dtype=jnp.float32)
    last, ys = rnnjax.unroll(cell, None, xs, length=4, resets=np.arange(5) == 2, reverse=True)
    again, _ = rnnjax.unroll(cell, last, jnp.asarray(xs), engine=rnnjax.Fused(cpu=rnnjax.kernels.CPU()))
    print(last.h.shape, again.h.shape, ys.shape, ys.mean())

    both = rnnjax.Bidirectional(cell, rnnjax.GRU(3, 4, key=key))
    _, ys = rnnjax.unroll(both, None, xs, engine=rnnjax.Checkpointed())
    print(ys.shape, rnnjax.explain(both, jnp.asarray(xs), rnnjax.Auto()).cells[0].name)

    total, doubles = rnnjax.unroll(add, jnp.zeros(3), jnp.asarray(xs), engine=rnnjax.Unrolled())
    print(total + doubles[-1])


def look(key: PRNGKeyArray) -> None:
    """Diagnoses, regularisers and estimators of gradients."""
    xs = jnp.ones((5, 3))
    cell = rnnjax.LSTM(3, 4, key=key)

    def last_unit(last: rnnjax.cells.LSTMState, ys: Array) -> Array:
        return last.h[0] + ys[-1, 0]

    print(rnnjax.diagnose.gradient_by_lag(last_unit, cell, None, xs, lags=3).shape)
    print(rnnjax.diagnose.examine(last_unit, cell, None, xs).findings)
    print(rnnjax.diagnose.lyapunov_exponents(cell, None, xs, count=2, skip=1))

    dropped: rnnjax.LSTM = rnnjax.regularise.drop_weights(cell, 0.5, key=key)
    zoneout = rnnjax.regularise.Zoneout(dropped, rates=0.1)
    noisy = rnnjax.regularise.VariationalDropout(cell, inputs=0.1, recurrent=0.2)
    print(rnnjax.unroll(zoneout, None, xs)[1].shape, rnnjax.unroll(noisy, None, xs, key=key)[1].shape)

    def error(head: None, y: Array, target: Array) -> Float[Array, ""]:
        del head
        return ((y - target) ** 2).sum()

    estimator = rnnjax.gradients.RTRL()
    estimate = estimator.estimate(error, (cell, None), estimator.start(cell), xs, jnp.zeros((5, 4)))
    print(estimate.loss, optax.tree.norm(estimate.gradient))


def train(key: PRNGKeyArray) -> None:
    """A model of one's own, and one of the library's."""
    random = np.random.default_rng(0)
    xs, labels = random.standard_normal((8, 5, 3), np.float32), random.integers(0, 2, 8)
    lengths = random.integers(1, 6, 8)

    batches = rnnjax.training.minibatches(Batch(xs, labels, lengths), 4, seed=0)

    def validate(model: Reader) -> Array:
        return loss(model, None, Batch(xs, labels, lengths), key)[0]

    fitted = rnnjax.training.fit(
        Reader(key), loss, batches, optax.adam(1e-2), steps=4, key=key, validate=validate, every=2, progress=False
    )
    print(fitted.model.head.weight.shape, fitted.steps)

    classifier = rnnjax.models.Classifier(rnnjax.GRU(3, 4, key=key), eqx.nn.Linear(4, 2, key=key))
    value, _ = rnnjax.models.classifier_loss(classifier, None, (xs, labels, lengths), None, engine=rnnjax.Auto())
    language = rnnjax.models.LanguageModel(7, rnnjax.GRU(4, 4, key=key), key=key)
    decoding = language.decoding()
    said = rnnjax.models.greedy(decoding.step, decoding.state, start=0, end=1, max_length=3)
    print(value, classifier(jnp.asarray(xs[0]), length=lengths[0]), said.tokens)

    network = rnnjax.networks.layers(rnnjax.LSTM, 3, [4, 4], bidirectional=True, dropout=0.1, key=key)
    print(rnnjax.diagnose.summary(network, xs[0]).parameters, rnnjax.diagnose.count(network))
    prompts, counts = rnnjax.training.pad([[1, 2], [3]], length=4)
    drawn = rnnjax.models.sample(language, [1, 2], 3, key=key, top_p=0.9, end=0)
    state, logits = language.step(language.initial(), 3)
    print(prompts.shape, counts.sum(), drawn.shape, state is None, logits.shape)
    print(rnnjax.training.accuracy(classifier, (xs, labels), size=4))


if __name__ == "__main__":
    run(jax.random.key(0))
    look(jax.random.key(1))
    train(jax.random.key(2))
