"""Decisions that depend on a context: the line attractors of a firing-rate network, and what it reads into them.

    python examples/decision.py --picture decision.png
    python examples/decision.py --constraint dale

A trial shows motion and colour, each a weak signal in noise, and a context says which of the two to sum up and to
answer by its sign (Mante, Sussillo, Shenoy & Newsome 2013, Nature 503:78). In each context the states of a trained
network lie along a line of slow points. At such a point the mode of the largest eigenvalue hardly fades: it is the
integral. Its left eigenvector, the selection vector, tells how far a pulse of motion or of colour moves the state along
the line: far if it is relevant, and hardly if it is not, though it enters the network as strongly.

Prints the share of right answers, how answers depend on motion and on colour, and for each context the slow points, the
time constants of the two largest modes, and what the selection vector reads of both inputs.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import SEED, choice, command_line, main, picture_option, steps_option
from common.pictures import save
from common.training import constant_then_linear
from matplotlib.figure import Figure

import rnnjax
from rnnjax.diagnose.plot import draw_fixed_points
from rnnjax.models import Sequences, Tagger, squared_error, tagger_loss
from rnnjax.networks import ConnectionMask, Constrained, Dale
from rnnjax.regularise import NoisyStates

B, T, UNITS, LEARNING_RATE = 64, 50, 64, 5e-3
LEAK, NOISE = 0.2, 0.1  # dt / tau, and sigma_rec
SIGNAL, SENSORY_NOISE = 0.1875, 0.5  # the strongest mean of an input, and the deviation of each step
TESTED, STARTS, SLOW = 512, 256, 3e-4  # trials; states to look from; q of a point of the line
CONTEXTS = ("motion", "colour")
CELLS = {
    "none": lambda key: rate_network(key),
    "dale": lambda key: Constrained(
        rate_network(key, activation=jax.nn.softplus), Dale(UNITS * 4 // 5), ConnectionMask(~np.eye(UNITS, dtype=bool))
    ),
    "low_rank": lambda key: rate_network(key, rank=3),
}


class Line(NamedTuple):
    """The slow points of one context, the time constants of two modes, and what is read of both inputs."""

    points: rnnjax.diagnose.FixedPoints
    slowest: float
    second: float
    relevant: float
    irrelevant: float


parse = command_line(
    __doc__,
    choice("--constraint", CELLS, "none"),
    steps_option(1000),
    SEED,
    picture_option("slow points and trajectories of both contexts"),
)


def rate_network(key: Any, **options: Any) -> rnnjax.cells.RateRNN:
    return rnnjax.cells.RateRNN(4, UNITS, leak=LEAK, key=key, **options)


def cell_of(model: Tagger) -> Any:
    """The cell of the model; of a constrained one, that of the constrained weight."""
    return model.network.cell if isinstance(model.network, Constrained) else model.network


def loss(model: Tagger, carry: None, batch: Sequences, key: Any) -> Any:
    """The squared error over time, with noise on the states."""
    deviation = (2 * LEAK) ** 0.5 * NOISE
    noisy = eqx.tree_at(lambda model: model.network, model, NoisyStates(cell_of(model), deviation))
    return tagger_loss(noisy, carry, batch, key, objective=squared_error)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of the trained network and its lines."""
    keys = jax.random.split(jax.random.key(options.seed), 3)
    model = Tagger(CELLS[options.constraint](keys[0]), eqx.nn.Linear(UNITS, 1, key=keys[1]))
    batches = lambda step: draw(np.random.default_rng((options.seed, step)), B)[0]  # noqa: E731
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(constant_then_linear(LEARNING_RATE, options.steps)))
    model = rnnjax.training.fit(model, loss, batches, rule, steps=options.steps, key=keys[2], progress=False).model
    cell = cell_of(model)
    trials, means = draw(np.random.default_rng(10_000 + options.seed), TESTED)
    (ys, states), relevant = follow(cell, trials.xs), trials.xs[:, 0, 2:].argmax(1)
    choices = np.sign(np.asarray(jax.vmap(model.head)(ys[:, -1]))[:, 0])
    right = np.sign(np.take_along_axis(means, relevant[:, None], 1)[:, 0])
    sums = trials.xs[np.arange(TESTED), :, relevant].sum(1)
    share, best = float(np.mean(choices == right)), float(np.mean(np.sign(sums) == right))
    title = f"rate network, constraint {options.constraint}, seed {options.seed}"
    print(f"{title}: {share:.1%} right answers; {best:.1%} by a perfect integral")
    lines = []
    for context, name in enumerate(CONTEXTS):
        chosen = relevant == context
        weights = np.linalg.lstsq(means[chosen] / SIGNAL, choices[chosen], rcond=None)[0]
        print(f"context {name}: the answer goes with motion by {weights[0]:.2f}, with colour by {weights[1]:.2f}")
        line = look(cell, context, rnnjax.Hidden(states.h[chosen]), options.seed)
        lines.append(line)
        print(
            f"  {len(line.points)} points; time constants {line.slowest:.0f} and {line.second:.1f} steps; "
            f"the selection vector reads {line.relevant:.2f} of the relevant input, {line.irrelevant:.2f} of the other"
        )
    if options.picture:
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        for context, (axes, line) in enumerate(zip(figure.subplots(1, 2), lines, strict=True)):
            draw_fixed_points(axes, line.points, rnnjax.Hidden(states.h[relevant == context][:60]))
            axes.set_title(f"context {CONTEXTS[context]}")
        save(figure, options.picture)
    yield {
        "task": "context-dependent decision",
        "constraint": options.constraint,
        "seed": options.seed,
        "test": share,
        "perfect": best,
        "slowest": min(line.slowest for line in lines),
        "second": max(line.second for line in lines),
        "selection": min(line.relevant / line.irrelevant for line in lines),
    }


