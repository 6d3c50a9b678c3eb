"""A spiking neuron: predict each next value of the FitzHugh-Nagumo system, by LEM and by an LSTM.

    python examples/fitzhugh_nagumo.py --cell lem

The system has a fast and a slow variable, for which long expressive memory is designed (Rusch et al. 2022,
arXiv:2110.04744, section 5).

    v' = v - v^3 / 3 - w + 0.5,        w' = (v + 0.7 - 0.8 w) / 50,        v_0 in [-1, 1] at random, w_0 = 0
"""

import argparse
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from common.command_line import LOSSES, SEED, choice, command_line, epochs_option, main
from common.training import constant_then_linear, fit
from jaxtyping import Array
from scipy.integrate import solve_ivp

import rnnjax

B, T, END, UNITS = 16, 1000, 400.0, 16
COUNTS = (128, 128, 1024)  # to train on, to choose by, to test on
CELLS = {"lem": rnnjax.LEM, "lstm": rnnjax.LSTM, "gru": rnnjax.GRU}
LEARNING_RATE = 2e-2
PUBLISHED = {"lem": 0.0024, "lstm": 0.012}


parse = command_line(
    __doc__,
    choice("--cell", CELLS, "lem"),
    epochs_option(400),
    SEED,
    LOSSES,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of the network with the best validation error."""
    training, held_out, test = read(COUNTS)
    keys = jax.random.split(jax.random.key(options.seed), 3)
    cell = CELLS[options.cell](1, UNITS, key=keys[0])
    epoch = len(training.xs) // B
    steps = options.epochs * epoch
    fitted = fit(
        rnnjax.models.Tagger(cell, eqx.nn.Linear(UNITS, 1, key=keys[1])),
        loss,
        rnnjax.training.minibatches(training, B, seed=options.seed),
        optax.adam(constant_then_linear(LEARNING_RATE, steps)),
        steps=steps,
        key=keys[2],
        validate=lambda model: root_mean_square(model, held_out),
        every=5 * epoch,
        picture=options.picture,
    )
    error = float(root_mean_square(fitted.model, test))
    same = float(np.sqrt(np.mean((test.xs - test.targets) ** 2)))
    beside = f"; published: {PUBLISHED[options.cell]}" if options.cell in PUBLISHED else ""
    print(f"FitzHugh-Nagumo, {options.cell}: error {error:.5f}, root mean square; of the last value {same:.5f}{beside}")
    weights = rnnjax.diagnose.count(fitted.model)
    yield {"task": "FitzHugh-Nagumo", "cell": options.cell, "seed": options.seed, "test": error, "weights": weights}


loss = partial(rnnjax.models.tagger_loss, objective=rnnjax.models.squared_error)


@eqx.filter_jit
def root_mean_square(model: rnnjax.models.Tagger, trajectories: rnnjax.models.Sequences) -> Array:
    """The error over all steps."""
    return loss(model, None, trajectories, None)[0] ** 0.5


@lru_cache
def read(counts: tuple[int, ...]) -> list[rnnjax.models.Sequences]:
    """Sets of trajectories, each value and the next; independent of the network's seed."""
    random = np.random.default_rng(0)
    sets = [np.stack([simulate(2 * random.random() - 1) for _ in range(count)]) for count in counts]
    return [rnnjax.models.Sequences(values[:, :-1, None], values[:, 1:, None]) for values in sets]


def simulate(v: float) -> np.ndarray:
    """T + 1 values of v, by Runge-Kutta of order 4 and 5 with SciPy's own tolerances, as in the paper's code."""

    def derivative(_: float, state: np.ndarray) -> list[float]:
        v, w = state
        return [v - v**3 / 3 - w + 0.5, (v + 0.7 - 0.8 * w) / 50]

    solved = solve_ivp(derivative, (0.0, END), [v, 0.0], t_eval=np.linspace(0, END, T + 1))
    return solved.y[0].astype(np.float32)


if __name__ == "__main__":
    main(parse, run)
