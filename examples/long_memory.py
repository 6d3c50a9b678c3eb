"""Memory over thousands of steps: linear cells, parallel in time, compared with LSTMs in the same training time.

    python examples/long_memory.py --minutes 10
    python examples/long_memory.py --task adding --lengths 5000 --models min_gru lstm

Each model trains for the same number of minutes, from one seed, on the tasks of `memory_tasks`. The LSTMs have the
width of the linear cells' layers, or four times that; their biases are drawn for memories of up to T steps (Tallec &
Ollivier 2018, arXiv:1804.11188); they run by `Scan` and by `Fused`.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.blocks import gated_block, optimiser
from common.command_line import SEED, command_line, main, minutes_option, option
from common.memory_tasks import TASKS, Task
from common.training import count_steps, temporary_folder
from jaxtyping import Array, PRNGKeyArray

import rnnjax

B, WIDTH, UNITS, BLOCKS = 16, 32, 128, 2
LEARNING_RATE, REPORTS = 5e-3, 40

Layers = list[rnnjax.AbstractCell | rnnjax.AbstractNetwork]


def lru(T: int, keys: PRNGKeyArray) -> Layers:
    """Units with memories of T / 10 to 10 T steps."""
    return deep(lambda key: rnnjax.LRU(WIDTH, UNITS, r_min=1 - 10 / T, r_max=1 - 0.1 / T, key=key), keys)


def min_gru(T: int, keys: PRNGKeyArray) -> Layers:
    """Gates whose initial memory is up to T steps."""
    bias = rnnjax.initialise.chrono(T)
    return deep(lambda key: rnnjax.MinGRU(WIDTH, WIDTH, bias_initialiser=bias, key=key), keys)


def deep(make_cell: Callable[[PRNGKeyArray], rnnjax.AbstractCell], keys: PRNGKeyArray) -> Layers:
    """A block for each key, and a normalisation at the end."""
    pairs = [jax.random.split(key) for key in keys]
    norm = rnnjax.TimeDistributed(eqx.nn.LayerNorm(WIDTH), WIDTH)
    return [*(gated_block(make_cell(pair[0]), WIDTH, pair[1]) for pair in pairs), norm]


def lstm(T: int, keys: PRNGKeyArray) -> Layers:
    return [rnnjax.LSTM(WIDTH, WIDTH, bias_initialiser=rnnjax.initialise.chrono(T), key=keys[0])]


def wide_lstm(T: int, keys: PRNGKeyArray) -> Layers:
    return [rnnjax.LSTM(WIDTH, UNITS, bias_initialiser=rnnjax.initialise.chrono(T), key=keys[0])]


def elman(T: int, keys: PRNGKeyArray) -> Layers:
    """Without gates: for any T here its gradient vanishes."""
    del T
    return [rnnjax.Elman(WIDTH, WIDTH, key=keys[0])]


class Model(NamedTuple):
    """Layers, by the longest memory they will need; the size of what they put out; and how they are run."""

    layers: Callable[[int, PRNGKeyArray], Layers]
    outputs: int
    engine: rnnjax.AbstractEngine


MODELS = {
    "lru": Model(lru, WIDTH, rnnjax.Auto()),
    "min_gru": Model(min_gru, WIDTH, rnnjax.Auto()),
    "lstm": Model(lstm, WIDTH, rnnjax.Scan()),
    "wide_lstm": Model(wide_lstm, UNITS, rnnjax.Scan()),
    "lstm_fused": Model(lstm, WIDTH, rnnjax.Fused()),
    "elman_fused": Model(elman, WIDTH, rnnjax.Fused()),
    "wide_lstm_fused": Model(wide_lstm, UNITS, rnnjax.Fused()),
}


class Reader(eqx.Module):
    """A linear map of the inputs, a network, and a linear map of its outputs."""

    encoder: Array
    network: rnnjax.Stack
    decoder: Array

    def __init__(self, task: Task, model: Model, T: int, key: PRNGKeyArray):
        keys = jax.random.split(key, BLOCKS + 2)
        self.encoder = rnnjax.initialise.lecun(keys[0], (task.inputs, WIDTH), jnp.float32)
        self.network = rnnjax.Stack(model.layers(T, keys[2:]))
        self.decoder = rnnjax.initialise.lecun(keys[1], (model.outputs, task.outputs), jnp.float32)

    def __call__(self, xs: Array, engine: rnnjax.AbstractEngine) -> Array:
        _, ys = rnnjax.unroll(self.network, None, xs @ self.encoder, engine=engine)
        return ys @ self.decoder


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each model on each task, as it ends."""
    for name in options.task:
        for T in options.lengths:
            for model in options.models:
                record = train(name, T, model, options.minutes, options.seed)
                print(
                    f"{name}, T = {T}, {model}: {record['loss']:.4f} after {record['seconds']:.0f} s; "
                    f"of one who remembers nothing {record['ignorance']:.4f}",
                    flush=True,
                )
                yield record


parse = command_line(
    __doc__,
    option("--task", nargs="+", choices=TASKS, default=list(TASKS), help="default: all"),
    option("--lengths", nargs="+", type=int, default=[1000], help="T of the task (1000)"),
    option("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all"),
    minutes_option(5.0, "each model, by the time of a few steps once compiled"),
    SEED,
)


def train(name: str, T: int, model_name: str, minutes: float, seed: int) -> dict[str, Any]:
    """The curve of one model on one task."""
    task, model = TASKS[name], MODELS[model_name]
    begin = Reader(task, model, T, jax.random.key(seed))

    def loss(reader: Reader, carry: None, batch: tuple[Array, Array], key: Array) -> tuple[Array, None]:
        del key
        ys = jax.vmap(lambda xs: reader(xs, model.engine))(batch[0])
        return jax.vmap(task.loss)(ys, batch[1]).mean(), carry

    batches = lambda step: task.batch(np.random.default_rng((T, step, seed)), B, T)  # noqa: E731
    counted = count_steps(begin, loss, batches, minutes)
    every = -(-counted // REPORTS)
    steps = -(-counted // every) * every
    rule = optimiser(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(20, steps // 10), steps))
    with temporary_folder() as folder:
        rnnjax.training.fit(
            begin, loss, batches, rule, steps=steps, key=jax.random.key(seed + 1), every=every, folder=folder
        )
        curve = [[line["seconds"], line["loss"]] for line in rnnjax.training.read_metrics(folder / "metrics.jsonl")]
    return {
        "task": name,
        "T": T,
        "model": model_name,
        "seed": seed,
        "engine": repr(model.engine),
        "B": B,
        "weights": rnnjax.diagnose.count(begin),
        "steps": steps,
        "ignorance": task.ignorance,
        "loss": curve[-1][1],
        "seconds": curve[-1][0],
        "curve": curve,
    }


if __name__ == "__main__":
    main(parse, run)
