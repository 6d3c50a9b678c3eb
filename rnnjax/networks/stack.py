"""Layers on top of each other."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Never, TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, State
from ..cell import describe
from ..checked import Checked
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .layer import Layer, check_fit, check_layer, output_type

RunLayer: TypeAlias = Callable[[int, State, PyTree[Array], Options], tuple[State, PyTree[Array]]]


class Stack(AbstractNetwork):
    """Layers, where each gets the outputs of the one below; any cells and networks, of any sizes.

    The state is the tuple of the layers' states. With a `key`, `unroll` drops outputs between layers with probability
    `dropout`, with a new mask at every step, and scales the others by 1 / (1 - dropout); never after the last layer.
    `networks.layers` makes a stack of one cell in one call.
    """

    layers: tuple[Layer, ...]
    dropout: float = eqx.field(static=True)

    def __init__(self, layers: Checked[Sequence[Layer]], *others: Checked[Never], dropout: float = 0.0):
        """Raises a ValueError that names the first layer whose input type is not the output type of the one below."""
        if others or isinstance(layers, Layer):
            got = ", ".join(map(describe, (layers, *others)))
            raise TypeError(f"layers: expected one list of cells and networks, got {got}. Write Stack([{got}])")
        layers = tuple(layers)
        if not layers:
            raise ValueError(
                "layers: expected at least one cell or network, got none. Write Stack([LSTM(...), GRU(...)])"
            )
        for number, layer in enumerate(layers):
            check_layer(f"layers[{number}]", layer)
        for number, (below, above) in enumerate(pairwise(layers), 1):
            check_fit(f"layers[{number}]", above.input_type(), output_type(below))
        self.layers = layers
        self.dropout = check.probability("dropout", dropout)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layers[0].input_type()

    def initial(self) -> tuple[State, ...]:
        return tuple(layer.initial() for layer in self.layers)

    def hidden(self, state: tuple[State, ...]) -> Array | None:
        """That of the topmost layer with a state."""
        stateful = [pair for pair in zip(self.layers, state, strict=True) if jax.tree.leaves(pair[1])]
        if not stateful:
            return None
        layer, top = stateful[-1]
        return layer.hidden(top)

    def run(
        self, state: tuple[State, ...], xs: PyTree[Array], options: Options
    ) -> tuple[tuple[State, ...], PyTree[Array]]:
        return self.run_layers(self._run_layer, state, xs, options)

    def run_layers(
        self, run_layer: RunLayer, state: tuple[State, ...], xs: PyTree[Array], options: Options
    ) -> tuple[tuple[State, ...], PyTree[Array]]:
        """Run the layers, each by `run_layer(number, state, xs, options)`, with dropout between them."""
        states, ys = [], xs
        drop = eqx.nn.Dropout(self.dropout, inference=options.key is None)
        for number, before in enumerate(state):
            drop_key, layer_key = options.split_key(number)
            if number > 0:
                ys = drop(ys, key=drop_key)
            after, ys = run_layer(number, before, ys, options._replace(key=layer_key))
            states.append(after)
        return tuple(states), ys

    def _run_layer(self, number: int, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        return unroll(self.layers[number], state, xs, **options._asdict())
