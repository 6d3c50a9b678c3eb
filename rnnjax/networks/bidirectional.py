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


class Bidirectional(AbstractNetwork):
    """Schuster & Paliwal 1997: one layer runs forward, one backward over the valid steps; their outputs are merged.

    `merge` takes both outputs, in time order: `concatenate`, `add`, `average`, `multiply`, `pair`, or any function.
    The state is a `Directions`. The backward layer is a `Reversed`; see there for resets and chunks.
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
