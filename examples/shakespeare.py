"""Tiny Shakespeare by the recipe of "Were RNNs all we needed?" (Feng et al. 2024, arXiv:2410.01201), for any mixer.

    RNNJAX_DATA=folder python examples/shakespeare.py --minutes 60
    python examples/shakespeare.py --mixer min_lstm --width 128 --minutes 5
    RNNJAX_DATA=folder python examples/shakespeare.py --mixer gated_deltanet --minutes 120 --folder runs/gated_deltanet

RNNJAX_DATA is a folder with tinyshakespeare/input.txt, which is
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt. Without it the manual that
comes with Python is used. Nine tenths are for training. The loss of the last tenth is shown beside the published one:
1.548 nats per character for minGRU after 575 steps, 1.555 for minLSTM after 625, and 1.575 for Mamba after 400.

The sizes of batch, sequences and layers, the dropout, the clipping, the learning rate and the order of the layers of a
block are those of the paper. The normalisation before each layer, the depthwise convolution, the tied output and the
weight decay are chosen here. MinGRU and MinLSTM have a convolution before them and twice the width; the other mixers,
those of common/mixers.py, have heads of 64 units, and a convolution only if their papers do; `rwkv6` and `rwkv7` are
the time mixings alone, without the channel mixing and the initial values that depend on the depth.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import FOLDER, RESUME, choice, command_line, main, minutes_option, option
from common.mixers import MIXERS
from common.text import SHAKESPEARE, read_corpus
from common.training import count_steps, temporary_folder
from jaxtyping import Array, PRNGKeyArray

import rnnjax

B, T, BLOCKS, WINDOW, EXPANSION = 64, 256, 3, 4, 2
DROPOUT, CLIP, LEARNING_RATE, DECAY, EVERY = 0.2, 0.25, 1e-3, 0.01, 25
CELLS = {"min_gru": rnnjax.MinGRU, "min_lstm": rnnjax.MinLSTM}
HEAD = 64  # the width of a head of the other mixers
PUBLISHED = {"min_gru": (1.548, 575), "min_lstm": (1.555, 625), "mamba": (1.575, 400)}


def layer(size: int, *functions: Any) -> Any:
    """`functions`, one after the other, at every step."""
    return rnnjax.TimeDistributed(eqx.nn.Sequential([eqx.nn.Lambda(each) for each in functions]), size)


def beside(width: int, *parts: Any) -> rnnjax.AbstractNetwork:
    """Layers with a normalisation before, dropout after, and a residual connection around each."""
    inner = rnnjax.Stack([rnnjax.TimeDistributed(eqx.nn.RMSNorm(width), width), *parts])
    return rnnjax.residual(rnnjax.Stack([inner, layer(width, jax.nn.identity)], dropout=DROPOUT))


def block(name: str, width: int, key: PRNGKeyArray) -> rnnjax.AbstractNetwork:
    """The layers of a mixer, and a perceptron."""
    keys = jax.random.split(key, 5)
    mixer = (
        minimal(name, width, keys) if name in CELLS else [beside(width, MIXERS[name](width, width // HEAD, keys[1]))]
    )
    up, down = eqx.nn.Linear(width, 4 * width, key=keys[3]), eqx.nn.Linear(4 * width, width, key=keys[4])
    return rnnjax.Stack([*mixer, beside(width, layer(width, up, jax.nn.gelu, down))])


def minimal(name: str, width: int, keys: PRNGKeyArray) -> list[rnnjax.AbstractNetwork]:
    """A convolution over four steps, and a minimal recurrence of twice the width."""
    wide = EXPANSION * width
    cell = CELLS[name](width, wide, activation=rnnjax.cells.positive, key=keys[1])
    narrow = eqx.nn.Linear(wide, width, use_bias=False, key=keys[2])
    convolution = rnnjax.networks.DepthwiseConvolution(width, window=WINDOW, key=keys[0])
    return [beside(width, convolution), beside(width, cell, layer(wide, narrow))]


def build(name: str, width: int, vocabulary: int) -> rnnjax.models.LanguageModel:
    """The model, as drawn."""
    keys = jax.random.split(jax.random.key(0), BLOCKS + 1)
    norm = rnnjax.TimeDistributed(eqx.nn.RMSNorm(width), width)
    network = rnnjax.Stack([*(block(name, width, key) for key in keys[1:]), norm])
    return rnnjax.models.LanguageModel(vocabulary, network, key=keys[0], tied=True)


def draw(tokens: np.ndarray, seed: int, step: int) -> rnnjax.training.Chunk:
    """B pieces from random positions, each from the initial state."""
    starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - T - 1, B)
    where = starts[:, None] + np.arange(T)
    return rnnjax.training.Chunk(tokens[where], tokens[where + 1], np.zeros((B, T), bool))


def pieces(tokens: np.ndarray) -> list[rnnjax.training.Chunk]:
    """A text without an incomplete last piece, in batches of up to B pieces."""
    whole = (len(tokens) - 1) // T * T
    rows = tokens[:whole].reshape(-1, T), tokens[1 : whole + 1].reshape(-1, T)
    batches = [[part[at : at + B] for part in rows] for at in range(0, len(rows[0]), B)]
    return [rnnjax.training.Chunk(inputs, targets, np.zeros(inputs.shape, bool)) for inputs, targets in batches]


def loss(model: rnnjax.models.LanguageModel, carry: None, chunk: rnnjax.training.Chunk, key: Any) -> tuple[Array, None]:
    """Nats a character."""
    states = rnnjax.models.batch_of_states(model, chunk.inputs.shape[0])
    return rnnjax.models.language_loss(model, states, chunk, key)[0], carry


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a model that was trained for some minutes."""
    text, name = read_corpus()
    vocabulary = "".join(sorted(set(text)))
    tokens = np.asarray([vocabulary.index(character) for character in text], np.int32)
    training, held_out = np.split(tokens, [len(tokens) * 9 // 10])
    if options.folder is not None:
        curve = train(options, len(vocabulary), training, held_out, options.folder)
    else:
        with temporary_folder() as folder:
            curve = train(options, len(vocabulary), training, held_out, folder)
    best, at = min((loss, step) for step, loss, *_ in curve)
    print(f"{options.mixer}-{options.width} on {name}: {best:.3f} nats after {at} steps")
    record = {
        "task": name,
        "mixer": options.mixer,
        "width": options.width,
        "B": B,
        "T": T,
        "best": best,
        "curve": curve,
    }
    if name == SHAKESPEARE and options.mixer in PUBLISHED:
        record["published"], record["published_steps"] = PUBLISHED[options.mixer]
        print("published: {} nats after {} steps of width 384".format(*PUBLISHED[options.mixer]))
    yield record


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """The folder holds a run exactly if that is to be resumed, and heads fill the width."""
    if options.mixer not in CELLS and options.width % HEAD:
        parser.error(f"--width: expected a multiple of {HEAD} for {options.mixer}, got {options.width}")
    held = options.folder is not None and (options.folder / "checkpoint").exists()
    if options.resume and not held:
        parser.error(f"--resume: expected a run in --folder, found none in {options.folder}")
    if held and not options.resume:
        parser.error(f"--folder: {options.folder} holds a run. Add --resume to go on with it, or name another folder")


parse = command_line(
    __doc__,
    choice("--mixer", {**CELLS, **MIXERS}, "min_gru"),
    option("--width", type=int, default=384, help="of the layers (%(default)s)"),
    minutes_option(60.0, "those before --resume included"),
    FOLDER,
    RESUME,
    check=check_options,
)


def train(
    options: argparse.Namespace, vocabulary: int, training: np.ndarray, held_out: np.ndarray, folder: Path
) -> list[tuple[float, ...]]:
    """Steps, validation loss and training loss in nats, and seconds since the run began or was resumed."""
    model, batches = build(options.mixer, options.width, vocabulary), partial(draw, training, 0)
    steps = count_steps(model, loss, batches, options.minutes)
    print(f"{rnnjax.diagnose.count(model)} weights; {steps} steps take about {options.minutes:g} minutes", flush=True)
    is_matrix = lambda weights: jax.tree.map(lambda leaf: leaf.ndim > 1, weights)  # noqa: E731
    decaying = None if options.mixer in CELLS else is_matrix  # mixers have rates and norms that should not decay
    adamw = optax.adamw(LEARNING_RATE, weight_decay=DECAY, mask=decaying)
    rule = optax.chain(optax.clip_by_global_norm(CLIP), adamw)
    judge = eqx.filter_jit(lambda model, chunk: loss(model, None, chunk, None)[0])
    chunks = pieces(held_out)

    def validate(model: rnnjax.models.LanguageModel) -> float:
        losses = [float(judge(model, jax.tree.map(jnp.asarray, chunk))) for chunk in chunks]
        return float(np.average(losses, weights=[len(chunk.inputs) for chunk in chunks]))

    key = jax.random.key(1)
    go_on = {"validate": validate, "every": EVERY, "folder": folder, "resume": options.resume}
    rnnjax.training.fit(model, loss, batches, rule, steps=steps, key=key, **go_on)
    names = ("step", "validation", "loss", "seconds")
    return [tuple(line[name] for name in names) for line in rnnjax.training.read_metrics(folder / "metrics.jsonl")]


if __name__ == "__main__":
    main(parse, run)
