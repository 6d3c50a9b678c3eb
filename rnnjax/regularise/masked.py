"""A cell, each step of which is changed by what is drawn for it."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array

from ..arrays import PyTree, State, States
from ..cell import AbstractCell, describe
from ..network import Options
from ..unroll import unroll
from .around import AbstractAround


class MaskedCell(AbstractCell):
    """The cell of a regulariser; its inputs are pairs `(x, mask)`, its step is one of the regulariser's methods.

    What is drawn travels with the inputs, so that it is reversed, cut into chunks and recomputed with them. It is no
    gated cell, whatever the layer is: what a mask does to a step is not what a kernel was told to trace.
    """

    regulariser: AbstractAround
    change: Callable[..., State] = eqx.field(static=True)  # (regulariser, state, u, mask) -> state
    mask_type: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    __name__: str = eqx.field(static=True)

    def input_type(self) -> tuple[PyTree[jax.ShapeDtypeStruct], PyTree[jax.ShapeDtypeStruct]]:
        return self.regulariser.input_type(), self.mask_type

    def initial(self) -> State:
        return self.regulariser.initial()

    def project(self, xs: tuple[PyTree[Array], PyTree[Array]]) -> tuple[PyTree[Array], PyTree[Array]]:
        return self.regulariser.layer.project(xs[0]), xs[1]

    def step(self, state: State, u: tuple[PyTree[Array], PyTree[Array]]) -> State:
        return self.change(self.regulariser, state, *u)

    def readout(self, states: States, xs: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
        return self.regulariser.layer.readout(states, xs[0])


def run_masked(
    regulariser: AbstractAround,
    change: Callable[..., State],
    state: State,
    xs: PyTree[Array],
    masks: PyTree[Array],
    options: Options,
) -> tuple[State, PyTree[Array]]:
    """Run the regulariser's cell, each step by `change(regulariser, state, u, mask)` with its own of the `masks`."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), masks)
    name = f"{describe(regulariser)} of {describe(regulariser.layer)}"
    return unroll(MaskedCell(regulariser, change, one, name), state, (xs, masks), **options._asdict())
