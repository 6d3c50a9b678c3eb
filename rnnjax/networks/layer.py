"""A layer: a cell or a network within a larger network."""

import jax

from .. import check
from ..arrays import PyTree
from ..network import Layer
from ..unroll import unroll


def check_layer(name: str, layer: object) -> None:
    """Raise unless it is a cell or a network."""
    if not isinstance(layer, Layer):
        raise TypeError(
            f"{name}: expected a cell or a network, got {layer!r}. "
            "Build an instance of a class, and wrap a function of one step in TimeDistributed"
        )


def check_fit(name: str, expected: PyTree[jax.ShapeDtypeStruct], got: PyTree[jax.ShapeDtypeStruct]) -> None:
    """Raise unless a layer takes the inputs that it is fed."""
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
