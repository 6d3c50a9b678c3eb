"""Captions of images of one to three digits, such as "three seven", by a convolution and an LSTM that writes the words.

    python examples/digit_captions.py --picture runs/digit_captions.png
    RNNJAX_DATA=folder python examples/digit_captions.py --steps 3000

The images consist of scikit-learn's digits, 8 x 8, or of MNIST's: RNNJAX_DATA is as in pixel_digits.py. Test images
consist of other digits than training images. About a third of the images have three digits. A caption is correct if
every word and the end are.
"""

import argparse
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import SEED, command_line, main, picture_option, steps_option
from common.digits import Digits, read_digits
from common.pictures import save
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

import rnnjax

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
START, END = len(WORDS), len(WORDS) + 1
MOST = 3  # digits in an image
B, EMBEDDING, UNITS, CHANNELS, LEARNING_RATE = 64, 16, 96, 16, 2e-3
TESTED, SHOWN, BEAM = 1_000, 8, 3


parse = command_line(
    __doc__,
    steps_option(2000),
    SEED,
    picture_option("captioned images"),
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a captioner."""
    digits, spared, data = read_digits()
    name = data.removeprefix("sequential ")
    test = compose(np.random.default_rng((options.seed, 0)), spared, TESTED)
    fitted = rnnjax.training.fit(
        build(test.image.shape[1:], jax.random.key(options.seed)),
        rnnjax.models.caption_loss,
        lambda step: compose(np.random.default_rng((options.seed, 1, step)), digits, B),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, options.steps))
        ),
        steps=options.steps,
        key=jax.random.key(options.seed + 1),
    )
    greedy, beam = caption(fitted.model, jnp.asarray(test.image))
    shares = [float((np.asarray(tokens) == test.target[:, 1:]).all(1).mean()) for tokens in (greedy, beam)]
    print(f"{name}: of {TESTED} test images {100 * shares[0]:.1f} % captioned right, {100 * shares[1]:.1f} % by a beam")
    if options.picture is not None:
        draw(test.image, np.asarray(beam), options.picture)
    yield {"task": f"captions of {name}", "seed": options.seed, "test": shares[0], "beam": shares[1]}


def compose(random: np.random.Generator, digits: Digits, count: int) -> rnnjax.models.Captions:
    """Images of random digits, from left to right, black after the last one."""
    counts = random.integers(1, MOST, count, endpoint=True)
    shown = np.arange(MOST) < counts[:, None]
    drawn = random.integers(len(digits.labels), size=(count, MOST))
    side = isqrt(digits.xs.shape[1])
    squares = digits.xs[drawn].reshape(count, MOST, side, side) * shown[:, :, None, None].astype(np.float32)
    target = np.full((count, MOST + 2), END, np.int32)
    target[:, 0] = START
    target[:, 1:-1] = np.where(shown, digits.labels[drawn], END)
    return rnnjax.models.Captions(squares.swapaxes(1, 2).reshape(count, 1, side, MOST * side), target, counts + 2)


def build(shape: tuple[int, ...], key: PRNGKeyArray) -> rnnjax.models.Captioner:
    """A captioner of images of this shape, [channels, height, width], as drawn."""
    keys = jax.random.split(key, 4)
    encoder = convolutions(shape, keys[0])
    features = eqx.filter_eval_shape(encoder, jax.ShapeDtypeStruct(shape, jnp.float32))
    language = rnnjax.models.LanguageModel(len(WORDS) + 2, rnnjax.LSTM(EMBEDDING, UNITS, key=keys[1]), key=keys[2])
    return rnnjax.models.Captioner(encoder, rnnjax.models.Bridge(features, language.initial(), key=keys[3]), language)


def convolutions(shape: tuple[int, ...], key: PRNGKeyArray) -> eqx.nn.Sequential:
    """Convolutions that halve the image until it is lower than four pixels, and double the channels each time."""
    inputs, height, _ = shape
    layers, outputs = [], CHANNELS
    while height >= 4:
        key, drawing = jax.random.split(key)
        layers += [eqx.nn.Conv2d(inputs, outputs, 3, padding=1, key=drawing), eqx.nn.Lambda(jax.nn.relu)]
        layers.append(eqx.nn.MaxPool2d(2, 2))
        inputs, outputs, height = outputs, 2 * outputs, height // 2
    return eqx.nn.Sequential(layers)


@eqx.filter_jit
def caption(model: rnnjax.models.Captioner, images: Array) -> tuple[Array, Array]:
    """The captions of each image, by greedy search and by beam search, [images, MOST + 1] each."""

    def one(image: Array) -> tuple[Array, Array]:
        step, state, _ = model.decoding(image)
        options: dict[str, Any] = {"start": START, "end": END, "max_length": MOST + 1}
        likeliest = rnnjax.models.greedy(step, state, **options)
        return likeliest.tokens, rnnjax.models.beam_search(step, state, width=BEAM, **options).tokens

    return jax.vmap(one)(images)


def spell(tokens: np.ndarray) -> str:
    """The words before the end."""
    said = tokens.tolist()
    said = said[: said.index(END)] if END in said else said
    return " ".join("?" if token == START else WORDS[token] for token in said)


def draw(images: np.ndarray, captions: np.ndarray, picture: Path) -> None:
    """A few images, each under its caption."""
    figure = Figure(figsize=(8, 1.1 * SHOWN / 2), layout="constrained")
    axes: Any = figure.subplots(SHOWN // 2, 2)
    for place, image, tokens in zip(axes.flat, images, captions, strict=False):
        place.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        place.set(title=spell(tokens), xticks=[], yticks=[])
    save(figure, picture)


if __name__ == "__main__":
    main(parse, run)
