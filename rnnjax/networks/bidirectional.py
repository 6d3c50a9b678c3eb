"""Layers that run backward, and in both directions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree, State
from ..named import named
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .layer import AbstractWrapper, Layer, check_fit, check_layer
from .merge import Directions, concatenate


class AbstractBidirectional(AbstractNetwork):
    """One layer runs forward, one backward over the valid steps; their outputs are merged.

    Subclass requirements: the layers of both directions, as fields or properties, and `merge`.
    """

    forward: eqx.AbstractVar[Layer]
    backward: eqx.AbstractVar[Layer]
    merge: eqx.AbstractVar[Callable[[Array, Array], PyTree[Array]]]

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.forward.input_type()

    def initial(self) -> Directions:
        return Directions(self.forward.initial(), self.backward.initial())

    def hidden(self, state: Directions) -> Array | None:
        """Those of both directions, concatenated."""
        forward, backward = self.forward.hidden(state.forward), self.backward.hidden(state.backward)
        return None if forward is None or backward is None else jnp.concatenate([forward, backward])

    def run(self, state: Directions, xs: PyTree[Array], options: Options) -> tuple[Directions, PyTree[Array]]:
        keys = options.split_key(0)
        forward, forward_ys = unroll(self.forward, state.forward, xs, **options._replace(key=keys[0])._asdict())
        backward, backward_ys = Reversed(self.backward).run(state.backward, xs, options._replace(key=keys[1]))
        return Directions(forward, backward), options.over_time(self.merge, forward_ys, backward_ys)


class Bidirectional(AbstractBidirectional):
    """Schuster & Paliwal 1997: one layer runs forward, one backward over the valid steps; their outputs are merged.

    `merge` takes both outputs, in time order: `concatenate`, `add`, `average`, `multiply`, `pair`, or any function.
    The state is a `Directions`. The backward layer is a `Reversed`; see there for resets and chunks.

    Each direction has weights of its own and trains them: in `Bidirectional(cell, cell)` they are equal at first only.
    `networks.SharedBidirectional(cell)` has the same weights in both directions.
    """

    forward: Layer
    backward: Layer
    merge: Callable[[Array, Array], PyTree[Array]] = eqx.field(static=True, converter=named)

    def __init__(
        self, forward: Layer, backward: Layer, *, merge: Callable[[Array, Array], PyTree[Array]] | None = None
    ):
        """`merge` defaults to `concatenate`. Raises a ValueError where the two layers do not take the same inputs."""
        check_layer("forward", forward)
        check_layer("backward", backward)
        check_fit("backward", backward.input_type(), forward.input_type())
        self.forward = forward
        self.backward = backward
        self.merge = concatenate if merge is None else merge


class SharedBidirectional(AbstractBidirectional):
    """One layer that runs in both directions with the same weights; otherwise as `Bidirectional`.

        y_t = merge(forward_t, backward_t)          the gradient of a weight is the sum of those of both directions

    So it has half the weights, which optimisers, `diagnose.summary` and files see once. Each direction has a state of
    its own, of the `Directions`; if the initial state is learned, it is that of both. Where the layer has random parts,
    each direction draws its own. Libraries that cannot share weights take `Bidirectional(layer, layer)`, which gives
    the same outputs.
    """

    layer: Layer
    merge: Callable[[Array, Array], PyTree[Array]] = eqx.field(static=True, converter=named)

    def __init__(self, layer: Layer, *, merge: Callable[[Array, Array], PyTree[Array]] | None = None):
        """`merge` defaults to `concatenate`."""
        check_layer("layer", layer)
        self.layer = layer
        self.merge = concatenate if merge is None else merge

    @property
    def forward(self) -> Layer:
        return self.layer

    @property
    def backward(self) -> Layer:
        return self.layer


class Reversed(AbstractWrapper):
    """A layer that runs from the end of the valid steps to their start, with outputs in time order.

    As elsewhere, a reset at t starts a new sequence at t: since the layer runs from the end, it is reset before step
    t - 1. (`unroll(..., reverse=True)` applies resets as they are, before step t in running order.) Since the layer
    runs from the end, feeding a sequence in chunks does not give the same result as feeding it whole.
    """

    layer: Layer

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, PyTree[Array]]:
        ends = None if options.resets is None else jnp.roll(options.resets, -1).at[-1:].set(False)
        return unroll(self.layer, state, xs, **options._replace(resets=ends)._asdict(), reverse=True)
