"""Images of digits as sequences of rows: what a recurrence adds to a layer that is applied to each row.

    RNNJAX_DATA=folder python examples/digit_rows.py --model lstm
    RNNJAX_DATA=folder python examples/digit_rows.py --model linear
    RNNJAX_DATA=folder python examples/digit_rows.py --model cnn_rnn_mlp
    python examples/digit_rows.py                                       on scikit-learn's digits of 8 x 8 pixels

`linear` is one linear layer, the same for every row, and the mean of its outputs: it uses all pixels, but neither the
order of the rows nor any combination of them. `lstm` reads the rows one after the other, and its last state is
classified. `cnn_rnn_mlp` is a convolution over neighbouring rows, a recurrence, and a perceptron. RNNJAX_DATA is a
folder with MNIST, as in `pixel_digits.py`. There are few small digits, so a fifth of their pixels is dropped in
training, and weights decay.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from common.command_line import LOSSES, SEED, choice, command_line, main
from common.digits import MNIST, Epochs, read_digits
from common.training import fit
from jaxtyping import Array, PRNGKeyArray

import rnnjax

B, UNITS, CHANNELS, WINDOW, CLASSES = 100, 64, 32, 3, 10
EPOCHS = Epochs(mnist=4, small=60)


def lstm(width: int, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """A digit by the last state of an LSTM over its rows."""
    keys = jax.random.split(key)
    head = eqx.nn.Linear(UNITS, CLASSES, key=keys[1])
    return rnnjax.models.Classifier(rnnjax.LSTM(width, UNITS, key=keys[0]), head)


def linear(width: int, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """A digit by the mean of a linear layer over its rows, without recurrence."""
    layer = rnnjax.TimeDistributed(eqx.nn.Linear(width, CLASSES, key=key), width)
    return rnnjax.models.Classifier(layer, jax.nn.identity, pooling=rnnjax.models.mean)


def cnn_rnn_mlp(width: int, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """A digit by a convolution over three rows, an LSTM over its outputs, and a perceptron on the last state."""
    keys = jax.random.split(key, 3)
    convolution = rnnjax.networks.CausalConvolution(width, CHANNELS, window=WINDOW, key=keys[0])
    rectify, recurrence = rnnjax.TimeDistributed(jax.nn.relu, CHANNELS), rnnjax.LSTM(CHANNELS, UNITS, key=keys[1])
    head = eqx.nn.MLP(UNITS, CLASSES, UNITS, 1, key=keys[2])
    return rnnjax.models.Classifier(rnnjax.Stack([convolution, rectify, recurrence]), head)


MODELS: dict[str, Callable[[int, PRNGKeyArray], rnnjax.models.Classifier]] = {
    "lstm": lstm,
    "linear": linear,
    "cnn_rnn_mlp": cnn_rnn_mlp,
}


class Recipe(NamedTuple):
    """How fast a model learns, how fast its weights decay, and which share of the pixels is dropped."""

    learning_rate: float
    weight_decay: float
    dropout: float


RECIPES = {True: Recipe(3e-3, 0.0, 0.0), False: Recipe(1e-2, 0.1, 0.2)}  # for MNIST, for the small digits


parse = command_line(
    __doc__,
    choice("--model", MODELS, "lstm"),
    EPOCHS.option(),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a classifier after a fixed number of epochs; nothing is chosen on the test digits."""
    *sets, name = read_digits()
    epochs = EPOCHS.of(name) if options.epochs is None else options.epochs
    recipe = RECIPES[name == MNIST]
    name = f"{name.removeprefix('sequential ')} by rows"
    training, test = (rows(digits.xs, digits.labels) for digits in sets)
    keys = jax.random.split(jax.random.key(options.seed))
    steps = round(epochs * (len(training.targets) // B))
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, steps)
    fitted = fit(
        MODELS[options.model](training.xs.shape[-1], keys[0]),
        partial(loss, dropout=recipe.dropout),
        rnnjax.training.minibatches(training, B, seed=options.seed),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=recipe.weight_decay)),
        steps=steps,
        key=keys[1],
        picture=options.picture,
    )
    share, weights = rnnjax.training.accuracy(fitted.model, test), rnnjax.diagnose.count(fitted.model)
    print(f"{name}, {options.model}: {100 * share:.2f} % of {len(test.targets):,} test digits by {weights:,} weights")
    if name == "MNIST by rows":
        print("published, of an LSTM over rows that another has read pixel by pixel: 98.6 % (Keras, after 5 epochs)")
    yield {"task": name, "model": options.model, "seed": options.seed, "test": share, "weights": weights}


def loss(
    model: rnnjax.models.Classifier, carry: None, batch: rnnjax.models.Sequences, key: PRNGKeyArray, *, dropout: float
) -> tuple[Array, None]:
    """The mean cross-entropy of a batch, of which pixels are dropped."""
    pixels_key, key = jax.random.split(key)
    xs = eqx.nn.Dropout(dropout)(batch.xs, key=pixels_key)
    return rnnjax.models.classifier_loss(model, carry, batch._replace(xs=xs), key)


def rows(pixels: np.ndarray, labels: np.ndarray) -> rnnjax.models.Sequences:
    """Images [N, pixels, 1] as sequences [N, rows, columns]."""
    side = round(pixels.shape[1] ** 0.5)
    return rnnjax.models.Sequences(pixels.reshape(-1, side, side), labels)


if __name__ == "__main__":
    main(parse, run)
