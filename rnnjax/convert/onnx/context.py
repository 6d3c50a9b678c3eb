"""The state shared by all layers that are written: the graph, and which steps of each sequence are valid."""

from typing import Any, NamedTuple

import numpy as np

from ...arrays import PyTree
from .builder import Builder

Names = PyTree[str]  # a state by the names of its arrays [B, H]; "" stands for zeros


class Lengths(NamedTuple):
    """The lengths of the sequences of a batch, as values of the graph."""

    steps: str  # int32 [B], from 1 to T: no runtime gives the initial state back after no step
    valid: str  # bool [T, B, 1]
    final: str  # bool [T, B, 1]: the last valid step
    empty: str  # bool [B, 1]: of no step


class Context(NamedTuple):
    """Where a layer is written to. Sequences are [T, B, features] there."""

    graph: Builder
    dtype: np.dtype[Any]
    batch: str  # int64 [1]: B
    lengths: Lengths | None
    has_last: bool  # whether the last states are outputs
    reverse: bool = False

    def valid(self, ys: str, otherwise: float = 0.0) -> str:
        """The outputs, with another value where a step is not valid."""
        if self.lengths is None:
            return ys
        return self.graph.node("Where", self.lengths.valid, ys, self.graph.constant(otherwise, self.dtype))

    def last(self, before: str, after: str, units: int) -> str:
        """The state after the last valid step, `before` where there was none."""
        if self.lengths is None:
            return after
        return self.graph.node("Where", self.lengths.empty, self.filled(before, units), after)

    def filled(self, name: str, units: int) -> str:
        """A part of a state, of zeros where it has no name."""
        return name or self.spread(np.zeros((1, units), self.dtype))

    def spread(self, row: np.ndarray) -> str:
        """[1, H] for every sequence of the batch, [B, H]."""
        units = self.graph.integers(row.shape[1])
        shape = self.graph.node("Concat", self.batch, units, axis=0)
        return self.graph.node("Expand", self.graph.constant(row), shape)
