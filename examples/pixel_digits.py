"""Digits pixel by pixel: 784 steps of one number each, read by a deep linear recurrent unit, a LEM or an LSTM.

    RNNJAX_DATA=folder python examples/pixel_digits.py
    RNNJAX_DATA=folder python examples/pixel_digits.py --model lem --epochs 8
    python examples/pixel_digits.py                         on scikit-learn's digits, 64 steps each

Sequential MNIST (Le et al. 2015, arXiv:1504.00941). RNNJAX_DATA is a folder with mnist/train-images-idx3-ubyte.gz and
the three other files, from http://yann.lecun.com/exdb/mnist or a mirror of it. Without it, small images are used.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common.blocks import gated_block, optimiser
from common.command_line import LOSSES, SEED, choice, command_line, main
from common.digits import MNIST, Digits, Epochs, read_digits
from common.training import constant_then_linear, draw, temporary_folder
from jaxtyping import Array, PRNGKeyArray

import rnnjax

WIDTH, UNITS, BLOCKS = 32, 64, 2  # of the linear recurrent unit
WIDE = 128  # units of the others
HELD_OUT = 5_000  # of the training images, to choose by; the test images are read once, at the end
EPOCHS = Epochs(mnist=3.0, small=30.0)
PUBLISHED = [69.07, 84.2, 91.4, 94.8, 96.73, 96.83, 97.7, 97.93]  # per cent


class Reader(eqx.Module):
    """Blocks over the pixels; the mean of their outputs over time is classified."""

    encoder: Array
    network: rnnjax.Stack
    decoder: Array

    def __init__(self, T: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 2 * BLOCKS + 2)
        draw = rnnjax.initialise.lecun
        self.encoder = draw(keys[0], (1, WIDTH), jnp.float32)
        self.decoder = draw(keys[1], (WIDTH, 10), jnp.float32)
        cells = [rnnjax.LRU(WIDTH, UNITS, r_min=0.9, r_max=1 - 0.1 / T, key=key) for key in keys[2 : 2 + BLOCKS]]
        blocks = [gated_block(cell, WIDTH, key) for cell, key in zip(cells, keys[2 + BLOCKS :], strict=True)]
        self.network = rnnjax.Stack(blocks)

    def __call__(self, xs: Array) -> Array:
        _, ys = rnnjax.unroll(self.network, None, xs @ self.encoder)
        return ys.mean(0) @ self.decoder


class Recipe(NamedTuple):
    """How a model is drawn, for T pixels, and trained: batch size, and optimiser for a number of steps."""

    build: Callable[[int, PRNGKeyArray], Any]
    B: int
    rule: Callable[[int], optax.GradientTransformation]


def lem(T: int, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """Time steps of at most 0.21 for 784 pixels, as in the paper; longer ones for fewer pixels, up to 1."""
    return classify(rnnjax.LEM(1, WIDE, time_step=min(1.0, 0.21 * 784 / T), key=key), key)


def lstm(T: int, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """Gates whose initial memory is up to T steps."""
    return classify(rnnjax.LSTM(1, WIDE, bias_initialiser=rnnjax.initialise.chrono(T), key=key), key)


def classify(cell: rnnjax.AbstractCell, key: PRNGKeyArray) -> rnnjax.models.Classifier:
    """The class by the state after the last pixel."""
    return rnnjax.models.Classifier(cell, eqx.nn.Linear(WIDE, 10, key=jax.random.fold_in(key, 1)))


def slow_adam(steps: int) -> optax.GradientTransformation:
    """The learning rate of the LEM's paper, reduced in the last quarter of these steps."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(constant_then_linear(1.8e-3, steps)))


def adamw(steps: int) -> optax.GradientTransformation:
    """A separate learning rate for the weights that rotate and decay the units."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, min(500, steps // 10), steps)
    return optimiser(schedule, weight_decay=0.01)


MODELS = {"lru": Recipe(Reader, 50, adamw), "lem": Recipe(lem, 64, slow_adam), "lstm": Recipe(lstm, 64, slow_adam)}


def loss(reader: Any, carry: None, batch: Digits, key: Any) -> tuple[Array, None]:
    """The mean cross-entropy of a batch."""
    del key
    logits = jax.vmap(reader)(batch.xs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), carry


@eqx.filter_jit
def count_right(reader: Any, batch: Digits) -> Array:
    """The number of correct answers in a batch."""
    return jnp.sum(jax.vmap(reader)(batch.xs).argmax(-1) == batch.labels)


def accuracy(reader: Any, digits: Digits) -> float:
    """The accuracy."""
    count = len(digits.labels)
    parts = [Digits(digits.xs[at : at + 100], digits.labels[at : at + 100]) for at in range(0, count, 100)]
    return sum(int(count_right(reader, part)) for part in parts) / count


def hold_out(digits: Digits) -> tuple[Digits, Digits]:
    """The training set and the validation set."""
    spared = min(HELD_OUT, len(digits.labels) // 10)
    return jax.tree.map(lambda leaf: leaf[spared:], digits), jax.tree.map(lambda leaf: leaf[:spared], digits)


parse = command_line(
    __doc__,
    choice("--model", MODELS, "lru"),
    EPOCHS.option(),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a reader that was trained for some epochs."""
    digits, test, name = read_digits()
    recipe = MODELS[options.model]
    epochs = EPOCHS.of(name) if options.epochs is None else options.epochs
    reader, curve = train(recipe, *hold_out(digits), epochs, options)
    share = accuracy(reader, test)
    print(f"{name}, {options.model}: {100 * share:.2f} % of the test digits, by the weights best on those held out")
    published = PUBLISHED if name == MNIST else []
    if published:
        print(f"LEM of 128 units after epochs 1 to {len(published)} of B = 128 (Rusch et al. 2022, log): {published}")
    record = {"task": name, "model": options.model, "seed": options.seed, "B": recipe.B}
    record |= {"weights": rnnjax.diagnose.count(reader)}
    yield record | {"curve": curve, "test": share, "published": published}


def train(
    recipe: Recipe, training: Digits, held_out: Digits, epochs: float, options: argparse.Namespace
) -> tuple[Any, list[tuple[float, ...]]]:
    """The best reader; and after each epoch: epochs, the share of `held_out` that is read right, and seconds."""
    epoch = len(training.labels) // recipe.B
    steps = max(1, round(epochs * epoch))

    def judge(reader: Any) -> float:
        share = accuracy(reader, held_out)
        print(f"\n{100 * share:.2f} % of {len(held_out.labels)} held-out digits", flush=True)
        return 1 - share

    with temporary_folder() as folder:
        fitted = rnnjax.training.fit(
            recipe.build(training.xs.shape[1], jax.random.key(options.seed)),
            loss,
            rnnjax.training.minibatches(training, recipe.B, seed=options.seed),
            recipe.rule(steps),
            steps=steps,
            key=jax.random.key(options.seed + 1),
            validate=judge,
            every=min(epoch, steps),
            folder=folder,
        )
        lines = rnnjax.training.read_metrics(folder / "metrics.jsonl")
        if options.picture is not None:
            draw(folder, options.picture)
    return fitted.model, [(line["step"] / epoch, 1 - line["validation"], line["seconds"]) for line in lines]


if __name__ == "__main__":
    main(parse, run)
