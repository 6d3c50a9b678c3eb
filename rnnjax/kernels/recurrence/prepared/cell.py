"""A gated cell whose weights are packed: what `rnnjax.prepare` makes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ....arrays import Gates, GatesOverTime, Inputs, State, States, Units, UnitsOverTime
from ....cell import AbstractCell, describe
from ....gated_cell import AbstractGatedCell
from ..contract import Pointwise, PreparedWeights
from .packing import input_product, pack, state_product


class PreparedCell(AbstractCell):
    """A gated cell for inference: its matrices are packed once, and may be stored in bfloat16 or in int8.

    `rnnjax.prepare` makes it. It takes and returns the same states as the cell, and is a pytree of arrays; it has no
    gradient, so that `Newton` refuses it. `Fused` runs it without packing anything, however short the sequence is; the
    other engines run it in plain JAX. All is computed in the dtype of the state, whatever the weights are stored as.
    """

    weights: PreparedWeights
    pointwise: Pointwise = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)  # of inputs and outputs

    def __init__(self, cell: AbstractGatedCell, stored: np.dtype):
        """Pack the weights of `cell`, its matrices in the dtype `stored`."""
        self.weights = pack(cell, stored)
        self.pointwise = Pointwise.of(cell)
        self.dtype = np.dtype(cell.dtype)

    @property
    def __name__(self) -> str:
        return f"Prepared{describe(self.pointwise.cell)}"

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.weights.W.shape[1:2], self.dtype)

    def initial(self) -> State:
        return self.pointwise.cell.state_type(*(jnp.array(field) for field in self.weights.initial))

    def project(self, xs: Inputs) -> GatesOverTime:
        return input_product(self.weights, xs.astype(self.weights.b.dtype))

    def step(self, state: State, u: Gates) -> State:
        v = state_product(self.weights, state.h)
        return type(state)(*self.pointwise(self.weights.unit_parameters, u, v, jnp.stack(list(state))))

    def readout(self, states: States, xs: Inputs) -> UnitsOverTime:
        del xs
        return states.h.astype(self.dtype)

    def hidden(self, state: State) -> Units:
        return state.h
