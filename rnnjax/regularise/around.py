"""What all regularisers around one part share: they take what it takes, and start where it starts."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..arrays import State
from ..cell import describe
from ..network import AbstractNetwork


class AbstractAround(AbstractNetwork):
    """A network of one part. Without a key, `unroll` runs the part as it is, but for `Zoneout`, which takes its mean.

    Two that change the step do not nest: what is around one is a network, no cell.

    Subclass requirements: the field below, and `run`.
    """

    part: eqx.AbstractVar[Any]

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.part.input_type()

    def initial(self) -> State:
        return self.part.initial()


def check_part(part: object, expected: Any, means: str) -> None:
    """Raise unless `part` is what the regulariser can change."""
    if not isinstance(part, expected):
        raise TypeError(f"part: expected {means}, got {describe(part)}")


def check_inherits(part: object, family: type, *methods: str) -> None:
    """Raise where the part has a method of its own in the place of one the regulariser writes anew."""
    for method in methods:
        if getattr(type(part), method) is not getattr(family, method):
            raise TypeError(
                f"part: expected the {method} of {family.__name__}, which is run anew with what is dropped, "
                f"got {describe(part)}, which has its own. Regularise its inputs and outputs, or use Zoneout"
            )
