"""What all regularisers around one layer share: they take what it takes, and start where it starts."""

from types import UnionType
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ..arrays import PyTree, State
from ..cell import describe
from ..network import AbstractNetwork


class AbstractAround(AbstractNetwork):
    """A network of one layer. Without a key, `unroll` runs the layer as it is, but for `Zoneout`, which takes its mean.

    Two that change the step do not nest: what is around one is a network, no cell.

    Subclass requirements: the field below, and `run`.
    """

    layer: eqx.AbstractVar[Any]

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layer.input_type()

    def initial(self) -> State:
        return self.layer.initial()

    def hidden(self, state: State) -> Array | None:
        return self.layer.hidden(state)


def check_kind(layer: object, expected: type | UnionType, means: str) -> None:
    """Raise unless `layer` is what the regulariser can change."""
    if not isinstance(layer, expected):
        raise TypeError(
            f"layer: expected {means}, got {describe(layer)}. Pass the layer to regularise, such as LSTM(...)"
        )


def check_inherits(layer: object, family: type, *methods: str) -> None:
    """Raise where the layer overrides a method that the regulariser replaces."""
    for method in methods:
        if getattr(type(layer), method) is not getattr(family, method):
            raise TypeError(
                f"layer: expected the {method} of {family.__name__}, which the regulariser replaces, got "
                f"{describe(layer)}, which overrides it. Regularise its inputs and outputs, or use Zoneout"
            )
