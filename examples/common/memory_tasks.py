"""Tasks that cannot be done without memory of thousands of steps: adding and copying."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Array

SYMBOLS, COPIED = 8, 10


class Task(NamedTuple):
    """`batch` makes B sequences of a length; `loss` is of the outputs over time, of one sequence."""

    inputs: int
    outputs: int
    batch: Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
    loss: Callable[[Array, Array], Array]
    ignorance: float  # the loss of what knows the task and has no memory


def adding(generator: np.random.Generator, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers of a sequence are marked, their sum is to be told at its end (Hochreiter & Schmidhuber 1997).

    Numbers and marks [B, T, 2], and the sums [B].
    """
    marks = np.zeros((B, T), np.float32)
    for row in marks:
        row[generator.choice(T, 2, replace=False)] = 1
    numbers = generator.random((B, T), np.float32)
    return np.stack([numbers, marks], -1), (numbers * marks).sum(-1)


def copying(generator: np.random.Generator, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten of eight symbols are to be repeated after T - 1 blanks (Arjovsky et al. 2016, arXiv:1511.06464).

    One-hot symbols [B, T + 20, 10], of which the last two are the blank and the call to repeat, which goes on for as
    long as it is answered (Bai et al. 2018, arXiv:1803.01271); and what to repeat [B, 10].
    """
    symbols = generator.integers(0, SYMBOLS, (B, COPIED))
    blanks, calls = np.full((B, T - 1), SYMBOLS), np.full((B, COPIED + 1), SYMBOLS + 1)
    sequence = np.concatenate([symbols, blanks, calls], 1)
    return np.eye(SYMBOLS + 2, dtype=np.float32)[sequence], symbols


def squared_error(ys: Array, target: Array) -> Array:
    return (ys[-1, 0] - target) ** 2


def cross_entropy(ys: Array, target: Array) -> Array:
    """Nats a symbol."""
    return optax.softmax_cross_entropy_with_integer_labels(ys[-COPIED:], target).mean()


TASKS = {
    "adding": Task(2, 1, adding, squared_error, 1 / 6),
    "copy": Task(SYMBOLS + 2, SYMBOLS, copying, cross_entropy, math.log(SYMBOLS)),
}
