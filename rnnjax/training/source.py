"""Where `fit` gets its batches: a function of the step, or any iterable of batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ..arrays import PyTree
from ..check import show
from ..checked import Checked

Batches = Callable[[int], PyTree] | Iterable[PyTree]

NONE = object()  # in place of a batch where there is none


class ByStep:
    """A function of the step alone."""

    def __init__(self, batches: Callable[[int], PyTree]):
        self.batches = batches

    def __call__(self, step: int) -> PyTree:
        """The batch of a step."""
        return self.batches(step)

    def ends(self, step: int) -> bool:
        """Whether the batch of a step is the last one."""
        del step
        return False


class InTurn:
    """An iterable, whose batches are the steps' in turn. It begins again at its end, unless it is an iterator."""

    def __init__(self, batches: Iterable[PyTree]):
        self.batches = batches
        self.turn: Iterator[PyTree] = iter(batches)
        self.is_iterator = self.turn is batches
        self.step, self.batch = -1, NONE

    def __call__(self, step: int) -> PyTree:
        """The batch of this step, which is the one before or the one after it."""
        if step != self.step:
            self.step, self.batch = step, self._take()
        if self.batch is NONE:
            raise ValueError(
                f"batches: expected at least one batch in each turn, got none of {type(self.batches).__name__} at step "
                f"{step}. Pass an iterable with batches in it that can be gone through again, or an iterator that has "
                "not been used"
            )
        return self.batch

    def ends(self, step: int) -> bool:
        """Whether an iterator is at its end: the batch after that of this step is taken while the step runs."""
        if not self.is_iterator:
            return False
        self.step, self.batch = step + 1, self._take()
        return self.batch is NONE

    def _take(self) -> PyTree:
        batch = next(self.turn, NONE)
        if batch is NONE and not self.is_iterator:
            self.turn = iter(self.batches)
            batch = next(self.turn, NONE)
        return batch if batch is NONE else jax.tree.map(_to_array, batch)


def source(batches: Checked[Batches], resume: bool) -> ByStep | InTurn:
    """The batches of `fit`. Raises for what is none, and for an iterable that is to be resumed."""
    if callable(batches):
        return ByStep(batches)
    if not isinstance(batches, Iterable) or isinstance(batches, tuple | Mapping | str) or hasattr(batches, "__array__"):
        raise TypeError(
            f"batches: expected a function of the step, or a list or another iterable of batches, got {show(batches)}. "
            "Write rnnjax.training.minibatches((xs, targets), 32, seed=0), or [batch] to take one batch at every step"
        )
    if resume:
        raise ValueError(
            f"resume: expected batches that are a function of the step, got {type(batches).__name__}: where a killed "
            "run stood in an iterable is not known. Write a function step -> batch, such as that of `minibatches`, or "
            "leave resume out"
        )
    return InTurn(batches)


def _to_array(leaf: Any) -> Any:
    """An array of another library, such as torch, as one of NumPy."""
    known = isinstance(leaf, jax.Array | np.ndarray | np.generic) or not hasattr(leaf, "__array__")
    return leaf if known else np.asarray(leaf)
