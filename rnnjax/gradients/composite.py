"""Layers on top of each other, seen as one cell that runs step by step."""

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from ..arrays import PyTree, State, States
from ..cell import AbstractCell
from ..network import AbstractNetwork, Layer, split_key
from ..networks.connected import Connected
from ..networks.stack import Stack
from ..networks.time_distributed import TimeDistributed

Part = AbstractCell | TimeDistributed
Visit = Callable[[Part, State, PyTree[Array]], tuple[State, PyTree[Array]]]  # (part, state, x) -> (state after, y)


class Composite(AbstractCell):
    """A `Stack` or `Connected`, with all in it, as one cell whose state is that of all layers.

        step       every layer in turn: the layer above gets the output of this step from the layer below
        readout    every layer's readout in turn, of the states after the step

    The layers are cells and `TimeDistributed`, at any depth. With a `key`, which is that of one step, `Stack` drops
    outputs between layers as in `unroll(network, state, x[None], key=key)`.
    """

    network: AbstractNetwork
    key: PRNGKeyArray | None

    @property
    def parts(self) -> list[Part]:
        """The layers that run step by step, in running order; elsewhere lists of what belongs to them follow it."""
        return [part for part in parts_of(self.network) if isinstance(part, Part)]

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.network.input_type()

    def initial(self) -> State:
        return self.network.initial()

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def step(self, state: State, u: PyTree[Array]) -> State:
        return self.through(state, u, forward)[0]

    def readout(self, states: States, xs: PyTree[Array]) -> PyTree[Array]:
        return jax.vmap(lambda state, x: self.through(state, x, keep)[1])(states, xs)

    def through(self, state: State, x: PyTree[Array], visit: Visit) -> tuple[State, PyTree[Array]]:
        """One step through the layers, of which each part is run by `visit`: the state after it, and the output."""
        return _through(self.network, state, x, self.key, visit)

    def record(self, state: State, x: PyTree[Array]) -> tuple[State, list[PyTree[Array]]]:
        """The state after a step, and the inputs of the parts."""
        inputs: list[PyTree[Array]] = []

        def visit(part: Part, before: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
            inputs.append(x)
            return forward(part, before, x)

        return self.through(state, x, visit)[0], inputs

    def states(self, state: State) -> list[State]:
        """The states of the parts."""
        return list(_states(self.network, state))

    def replace(self, parts: list[PyTree]) -> "Composite":
        """The same tree with others in place of the parts, such as their gradients."""
        structure = jax.tree.structure(self.network, is_leaf=is_part)
        return Composite(jax.tree.unflatten(structure, parts), self.key)


def as_cell(layer: Layer, key: PRNGKeyArray | None = None) -> AbstractCell:
    """A cell itself, and a network as one cell."""
    return layer if isinstance(layer, AbstractCell) else Composite(layer, key)


def as_layer(cell: AbstractCell) -> Layer:
    """The inverse of `as_cell`."""
    return cell.network if isinstance(cell, Composite) else cell


def is_part(node: object) -> bool:
    """Whether a layer is one that a composite is made of. A subclass may run differently, and is none."""
    return isinstance(node, AbstractCell) or type(node) is TimeDistributed


def parts_of(layer: object) -> list[object]:
    """The layers in a composite, in the order in which they run; those that are no `Part` cannot run step by step."""
    if type(layer) is Stack:
        return [part for each in layer.layers for part in parts_of(each)]
    if type(layer) is Connected:
        return parts_of(layer.layer)
    return [layer]


def forward(part: Part, state: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
    """A step of one part."""
    return keep(part, step(part, state, x) if isinstance(part, AbstractCell) else state, x)


def keep(part: Part, state: State, x: PyTree[Array]) -> tuple[State, PyTree[Array]]:
    """The output of one part where `state` is that after the step."""
    if not isinstance(part, AbstractCell):
        return state, part.function(x)
    ys = part.readout(*jax.tree.map(lambda leaf: leaf[None], (state, x)))
    return state, jax.tree.map(lambda leaf: leaf[0], ys)


def step(cell: AbstractCell, state: State, x: PyTree[Array]) -> State:
    """One step, from the input itself."""
    us = cell.project(jax.tree.map(lambda leaf: leaf[None], x))
    return cell.step(state, jax.tree.map(lambda leaf: leaf[0], us))


def _through(
    layer: Layer, state: State, x: PyTree[Array], key: PRNGKeyArray | None, visit: Visit
) -> tuple[State, PyTree[Array]]:
    if type(layer) is Stack:
        afters = []
        for number, (each, before) in enumerate(zip(layer.layers, state, strict=True)):
            drop_key, layer_key = split_key(key, number)
            if number > 0:
                x = eqx.nn.Dropout(layer.dropout, inference=key is None)(x, key=drop_key)
            after, x = _through(each, before, x, layer_key, visit)
            afters.append(after)
        return tuple(afters), x
    if type(layer) is Connected:
        after, y = _through(layer.layer, state, x, key, visit)
        xs, ys = jax.tree.map(lambda leaf: leaf[None], (x, y))  # `combine` takes arrays over time
        return after, jax.tree.map(lambda leaf: leaf[0], layer.combine(xs, ys))
    assert isinstance(layer, Part)
    return visit(layer, state, x)


def _states(layer: Layer, state: State) -> Iterator[State]:
    if type(layer) is Stack:
        for each, own in zip(layer.layers, state, strict=True):
            yield from _states(each, own)
    elif type(layer) is Connected:
        yield from _states(layer.layer, state)
    else:
        yield state
