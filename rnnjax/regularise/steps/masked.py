"""A cell whose steps are changed by masks or noise, drawn in advance for every step."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array

from ...arrays import PyTree, State, States
from ...cell import AbstractCell, describe
from ...network import Options
from ...networks.layer import AbstractWrapper
from ...unroll import unroll


class MaskedCell(AbstractCell):
    """The cell of a regulariser: its inputs are pairs `(x, mask)`, its step is one of the regulariser's methods.

    The masks are inputs, so that they are reversed, cut into chunks and recomputed together with `xs`. It is a plain
    cell whatever the layer is: a kernel traces the layer's `pointwise`, and not the changed step.
    """

    regulariser: AbstractWrapper
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

    @property
    def emits_states(self) -> bool:
        return self.regulariser.layer.emits_states

    def emit(self, state: State, before: State, u: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
        return self.regulariser.layer.emit(state, before, u[0])

    def readout(self, states: States, xs: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
        return self.regulariser.layer.readout(states, xs[0])


def run_masked(
    regulariser: AbstractWrapper,
    change: Callable[..., State],
    state: State,
    xs: PyTree[Array],
    masks: PyTree[Array],
    options: Options,
) -> tuple[State, PyTree[Array]]:
    """Run the regulariser's cell: each step is `change(regulariser, state, u, mask)`, with that step's mask."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), masks)
    name = f"{describe(regulariser)} of {describe(regulariser.layer)}"
    return unroll(MaskedCell(regulariser, change, one, name), state, (xs, masks), **options._asdict())
