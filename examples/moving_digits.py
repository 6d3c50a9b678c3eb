"""Video prediction: two digits move in a frame and bounce off its walls; predict the next frame.

    python examples/moving_digits.py --minutes 4 --picture runs/moving_digits.png
    RNNJAX_DATA=folder python examples/moving_digits.py --minutes 200

Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681). scikit-learn's digits of 8 x 8 pixels move in frames of
16 x 16; if RNNJAX_DATA has MNIST, as in `pixel_digits.py`, digits of 28 x 28 move in frames of 64 x 64. A ConvLSTM is
compared with two predictors without memory: the last frame, and convolutions of the last frame. The directions of the
digits cannot be determined from one frame.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import SEED, command_line, main, minutes_option, picture_option
from common.digits import read_digits
from common.pictures import save
from common.training import count_steps
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

import rnnjax

B, T, DIGITS, JUDGED = 8, 12, 2, 64
CHANNELS, KERNEL, LEARNING_RATE = 16, 3, 5e-3
SPEED = 0.1  # of the frame's side, at every step
SEEN = 2  # frames before the first one that is predicted: two say which way the digits move


def recurrent(side: int, key: PRNGKeyArray) -> rnnjax.Stack:
    """Logits of the next frame at every step, by a ConvLSTM over frames [1, side, side]."""
    keys = jax.random.split(key)
    cell = rnnjax.ConvLSTM(1, CHANNELS, (side, side), kernel_size=KERNEL, key=keys[0])
    return rnnjax.Stack([cell, rnnjax.TimeDistributed(convolution(CHANNELS, 1, keys[1]), (CHANNELS, side, side))])


def memoryless(side: int, key: PRNGKeyArray) -> rnnjax.TimeDistributed:
    """The same by convolutions of the last frame alone."""
    keys, rectify = jax.random.split(key, 3), eqx.nn.Lambda(jax.nn.relu)
    sizes = (1, 2 * CHANNELS), (2 * CHANNELS, 2 * CHANNELS), (2 * CHANNELS, 1)
    first, second, last = (convolution(*size, key) for size, key in zip(sizes, keys, strict=True))
    return rnnjax.TimeDistributed(eqx.nn.Sequential([first, rectify, second, rectify, last]), (1, side, side))


def convolution(inputs: int, outputs: int, key: PRNGKeyArray) -> eqx.nn.Conv2d:
    return eqx.nn.Conv2d(inputs, outputs, KERNEL, padding="SAME", key=key)


MODELS: dict[str, Callable[[int, PRNGKeyArray], rnnjax.AbstractNetwork]] = {
    "ConvLSTM": recurrent,
    "convolutions of a frame": memoryless,
}


def videos(generator: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    """Videos [count, T, 1, side, side] from 0 to 1, of images [N, size, size]; digits meet at their brighter pixels."""
    size = images.shape[-1]
    side = 2 * size + 8 * (size == 28)  # MNIST's digits move in 64 x 64
    frames = np.zeros((count, T, 1, side, side), np.float32)
    for video in frames:
        for image in images[generator.integers(len(images), size=DIGITS)]:
            for frame, (row, column) in zip(video[:, 0], path(generator, side - size, SPEED * side), strict=True):
                place = frame[row : row + size, column : column + size]
                np.maximum(place, image, out=place)
    return frames


def path(generator: np.random.Generator, room: int, speed: float) -> np.ndarray:
    """The position of a digit at every step, [T, 2] from 0 to `room`: it moves straight and is reflected at walls."""
    angle = generator.uniform(0, 2 * np.pi)
    velocity = speed * np.asarray([np.sin(angle), np.cos(angle)])
    unbounded = generator.uniform(0, room, 2) + np.arange(T)[:, None] * velocity
    return np.rint(room - np.abs(unbounded % (2 * room) - room)).astype(int)


def predict(network: rnnjax.AbstractNetwork, video: Array) -> Array:
    """Logits of the frames of a video from `SEEN` on, each from those before it."""
    return rnnjax.unroll(network, None, video[:-1])[1][SEEN - 1 :]


def loss(network: rnnjax.AbstractNetwork, carry: None, batch: Array, key: Any) -> tuple[Array, None]:
    """Cross-entropy in nats per pixel: grey levels are used as probabilities, as in the literature."""
    del key
    logits = jax.vmap(lambda video: predict(network, video))(batch)
    return optax.sigmoid_binary_cross_entropy(logits, batch[:, SEEN:]).mean(), carry


parse = command_line(
    __doc__,
    minutes_option(4.0, "all models together"),
    SEED,
    picture_option("predicted frames"),
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each model: its errors on videos of digits that it was not trained on."""
    training, test, name = read_digits()
    size = round(training.xs.shape[1] ** 0.5)
    images, unseen = (np.asarray(digits.xs).reshape(-1, size, size) for digits in (training, test))
    judged = jnp.asarray(videos(np.random.default_rng((options.seed, 0)), unseen, JUDGED))
    again = jnp.mean((judged[:, SEEN - 1 : -1] - judged[:, SEEN:]) ** 2)
    print(f"{DIGITS} of {name} in {judged.shape[-1]} x {judged.shape[-1]}; the last frame again: error {again:.4f}")
    shown = {}
    for model, make in MODELS.items():
        network, steps = train(make(judged.shape[-1], jax.random.key(options.seed)), images, options)
        nats, frames, error = judge(network, judged)
        shown[model] = np.asarray(frames)
        weights = rnnjax.diagnose.count(network)
        print(f"{model}, {weights} weights, {steps} steps: error {error:.4f}, {nats:.4f} nats a pixel")
        record = {"task": f"moving {name}", "model": model, "seed": options.seed, "steps": steps}
        yield record | {"error": float(error), "nats": float(nats), "again": float(again)}
    if options.picture is not None:
        draw(np.asarray(judged[0, SEEN:, 0]), shown, options.picture)


def train(network: rnnjax.AbstractNetwork, images: np.ndarray, options: argparse.Namespace) -> tuple[Any, int]:
    """The network after its share of the minutes, and the number of steps; no video is used twice."""
    batches = lambda step: videos(np.random.default_rng((options.seed, 1, step)), images, B)  # noqa: E731
    steps = count_steps(network, loss, batches, options.minutes / len(MODELS))
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return rnnjax.training.fit(network, loss, batches, rule, steps=steps, key=jax.random.key(options.seed)).model, steps


@eqx.filter_jit
def judge(network: rnnjax.AbstractNetwork, judged: Array) -> tuple[Array, Array, Array]:
    """Nats a pixel, the frames predicted of the first video, and the squared error a pixel."""
    frames = jax.nn.sigmoid(jax.vmap(lambda video: predict(network, video))(judged))
    return loss(network, None, judged, None)[0], frames[0, :, 0], jnp.mean((frames - judged[:, SEEN:]) ** 2)


def draw(truth: np.ndarray, shown: dict[str, np.ndarray], picture: Path) -> None:
    """A row of the true frames, and below it a row of each model's predictions."""
    rows = {"what came": truth} | shown
    figure = Figure(figsize=(len(truth), 1.2 * len(rows)), layout="constrained")
    axes: Any = figure.subplots(len(rows), len(truth))
    for line, (name, frames) in zip(axes, rows.items(), strict=True):
        line[0].set_title(name, loc="left", fontsize=9)
        for axis, frame in zip(line, frames, strict=True):
            axis.imshow(frame, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    save(figure, picture)


if __name__ == "__main__":
    main(parse, run)
