"""Networks: cells in layers, in both directions, with residual or skip connections.

`unroll` runs them as it runs a cell. Networks and cells nest either way; each part may be a cell or a network.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from . import check
from .arrays import State
from .cell import AbstractCell
from .named import named
from .network import AbstractNetwork, Options
from .unroll import unroll

Part = AbstractCell | AbstractNetwork


class Stack(AbstractNetwork):
    """Layers, each fed the outputs of the one below; any cells, any widths.

    The state is the tuple of the layers' states. With a `key`, `unroll` drops each output between layers with
    probability `dropout` and scales the rest by 1 / (1 - dropout), afresh at every step; never after the last layer.
    """

    layers: tuple[Part, ...]
    dropout: float = eqx.field(static=True)

    def __init__(self, layers: Sequence[Part], *, dropout: float = 0.0):
        """Raises a ValueError that names the layer whose input is not what the one below puts out."""
        layers = tuple(layers)
        if not layers:
            raise ValueError("layers: expected at least one cell or network, got none")
        for number, layer in enumerate(layers):
            _check_part(f"layers[{number}]", layer)
        for number, (below, above) in enumerate(pairwise(layers), 1):
            _check_fit(f"layers[{number}]", above.input_type(), _output_type(below))
        self.layers = layers
        self.dropout = check.probability("dropout", dropout)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layers[0].input_type()

    def initial(self) -> tuple[State, ...]:
        return tuple(layer.initial() for layer in self.layers)

    def run(
        self, state: tuple[State, ...], xs: PyTree[Array], options: Options
    ) -> tuple[tuple[State, ...], PyTree[Array]]:
        states, ys = [], xs
        drop = eqx.nn.Dropout(self.dropout, inference=options.key is None)
        for number, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            drop_key, layer_key = options.split_key(number)
            if number > 0:
                ys = drop(ys, key=drop_key)
            after, ys = unroll(layer, before, ys, **options._replace(key=layer_key)._asdict())
            states.append(after)
        return tuple(states), ys


class Directions(NamedTuple):
    """One thing for each direction of a `Bidirectional`: parts, states, or outputs of the merge `pair`."""

    forward: PyTree
    backward: PyTree


class Bidirectional(AbstractNetwork):
    """Schuster & Paliwal 1997: one part runs forward, the other backward over the valid part, their outputs merged.

    `merge` takes both outputs, in time order: `concatenate`, `add`, `average`, `multiply`, `pair`, or any function.
    The state is a `Directions`. The backward part is `Reversed`: what is said there of resets and chunks holds here.
    """

    forward: Part
    backward: Part
    merge: Callable[[Array, Array], PyTree[Array]] = eqx.field(static=True, converter=named)

    def __init__(self, forward: Part, backward: Part, *, merge: Callable[[Array, Array], PyTree[Array]] | None = None):
        """`merge` defaults to `concatenate`. Raises a ValueError where the two parts do not take the same inputs."""
        _check_part("forward", forward)
        _check_part("backward", backward)
        _check_fit("backward", backward.input_type(), forward.input_type())
        self.forward = forward
        self.backward = backward
        self.merge = concatenate if merge is None else merge

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.forward.input_type()

    def initial(self) -> Directions:
        return Directions(self.forward.initial(), self.backward.initial())

    def run(self, state: Directions, xs: PyTree[Array], options: Options) -> tuple[Directions, PyTree[Array]]:
        keys = options.split_key(0)
        forward, forward_ys = unroll(self.forward, state.forward, xs, **options._replace(key=keys[0])._asdict())
        backward, backward_ys = Reversed(self.backward).run(state.backward, xs, options._replace(key=keys[1]))
        return Directions(forward, backward), options.over_time(self.merge, forward_ys, backward_ys)


class Reversed(AbstractNetwork):
    """The part run from the end of the valid steps to their start, outputs in time order.

    A reset at t starts a new sequence at t here as elsewhere: coming from the right, the part is reset before it enters
    t - 1. (`unroll(..., reverse=True)` takes resets as they are, before step t in running order.) The part reads from
    the end, so a sequence fed in chunks is not the sequence fed whole.
    """

    part: Part

    def __check_init__(self):
        _check_part("part", self.part)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.part.input_type()

    def initial(self) -> State:
        return self.part.initial()

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        ends = None if options.resets is None else jnp.roll(options.resets, -1).at[-1:].set(False)
        return unroll(self.part, state, xs, **options._replace(resets=ends)._asdict(), reverse=True)


class Connected(AbstractNetwork):
    """The part with a connection around it: `ys = connect(xs, part(xs))`. See `residual` and `skip`."""

    part: Part
    connect: Callable[[Array, Array], Array] = eqx.field(static=True, converter=named)

    def __check_init__(self):
        _check_part("part", self.part)

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.part.input_type()

    def initial(self) -> State:
        return self.part.initial()

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        state, ys = unroll(self.part, state, xs, **options._asdict())
        return state, options.over_time(self.connect, xs, ys)


def residual(part: Part) -> Connected:
    """`ys = xs + part(xs)`. Raises a ValueError where the part does not put out what it takes in."""
    _check_part("part", part)
    _check_fit("part", part.input_type(), _output_type(part))
    return Connected(part, add)


def skip(part: Part) -> Connected:
    """`ys = [xs, part(xs)]`: all above sees the inputs too (Graves 2013, arXiv:1308.0850)."""
    return Connected(part, concatenate)


def concatenate(first: Array, second: Array) -> Array:
    """Both, along the features."""
    return jnp.concatenate([first, second], axis=-1)


def add(first: Array, second: Array) -> Array:
    """The sum."""
    return first + second


def average(first: Array, second: Array) -> Array:
    """The mean."""
    return (first + second) / 2


def multiply(first: Array, second: Array) -> Array:
    """The product."""
    return first * second


def pair(first: Array, second: Array) -> Directions:
    """Both, apart."""
    return Directions(first, second)


def _check_part(name: str, part: object) -> None:
    if not isinstance(part, Part):
        raise TypeError(f"{name}: expected a cell or a network, got {part!r}")


def _check_fit(name: str, expected: PyTree[jax.ShapeDtypeStruct], got: PyTree[jax.ShapeDtypeStruct]) -> None:
    if expected != got:
        raise ValueError(f"{name}: expected inputs {check.show(expected)} at each step, got {check.show(got)}")


def _output_type(part: Part) -> PyTree[jax.ShapeDtypeStruct]:
    """Shape and dtype of the output of one step."""
    one_step = jax.tree.map(lambda step: jax.ShapeDtypeStruct((1, *step.shape), step.dtype), part.input_type())
    _, ys = jax.eval_shape(lambda xs: unroll(part, None, xs), one_step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ys)
