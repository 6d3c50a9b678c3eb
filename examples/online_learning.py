"""Learning online: a GRU reads an endless stream of bits and repeats each one some steps later.

    python examples/online_learning.py
    python examples/online_learning.py --estimators rtrl snap1 uoro bptt --delay 8 --steps 20000
    python examples/online_learning.py --estimators rtrl snap1 eprop --layers 2
    python examples/online_learning.py --estimators rtrl --steps 1000000 --folder runs/online [--resume]

The weights are updated after every step of the stream (`--chunk 1`), and only the estimator's memory is stored. That of
RTRL includes the influence of all earlier steps, so it learns the delay. BPTT goes back over one chunk, and does not.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from common.command_line import FOLDER, RESUME, SEED, command_line, main, option, steps_option
from common.training import temporary_folder
from jaxtyping import Array

import rnnjax

UNITS, LEARNING_RATE, REPORTS, BLOCK = 16, 3e-3, 10, 1000
CHANCE = math.log(2)  # nats a bit, of a network without memory
ESTIMATORS: dict[str, rnnjax.gradients.AbstractEstimator] = {
    "rtrl": rnnjax.gradients.RTRL(),
    "snap1": rnnjax.gradients.SnAp1(),
    "eprop": rnnjax.gradients.EProp(),
    "uoro": rnnjax.gradients.UORO(),
    "bptt": rnnjax.gradients.BPTT(),
}


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check the ranges of numbers, and that a run to be resumed has a folder."""
    for name, least in {"layers": 1, "delay": 0, "chunk": 1, "steps": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    if options.resume and options.folder is None:
        parser.error("--resume: expected a --folder to resume from, got none")


parse = command_line(
    __doc__,
    option("--estimators", nargs="+", choices=ESTIMATORS, default=["rtrl", "bptt"], help="default: rtrl bptt"),
    option("--layers", type=int, default=1, help="GRUs on top of each other (%(default)s)"),
    option("--delay", type=int, default=5, help="how many steps later a bit is repeated (%(default)s)"),
    option("--chunk", type=int, default=1, help="steps of the stream between two updates (%(default)s)"),
    steps_option(10_000),
    SEED,
    FOLDER,
    RESUME,
    check=check_options,
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of each estimator: the loss of each tenth of the stream, before the update that it led to."""
    for name in options.estimators:
        kept = options.folder and options.folder / name
        with temporary_folder() if kept is None else nullcontext(kept) as folder:
            memory = learn(ESTIMATORS[name], options, folder)
            lines = rnnjax.training.read_metrics(folder / "metrics.jsonl")
        losses = {int(line["step"]): line["loss"] / options.chunk for line in lines}
        print(f"{name}, bits repeated after {options.delay} steps; chance is {CHANCE:.3f} nats a bit")
        for step, loss in losses.items():
            held = f"{memory[step]:6.1f} MB resident" if step in memory else ""
            print(f"{step:>9,} updates  {loss:.3f} nats  {100 * loss / CHANCE:5.1f} % of chance  {held}", flush=True)
        yield {"estimator": name, "delay": options.delay, "losses": losses, "memory": memory}


def learn(estimator: rnnjax.gradients.AbstractEstimator, options: argparse.Namespace, folder: Path) -> dict[int, float]:
    """Learn from the stream; returns the resident memory in MB before some of the updates, and after the last."""
    cell_key, head_key, key = jax.random.split(jax.random.key(options.seed), 3)
    every, memory = max(1, options.steps // REPORTS), {}
    batches = stream(options.seed, options.delay, options.chunk)

    def watched(step: int) -> tuple[np.ndarray, ...]:
        if step % every == 0:
            memory[step] = resident()
        return batches(step)

    if options.layers == 1:
        cell = rnnjax.GRU(1, UNITS, key=cell_key)
    else:
        cell = rnnjax.networks.layers(rnnjax.GRU, 1, [UNITS] * options.layers, key=cell_key)
    rnnjax.training.fit(
        (cell, eqx.nn.Linear(UNITS, 1, key=head_key)),
        loss,
        watched,
        optax.adam(LEARNING_RATE),
        steps=options.steps,
        key=key,
        gradient=estimator,
        every=every,
        folder=folder,
        resume=options.resume,
    )
    memory[options.steps] = resident()
    return memory


def stream(seed: int, delay: int, chunk: int) -> Callable[[int], tuple[np.ndarray, ...]]:
    """One stream in chunks: bits as -1 and 1, [1, T, 1]; those `delay` steps before, [1, T]; whether it starts, [1]."""

    @lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        return np.random.default_rng((seed, number)).integers(0, 2, BLOCK).astype(np.float32)

    def read(first: int) -> np.ndarray:
        return np.array([[block(place // BLOCK)[place % BLOCK] for place in range(first, first + chunk)]])

    def batch(step: int) -> tuple[np.ndarray, ...]:
        first = step * chunk
        return 2 * read(first + delay)[..., None] - 1, read(first), np.array([step == 0])

    return batch


def loss(head: eqx.nn.Linear, y: Array, bit: Array) -> Array:
    """Nats a bit."""
    return optax.sigmoid_binary_cross_entropy(head(y)[0], bit)


def resident() -> float:
    """The main memory that this process holds, in MB; NaN on a system that has no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if path.exists() else math.nan


if __name__ == "__main__":
    main(parse, run)
