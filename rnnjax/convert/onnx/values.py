"""The values in a graph that is read."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ...arrays import State
from ...network import Layer

Attributes: TypeAlias = dict[str, Any]  # of a node, by name: numbers, text, lists and arrays


class Constant(NamedTuple):
    """An array that the file holds. One that is spread over the batch keeps its axis of one."""

    array: np.ndarray


class Zeros(NamedTuple):
    """Zeros of a shape that is known when the file is run."""


class Given(NamedTuple):
    """An input of the graph, or a part of one, whose axes are then not known. One of one axis may be lengths, "L"."""

    source: str
    axes: str | None = None
    features: int | None = None


class Sizes(NamedTuple):
    """The sizes of these axes of the sequence: a vector, or the number of one axis, of rank 0."""

    axes: str
    rank: int = 1


class Times(NamedTuple):
    """The numbers of the steps, 0 to T - 1, along the axis of this letter; further axes are 1."""

    axes: str


class Lengths(NamedTuple):
    """The lengths of the sequences, from the input `source`, along the axis L; further axes are 1.

    bound    the axis whose size no length exceeds; None: none
    exact    False where 0 has become 1
    """

    source: str
    axes: str = "L"
    bound: str | None = None
    exact: bool = True


class Mask(NamedTuple):
    """Whether a step is before the length of its sequence: number < length, along the axes `time` and L."""

    source: str
    axes: str
    time: str


class Bookkeeping(NamedTuple):
    """Any other value that is computed from shapes and inputs."""


class Last(NamedTuple):
    """Last states of these nodes, or parts of them."""

    nodes: frozenset[int]


class Both(NamedTuple):
    """The cells of both directions of a node, whose outputs are not merged yet."""

    forward: Any
    backward: Any


class Steps(NamedTuple):
    """A sequence: what these layers make of the input `source`.

    axes      one letter each: F for features, D for directions, and two of its own, of which one is `time`
    states    the initial state of each layer, arrays [B, H], or None where it is that of the layer
    nodes     the recurrent nodes among them, by their place in the graph
    """

    source: str
    axes: str
    time: str | None
    features: int | None
    layers: tuple[Any, ...] = ()
    states: tuple[Any, ...] = ()
    nodes: frozenset[int] = frozenset()

    def then(self, layer: Layer | Both | tuple, state: State | None = None, **changed: object) -> "Steps":
        """The sequence after one more layer."""
        return self._replace(layers=(*self.layers, layer), states=(*self.states, state), **changed)

    def last_layer(self, layer: Layer | Both | tuple) -> "Steps":
        """The same with another layer in place of the last."""
        return self._replace(layers=(*self.layers[:-1], layer))

    def extends(self, other: "Steps") -> bool:
        """Whether it is made of `other` by further layers."""
        common = zip(self.layers, other.layers, strict=False)
        return self.source == other.source and len(self.layers) >= len(other.layers) and all(a is b for a, b in common)


Value: TypeAlias = Constant | Zeros | Given | Sizes | Times | Lengths | Mask | Bookkeeping | Last | Steps


def as_steps(value: Value | None) -> Steps | None:
    """A sequence, also where nothing has been done to it yet; None for anything else."""
    if isinstance(value, Given) and value.axes is not None and len(value.axes) == 3:
        return Steps(value.source, value.axes, None, value.features)
    return value if isinstance(value, Steps) else None
