"""Residual and skip connections around a layer."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array

from ..arrays import PyTree, State
from ..named import named
from ..network import Options
from ..unroll import unroll
from .layer import AbstractWrapper, Layer, check_fit, check_layer, output_type
from .merge import add, concatenate


class Connected(AbstractWrapper):
    """A layer with a connection around it: `ys = combine(xs, layer(xs))`. See `residual` and `skip`."""

    layer: Layer
    combine: Callable[[Array, Array], Array] = eqx.field(static=True, converter=named)

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        state, ys = unroll(self.layer, state, xs, **options._asdict())
        return state, options.over_time(self.combine, xs, ys)


def residual(layer: Layer) -> Connected:
    """`ys = xs + layer(xs)`. Raises a ValueError unless outputs have the shape and dtype of the inputs."""
    check_layer("layer", layer)
    check_fit("layer", layer.input_type(), output_type(layer))
    return Connected(layer, add)


def skip(layer: Layer) -> Connected:
    """`ys = [xs, layer(xs)]`: the layers above get the inputs, too (Graves 2013, arXiv:1308.0850)."""
    return Connected(layer, concatenate)
