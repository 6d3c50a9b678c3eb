"""The states of a cell at every step, beside its outputs."""

from jaxtyping import Array

from ..arrays import PyTree, State, States
from ..cell import AbstractCell, describe
from ..checked import Checked
from ..network import Options
from ..unroll import unroll_to_states
from .layer import AbstractWrapper


class AllStates(AbstractWrapper):
    """A cell whose outputs are pairs `(ys, states)`: its own outputs, and its state after each step, over time.

        state, (hs, states) = unroll(networks.AllStates(lstm), None, xs)          states.h, states.c: [T, H]

    States are in the dtype in which they are carried, float32 or wider. At an ignored step they are zero, as outputs
    are. Engines, initial states, lengths, masks, resets and gradients are as for the cell.
    """

    layer: AbstractCell

    def __init__(self, cell: Checked[AbstractCell]):
        """Raises a TypeError for a network, and for a cell whose steps emit something other than their states."""
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. Pass the cells of a network one by one")
        if not cell.emits_states:
            raise TypeError(
                f"cell: expected one that emits its states, got {describe(cell)}, which does not. "
                "Write unroll(lambda state, u: (cell.step(state, u),) * 2, state, cell.project(xs))"
            )
        self.layer = cell

    def run(self, state: State, xs: PyTree[Array], options: Options) -> tuple[State, tuple[PyTree[Array], States]]:
        return unroll_to_states(self.layer, state, xs, options)