def draw(random: np.random.Generator, trials: int) -> tuple[Sequences, np.ndarray]:
    """Inputs motion, colour and two contexts; targets: twice the relevant evidence so far, scaled, clipped to +-1."""
    means = SIGNAL * random.uniform(-1, 1, (trials, 2))
    context = random.integers(0, 2, trials)
    evidence = means[:, None] + SENSORY_NOISE * random.standard_normal((trials, T, 2))
    xs = np.concatenate([evidence, np.broadcast_to(np.eye(2)[context][:, None], (trials, T, 2))], -1)
    sums = np.cumsum(evidence[np.arange(trials), :, context], 1) / (SIGNAL * T)
    targets = np.clip(2 * sums, -1, 1)[..., None]
    return Sequences(xs.astype(np.float32), targets.astype(np.float32)), means


@eqx.filter_jit
def follow(cell: rnnjax.AbstractCell, xs: Any) -> tuple[Any, Any]:
    """Outputs and states over time."""
    return jax.vmap(lambda xs: rnnjax.unroll(rnnjax.networks.AllStates(cell), None, xs)[1])(xs)


def look(cell: rnnjax.AbstractCell, context: int, states: Any, seed: int) -> Line:
    """The slow points of one context without evidence, and the modes of the network there."""
    x = np.concatenate([np.zeros(2), np.eye(2)[context]]).astype(np.float32)
    visited = np.asarray(states.h).reshape(-1, UNITS)
    starts = rnnjax.Hidden(jnp.asarray(visited[np.random.default_rng(seed).choice(len(visited), STARTS)]))
    points = rnnjax.diagnose.fixed_points(cell, x, starts, slow=SLOW)
    if not len(points):
        raise ValueError(f"no point with q <= SLOW = {SLOW} from STARTS = {STARTS} states. Raise SLOW, or train longer")
    linear = jax.jit(jax.vmap(partial(rnnjax.diagnose.linearise, cell, x)))(points.states)
    constants, read = [], []
    for number in range(len(points)):
        each = jax.tree.map(lambda leaf, number=number: leaf[number], linear)
        modes = each.modes
        with np.errstate(divide="ignore"):
            constants.append(1 / np.abs(np.log(np.abs(modes.eigenvalues[:2]))))
        inputs = np.asarray(each.by_input)[:, :2]
        read.append(np.abs(modes.left[0] @ inputs) / np.linalg.norm(modes.left[0]) / np.linalg.norm(inputs, axis=0))
    slowest, second = np.median(constants, 0)
    relevant, irrelevant = np.median(read, 0)[[context, 1 - context]]
    return Line(points, float(slowest), float(second), float(relevant), float(irrelevant))


if __name__ == "__main__":
    main(parse, run)
