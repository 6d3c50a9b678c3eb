"""Batches of examples of similar length, so that there is little padding and few shapes are compiled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from ..check import show
from ..checked import Checked


class Buckets:
    """The examples in the batch of a step, and the length to pad them to, as a function of the step.

        buckets = Buckets(lengths, 128, (12, 20, 40), seed=0)
        batches = lambda step: batch_of(*buckets(step))                         # for `fit`, with a function of yours
        steps = epochs * buckets.per_epoch

    An example belongs to the bucket of the smallest bound that is not below its length. Each epoch shuffles every
    bucket, divides it into batches without an incomplete last one, and shuffles the batches. One shape is compiled for
    each bound.
    """

    per_epoch: int

    def __init__(
        self,
        lengths: Checked[Sequence[int] | np.ndarray | Array],
        size: Checked[int],
        bounds: Checked[Sequence[int] | np.ndarray | Array],
        *,
        seed: int,
    ):
        """`lengths`: of each example. `bounds`: the lengths to pad to, increasing; the last one is for all examples.

        Raises ValueError for bounds that do not increase, if the last bound is below the length of an example, and if a
        bucket has too few examples for a batch, since these would never be used.
        """
        lengths, bounds = np.asarray(lengths), np.asarray(bounds)
        _check(lengths, size, bounds)
        members = np.searchsorted(bounds, lengths)
        self._buckets = [np.flatnonzero(members == number) for number in range(len(bounds))]
        self._bounds = bounds.tolist()
        self._size, self._seed = int(size), seed
        self._epoch, self._batches = -1, []
        self.per_epoch = sum(len(bucket) // self._size for bucket in self._buckets)
        for bucket, bound in zip(self._buckets, self._bounds, strict=True):
            if 0 < len(bucket) < size:
                raise ValueError(
                    f"bounds: expected at least a batch of {size} examples in each bucket, or none, got {len(bucket)} "
                    f"up to {bound}. Leave out a bound beside it"
                )

    def __call__(self, step: int) -> tuple[np.ndarray, int]:
        """The indices of the examples, [size], and the bound of their bucket."""
        epoch, place = divmod(int(step), self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[place]

    def _shuffle(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        random = np.random.default_rng((self._seed, epoch))
        batches = []
        for bucket, bound in zip(self._buckets, self._bounds, strict=True):
            order = random.permutation(bucket)
            whole = len(order) // self._size * self._size
            batches += [(part, bound) for part in order[:whole].reshape(-1, self._size)]
        return [batches[place] for place in random.permutation(len(batches))]


def _check(lengths: np.ndarray, size: Any, bounds: np.ndarray) -> None:
    if lengths.ndim != 1 or lengths.size == 0 or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            f"lengths: expected an integer for each example, [N], got {show(lengths)}. "
            "Write np.asarray([len(example) for example in examples])"
        )
    if lengths.min() < 0:
        raise ValueError(
            f"lengths: expected none below zero, got {lengths.min()}. Pass the number of steps of each example"
        )
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(
            f"size: expected a positive number of examples, got {size!r}. Pass the number of examples in one batch"
        )
    if bounds.ndim != 1 or not np.issubdtype(bounds.dtype, np.integer) or (np.diff(bounds) <= 0).any():
        raise ValueError(
            f"bounds: expected integers that rise, got {bounds.tolist()}. "
            "Sort them and leave out repeated ones: sorted(set(bounds))"
        )
    if lengths.max() > bounds[-1]:
        raise ValueError(
            f"bounds: expected a last one of at least the longest example's {lengths.max()}, got {bounds[-1]}. "
            f"Add {lengths.max()} as the last bound"
        )
