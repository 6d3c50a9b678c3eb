"""How far back gradients reach: four cells on the adding problem, before and after training; a figure and a report.

    python examples/gradient_flow.py
    python examples/gradient_flow.py --length 200 --steps 3000 --picture flow.png

The figure shows the norm of the gradient of the squared error at the end by earlier states, relative to that by the
last state.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import command_line, option, steps_option
from common.memory_tasks import adding, squared_error
from common.pictures import save
from jaxtyping import Array
from matplotlib.figure import Figure

import rnnjax
from rnnjax.diagnose.plot import draw_gradient_by_lag

B, UNITS, LEARNING_RATE, JUDGED = 64, 32, 5e-3, 64
KEY = jax.random.key(0)


class Adder(eqx.Module):
    """A cell, and a linear map of its outputs."""

    cell: rnnjax.AbstractCell
    head: Array

    def loss(self, ys: Array, target: Array) -> Array:
        return squared_error(ys @ self.head, target)


CELLS = {
    "Elman": lambda _: rnnjax.Elman(2, UNITS, key=KEY),
    "LSTM": lambda T: rnnjax.LSTM(2, UNITS, bias_initialiser=rnnjax.initialise.chrono(T), key=KEY),
    "GRU": lambda T: rnnjax.GRU(2, UNITS, bias_initialiser=rnnjax.initialise.chrono(T), key=KEY),
    "linear": lambda T: rnnjax.LinearRNN(
        2, UNITS, decay_initialiser=rnnjax.initialise.time_constants(1.0, float(T)), key=KEY
    ),
}


class Flow(NamedTuple):
    """The results for one network: the mean gradient by lag of many sequences, the error, and the report on one."""

    gradient: np.ndarray
    error: float
    report: rnnjax.diagnose.Report


parse = command_line(
    __doc__,
    option("--length", type=int, default=100, help="T of the task (%(default)s)"),
    steps_option(1500),
    option("--picture", type=Path, default=Path("runs/gradient_flow.png"), metavar="FILE", help="default: %(default)s"),
)


def run(options: argparse.Namespace) -> dict[str, tuple[Flow, Flow]]:
    """Train each cell; print the reports, draw the figure, and return the results before and after training."""
    T, seen = options.length, {}
    for name, make in CELLS.items():
        drawn = Adder(make(T), rnnjax.initialise.lecun(KEY, (UNITS, 1), jnp.float32))
        seen[name] = look(drawn, T), look(train(drawn, T, options.steps), T)
        for when, flow in zip(("before", "after"), seen[name], strict=True):
            print(f"{when} training, error {flow.error:.4f} (without memory {1 / 6:.3f}); {flow.report}", flush=True)
    draw(seen, T, options.picture)
    return seen


def train(adder: Adder, T: int, steps: int) -> Adder:
    def loss(adder: Adder, carry: None, batch: tuple[Array, Array], key: Array) -> tuple[Array, None]:
        del key
        ys = jax.vmap(lambda xs: rnnjax.unroll(adder.cell, None, xs)[1])(batch[0])
        return jax.vmap(adder.loss)(ys, batch[1]).mean(), carry

    batches = lambda step: adding(np.random.default_rng((T, step)), B, T)  # noqa: E731
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    return rnnjax.training.fit(adder, loss, batches, rule, steps=steps, key=KEY).model


@eqx.filter_jit
def measure(adder: Adder, xs: Array, sums: Array) -> tuple[Array, Array]:
    """Gradients by lag and errors of sequences [B, T, 2]."""

    def one(xs: Array, total: Array) -> tuple[Array, Array]:
        loss = lambda last, ys: adder.loss(ys, total)  # noqa: ARG005, E731
        return rnnjax.diagnose.gradient_by_lag(loss, adder.cell, None, xs), loss(*rnnjax.unroll(adder.cell, None, xs))

    return jax.vmap(one)(xs, sums)


def look(adder: Adder, T: int) -> Flow:
    xs, sums = jax.tree.map(jnp.asarray, adding(np.random.default_rng(T), JUDGED, T))
    gradients, errors = measure(adder, xs, sums)
    loss = lambda last, ys: adder.loss(ys, sums[0])  # noqa: ARG005, E731
    return Flow(
        np.asarray(gradients.mean(0)), float(errors.mean()), rnnjax.diagnose.examine(loss, adder.cell, None, xs[0])
    )


def draw(seen: dict[str, tuple[Flow, Flow]], T: int, picture: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for index, when in enumerate(("before", "after")):
        labels = {f"{name}, error {flows[index].error:.3f}": flows[index].gradient for name, flows in seen.items()}
        draw_gradient_by_lag(axes[index], labels)
        axes[index].set(title=f"{when} training on adding, T = {T}", ylim=(1e-8, 1e2))
    save(figure, picture)


if __name__ == "__main__":
    run(parse())
