"""A layer: a cell or a network within a larger network."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, State
from ..network import AbstractNetwork, Layer
from ..unroll import unroll


class AbstractWrapper(AbstractNetwork):
    """A network of one layer, with the layer's inputs and states.

    Subclass requirements: the field below, and `run`.
    """

    layer: eqx.AbstractVar[Any]

    def __check_init__(self):
        check_layer("layer", self.layer)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layer.input_type()

    def initial(self) -> State:
        return self.layer.initial()

    def hidden(self, state: State) -> Array | None:
        return self.layer.hidden(state)


def check_layer(name: str, layer: object) -> None:
    """Raise unless it is a cell or a network."""
    if not isinstance(layer, Layer):
        raise TypeError(
            f"{name}: expected a cell or a network, got {layer!r}. "
            "Build an instance of a class, and wrap a function of one step in TimeDistributed"
        )


def check_fit(name: str, expected: PyTree[jax.ShapeDtypeStruct], got: PyTree[jax.ShapeDtypeStruct]) -> None:
    """Raise unless a layer takes inputs of the given type."""
    if expected != got:
        raise ValueError(
            f"{name}: expected inputs {check.show(expected)} at each step, got {check.show(got)}. "
            "Give the two sides one size and one dtype"
        )


def output_type(layer: Layer) -> PyTree[jax.ShapeDtypeStruct]:
    """Shape and dtype of the output of one step."""
    one_step = jax.tree.map(lambda step: jax.ShapeDtypeStruct((1, *step.shape), step.dtype), layer.input_type())
    _, ys = jax.eval_shape(lambda xs: unroll(layer, None, xs), one_step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ys)
