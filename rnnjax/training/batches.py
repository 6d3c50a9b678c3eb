"""Batches as functions of the step, so that a run can be resumed at any step without any other state."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from ..arrays import PyTree
from ..exporting import exportable


def minibatches(arrays: PyTree[np.ndarray], size: int, *, seed: int) -> Callable[[int], PyTree[np.ndarray]]:
    """Shuffled minibatches of examples: each epoch is a new permutation, without an incomplete last batch.

    arrays    any pytree of arrays with the same number of examples on the first axis
    """
    leaves = jax.tree.leaves(arrays)
    if not leaves:
        raise ValueError(
            "arrays: expected at least one array, got none. Pass the arrays to take batches of, such as (xs, targets)"
        )
    examples = len(leaves[0])
    if any(len(leaf) != examples for leaf in leaves):
        raise ValueError(
            f"arrays: expected one number of examples, got {[len(leaf) for leaf in leaves]}. "
            "Pass arrays with the examples on the first axis of each"
        )
    if not 1 <= size <= examples:
        raise ValueError(
            f"size: expected a batch from 1 to the {examples} examples, got {size}. "
            "Pass the number of examples in one batch, or add examples"
        )
    per_epoch = examples // size

    @lru_cache(maxsize=1)
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(examples)

    def batch(step: int) -> PyTree[np.ndarray]:
        epoch, place = divmod(step, per_epoch)
        order = order_of(epoch)[place * size : (place + 1) * size]
        return jax.tree.map(lambda leaf: leaf[order], arrays)

    return batch


@exportable
class Chunk(NamedTuple):
    """B streams for T steps: the inputs, the next elements as targets, and whether the streams begin here."""

    inputs: np.ndarray
    targets: np.ndarray
    resets: np.ndarray


def streams(sequence: np.ndarray, size: int, chunk: int) -> Callable[[int], Chunk]:
    """The batches of truncated BPTT: `sequence` is split into `size` streams, read in chunks of `chunk` steps.

    The state after one chunk is the state before the next, except at the first step of every epoch, where `resets` is
    true. Arrays are [B, T, ...]. An incomplete last chunk is dropped.
    """
    if size < 1 or chunk < 1:
        raise ValueError(
            f"size, chunk: expected 1 or more, got {size} and {chunk}. "
            "Pass the number of sequences as size, and the steps of each as chunk"
        )
    length = (len(sequence) - 1) // size
    per_epoch = length // chunk
    if per_epoch < 1:
        raise ValueError(
            f"sequence: expected at least size * chunk + 1 = {size * chunk + 1} steps to fill one chunk, "
            f"got {len(sequence)}. "
            "Take a smaller size or chunk, or a longer sequence"
        )
    starts = np.arange(size)[:, None] * length

    def batch(step: int) -> Chunk:
        place = step % per_epoch
        where = starts + place * chunk + np.arange(chunk)
        resets = np.broadcast_to((where - starts) == 0, where.shape)
        return Chunk(sequence[where], sequence[where + 1], resets)

    return batch
