"""The families of cells with `u = W x + b`: any such cell, the gated cells, and those that write a candidate."""

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .arrays import (
    Bias,
    Gates,
    GatesOverTime,
    Inputs,
    InputWeight,
    PyTree,
    RecurrentWeight,
    State,
    States,
    Unit,
    UnitGates,
    Units,
    UnitsOverTime,
    by_gate,
    cast,
    shift,
)
from .cell import AbstractCell, Hidden, Shapes, initial_or_zeros


class AbstractAffineCell(AbstractCell):
    """A cell with `u_t = W x_t + b`, [G, H], whose output is the field `h` of its state.

    W is one matrix [I, GH] and b one vector [GH], with the gates one after the other; `by_gate` gives a view by gates.

    Subclass requirements: the fields below, `gates`, and `step`. A dtype below float32 is the dtype of weights, inputs
    and outputs; states stay in float32.
    """

    state_type: ClassVar[type] = Hidden

    gates: eqx.AbstractVar[str]  # a letter for each gate of W, in order
    input_weight: eqx.AbstractVar[InputWeight]
    bias: eqx.AbstractVar[Bias | None]
    initial_state: eqx.AbstractVar[State | None]  # a learned initial state; None stands for zeros

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of weights, inputs and outputs."""
        return self.input_weight.dtype

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden units."""
        return math.prod(self.input_weight.shape[1:]) // len(self.gates)

    @property
    def weight_shapes(self) -> Shapes:
        hidden_size, gates = self.hidden_size, len(self.gates)
        matrix = *self.input_weight.shape[:1], gates * max(1, hidden_size)
        return {"input_weight": matrix, "bias": matrix[1:], "initial_state": (hidden_size,)}

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.dtype)

    def initial(self) -> State:
        return initial_or_zeros(self.state_type, self.initial_state, self.hidden_size, self.dtype)

    def project(self, xs: Inputs) -> GatesOverTime:
        return by_gate(affine(self.input_weight, self.bias, xs), len(self.gates))

    def readout(self, states: States, xs: Inputs) -> UnitsOverTime:
        del xs
        return states.h.astype(self.dtype)

    def hidden(self, state: State) -> Units:
        return state.h


class AbstractGatedCell(AbstractAffineCell):
    """A cell whose one matrix product inside the loop is `v = R h`; everything else is done unit by unit.

        u_t = W x_t + b                                  u, v: [G, H]
        v_t = R h_{t-1}                                  R dense [H, GH], or block-diagonal over N heads [N, D, GD]
        state_t = pointwise(parameters, u_t, v_t, state_{t-1})     for each unit

    Subclass requirements: the fields below, and `pointwise`, which is a function of ONE unit: of scalars, and of the
    cell's static fields alone (a kernel calls it on a cell without its weights). The state is a NamedTuple whose first
    field, `h`, is multiplied by R. The arithmetic of `pointwise` is float32 or wider.
    """

    recurrent_weight: eqx.AbstractVar[RecurrentWeight]

    @property
    def unit_parameters(self) -> PyTree:
        """The vectors [H] among the cell's fields that `pointwise` needs beside u and v; None if it needs none."""
        return None

    @property
    def weight_shapes(self) -> Shapes:
        shapes, parameters, hidden_size = super().weight_shapes, self.unit_parameters, self.hidden_size
        shapes["recurrent_weight"] = recurrent_shape(self.recurrent_weight, hidden_size, len(self.gates))
        if parameters is not None:
            name = next((name for name, field in vars(self).items() if field is parameters), "unit_parameters")
            shapes[name] = (hidden_size,)
        return shapes

    @abc.abstractmethod
    def pointwise(self, parameters: PyTree[Unit], u: UnitGates, v: UnitGates, state: State) -> State:
        """The state of one unit after a step.

        All arguments belong to this unit: its `unit_parameters` and its state are scalars, u and v are [G].
        """

    def advance(self, u: Gates, v: Gates, state: State) -> State:
        """The state after a step, from the u and v of all units: `pointwise`, mapped over the units."""
        carried = state.h.dtype
        return jax.vmap(self.pointwise, -1, -1)(cast(self.unit_parameters, carried), u.astype(carried), v, state)

    def step(self, state: State, u: Gates) -> State:
        return self.advance(u, recur(self.recurrent_weight, state.h, len(self.gates)), state)


class AbstractCandidateCell(AbstractGatedCell):
    """A gated cell that writes a candidate into a memory, and lets a regulariser change that candidate.

    Subclass requirements: `write`. `pointwise` is `write` with an unchanged candidate.
    """

    @abc.abstractmethod
    def write(
        self, parameters: PyTree[Unit], u: UnitGates, v: UnitGates, state: State, through: Callable[[Unit], Unit]
    ) -> State:
        """As `pointwise`, but `through` is applied to the candidate before it is written."""

    def pointwise(self, parameters: PyTree[Unit], u: UnitGates, v: UnitGates, state: State) -> State:
        return self.write(parameters, u, v, state, unchanged)


def unchanged(values: Array) -> Array:
    """The candidate itself."""
    return values


def affine(weight: InputWeight, bias: Bias | None, xs: Inputs) -> Float[Array, "T GH"]:
    """`us = W xs + b` for all of time, as one matrix product."""
    us = xs @ weight
    return us if bias is None else shift(us, bias)


def recur(weight: RecurrentWeight, h: Float[Array, " h"], gates: int) -> Gates:
    """`v = R h`, summed in the dtype of `h`. One head is a plain matrix product, since XLA's batched one is slower."""
    operand = h.astype(weight.dtype)
    if weight.ndim == 2:
        return by_gate(jnp.matmul(operand, weight, preferred_element_type=h.dtype), gates)
    heads, units, _ = weight.shape
    v = jnp.einsum(
        "nd,ndge->gne", operand.reshape(heads, units), by_gate(weight, gates), preferred_element_type=h.dtype
    )
    return v.reshape(gates, heads * v.shape[-1])


def recurrent_shape(weight: RecurrentWeight, hidden_size: int, gates: int) -> tuple[int, ...]:
    """The shape that R must have: dense, or of as many heads as it is given with."""
    heads = weight.shape[0] if weight.ndim == 3 and hidden_size % weight.shape[0] == 0 else 1
    units = hidden_size // heads
    return (units, gates * units) if weight.ndim != 3 else (heads, units, gates * units)
