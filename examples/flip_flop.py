"""A memory of three bits: the fixed points of a network that is trained to flip and to hold them.

    python examples/flip_flop.py --picture flip_flop.png
    python examples/flip_flop.py --cell lstm

Each of three inputs is now and then 1 or -1, and each of three outputs is the last of its input's pulses. Sussillo &
Barak 2013, "Opening the black box" (Neural Computation 25:626), find eight stable points, one for each memory, and
between them saddles, through which states pass when a bit flips.

Prints the memories with exactly one stable point, the table of all points, and how far the largest eigenvalues are from
those of Jacobians by finite differences, both in double precision.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import SEED, choice, command_line, main, picture_option, steps_option
from common.pictures import save
from common.training import constant_then_linear
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import rnnjax
from rnnjax.diagnose.plot import draw_fixed_points
from rnnjax.models import Sequences, Tagger, squared_error, tagger_loss

BITS, PULSES, B, T, UNITS, LEARNING_RATE = 3, 0.1, 64, 64, 64, 5e-3
TRAJECTORIES, STARTS = 64, 512
CELLS = {
    "gru": rnnjax.GRU,
    "lstm": rnnjax.LSTM,
    "elman": rnnjax.Elman,
    "rate": partial(rnnjax.cells.RateRNN, leak=0.5),
}
loss = partial(tagger_loss, objective=squared_error)

parse = command_line(
    __doc__, choice("--cell", CELLS, "gru"), steps_option(1000), SEED, picture_option("points and trajectories")
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of the trained network and its points."""
    keys = jax.random.split(jax.random.key(options.seed), 3)
    model = Tagger(CELLS[options.cell](BITS, UNITS, key=keys[0]), eqx.nn.Linear(UNITS, BITS, key=keys[1]))
    batches = lambda step: draw(np.random.default_rng((options.seed, step)), B)  # noqa: E731
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(constant_then_linear(LEARNING_RATE, options.steps)))
    model = rnnjax.training.fit(model, loss, batches, rule, steps=options.steps, key=keys[2], progress=False).model
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, model)
        states, share = follow(double, draw(np.random.default_rng(10_000 + options.seed), TRAJECTORIES))
        starts = between(states, np.random.default_rng(options.seed))
        points = rnnjax.diagnose.fixed_points(double.network, np.zeros(BITS), starts)
        held = memories(double, points)
        differs = largest_difference(double.network, points)
    print(f"{options.cell}, seed {options.seed}: {share:.2%} of the bits are right")
    print(f"{held} of {2**BITS} memories are held by exactly one stable point")
    print(points)
    print(f"largest eigenvalues differ from those by finite differences by at most {differs:.1e}")
    if options.picture:
        figure = Figure(figsize=(7, 6), layout="constrained")
        draw_fixed_points(figure.add_subplot(projection="3d"), points, states)
        save(figure, options.picture)
    yield {
        "task": "flip-flop",
        "cell": options.cell,
        "seed": options.seed,
        "test": held,
        "bits": share,
        "stable": points.kinds.count("stable"),
        "saddles": points.kinds.count("saddle"),
        "eigenvalue_difference": differs,
    }


def draw(random: np.random.Generator, sequences: int) -> Sequences:
    """Pulses and the bits that they leave; the first step sets all bits."""
    pulses = np.where(random.random((sequences, T, BITS)) < PULSES, random.choice([-1.0, 1.0], (sequences, T, BITS)), 0)
    pulses[:, 0] = random.choice([-1.0, 1.0], (sequences, BITS))
    last = np.maximum.accumulate(np.where(pulses != 0, np.arange(T)[:, None], 0), axis=1)
    return Sequences(pulses.astype(np.float32), np.take_along_axis(pulses, last, 1).astype(np.float32))


def follow(model: Tagger, sequences: Sequences) -> tuple[Any, float]:
    """The states over time of each sequence, and the share of bits whose sign is right."""

    @eqx.filter_jit
    def states_and_answers(model: Any, xs: Any) -> tuple[Any, Any]:
        ys, states = jax.vmap(lambda xs: rnnjax.unroll(rnnjax.networks.AllStates(model.network), None, xs)[1])(xs)
        return states, jax.vmap(jax.vmap(model.head))(ys)

    states, answers = states_and_answers(model, jnp.asarray(sequences.xs, float))
    return states, float(np.mean(np.sign(answers) == sequences.targets))


def between(states: Any, random: np.random.Generator) -> Any:
    """Starts at and between states that were visited: the points that separate two memories are between them."""
    visits = jax.tree.leaves(states)[0].shape[:2]
    pairs = random.integers(0, visits[0] * visits[1], (2, STARTS))
    shares = np.where(np.arange(STARTS) < STARTS // 4, 0.0, random.random(STARTS))

    def mix(leaf: Any) -> Any:
        ends = np.asarray(leaf).reshape(-1, *leaf.shape[2:])[pairs]
        return ends[0] + shares[:, None] * (ends[1] - ends[0])

    return jax.tree.map(mix, states)


def memories(model: Tagger, points: rnnjax.diagnose.FixedPoints) -> int:
    """How many of the eight memories are the signs of the answers at one stable point and at no other."""
    stable = points.of_kind("stable")
    if len(jax.tree.leaves(stable)[0]) == 0:
        return 0
    cell: Any = model.network
    answers = jax.vmap(lambda state: model.head(cell.hidden(state)))(stable)
    _, counts = np.unique(np.sign(answers), axis=0, return_counts=True)
    return int((counts == 1).sum())


def largest_difference(cell: rnnjax.AbstractCell, points: rnnjax.diagnose.FixedPoints, change: float = 1e-5) -> float:
    """Between the largest modulus of an eigenvalue at each point, and that of central differences; NaN of no point."""
    if not len(points):
        return float("nan")
    u = cell.project(jnp.zeros((1, BITS)))[0]
    state = jax.tree.map(lambda leaf: leaf[0], points.states)
    _, unpack = ravel_pytree(state)
    step = jax.jit(jax.vmap(lambda vector: ravel_pytree(cell.step(unpack(vector), u))[0]))
    differences = []
    for number, eigenvalues in enumerate(points.eigenvalues):
        vector, _ = ravel_pytree(jax.tree.map(lambda leaf, number=number: leaf[number], points.states))
        changes = change * np.eye(len(eigenvalues))
        slopes = (step(vector + changes) - step(vector - changes)).T / (2 * change)
        differences.append(abs(np.abs(np.linalg.eigvals(slopes)).max() - abs(eigenvalues[0])))
    return float(max(differences))


if __name__ == "__main__":
    main(parse, run)
