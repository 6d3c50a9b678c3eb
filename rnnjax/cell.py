"""The noun *cell*: a recurrence, as pure functions of arrays.

    xs --project--> us --step, step, step--> states --emit, readout--> ys        y_t may depend on x_t, too

Families, each with more engines: any cell; the gated cells, which kernels can fuse; the diagonal cells, whose units do
not depend on each other's past; of these the linear ones, which can run in parallel along time; and the cells whose
state is a matrix (`matrix_cell.py`), which run by matrix products.
A cell takes one sequence; use `jax.vmap` for a batch.
"""

import abc
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import random
from .arrays import (
    Bias,
    DType,
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
    carry_dtype,
    cast,
    shift,
    sole_vector,
)
from .exporting import exportable

Shapes: TypeAlias = dict[str, tuple[int, ...]]  # by the name of a field, or `field.field`


@exportable
class Hidden(NamedTuple):
    """The state of a cell that carries one vector."""

    h: Units


class AbstractCell(eqx.Module):
    """Any recurrence. A subclass has its weights as fields, and five pure methods; a sixth, `emit`, has a default.

    `project` and `readout` get all of time at once and must treat each step by itself, so that a sequence can be split
    into chunks anywhere; anything that a step needs from earlier ones belongs in the state. Only `step` is sequential.
    A state is a pytree whose arrays keep their shapes and dtypes from step to step: all that the next step needs.
    """

    @abc.abstractmethod
    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shape and dtype of the input of one step, to check `xs` by."""

    @abc.abstractmethod
    def initial(self) -> State:
        """The state before the first step, and after a reset."""

    @abc.abstractmethod
    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        """`xs` over time to `us` over time: all computations that need no state."""

    @abc.abstractmethod
    def step(self, state: State, u: PyTree[Array]) -> State:
        """The state after one step."""

    def emit(self, state: State, before: State, u: PyTree[Array]) -> PyTree[Array]:
        """What one step puts out, from the states after and before it: by default the state after it.

        Engines return the emitted values over time. If these are a small part of a large state, no engine has to store
        that state at every step. `Fused`, the forward gradient estimators and `to_onnx` refuse a cell that overrides
        this.
        """
        del before, u
        return state

    @property
    def emits_states(self) -> bool:
        """Whether a step emits its state, so that an engine that has all states need not call `emit`."""
        return type(self).emit is AbstractCell.emit

    @abc.abstractmethod
    def readout(self, states: States, xs: PyTree[Array]) -> PyTree[Array]:
        """`states`, the emitted values over time, and the inputs to the outputs `ys` over time."""

    def hidden(self, state: State) -> Float[Array, " H"] | None:
        """The part of a state that attention and decoders read. By default its only array, if that is real."""
        return sole_vector(state)

    @property
    def weight_shapes(self) -> Shapes:
        """The shape of each weight, which `unroll` checks by name before any engine sees the cell; by default of none.

        A field that is a pytree has one shape for all its arrays. The first entry is the one that says the sizes.
        """
        return {}


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


class AbstractDiagonalCell(AbstractCell):
    """A cell whose units do not depend on each other's past: its Jacobian is diagonal, or a small block for each unit.

    Subclass requirements: every field of the state is a vector of all units, and `step` is elementwise in them. Then
    the Jacobian takes one forward derivative for each field of the state.
    """


class AbstractLinearCell(AbstractDiagonalCell):
    """A cell that is linear in its state, unit by unit, real or complex, so that it can run in parallel along time.

        h_t = a_t * h_{t-1} + b_t,        (a_t, b_t) = coefficients(u_t)

    Subclass requirements: `coefficients`, the fields below, and `input_type`, `project`, `readout`.
    """

    initial_state: eqx.AbstractVar[State | None]  # a learned initial state; None stands for zeros

    @abc.abstractmethod
    def coefficients(self, u: PyTree[Array]) -> tuple[Units, Units]:
        """`(a, b)` of one step, in the dtype of the state."""

    def step(self, state: Hidden, u: PyTree[Array]) -> Hidden:
        a, b = self.coefficients(u)
        return Hidden(a * state.h + b)


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


def initial_or_zeros(
    state_type: type, initial_state: State | None, shape: int | tuple[int, ...], dtype: DType
) -> State:
    """The initial state in the carry's dtype: the learned one, or zeros of `shape` in every field of `state_type`."""
    if initial_state is not None:
        return carried_copy(initial_state, dtype)
    # An array for each field, since a shared one could not be donated. `jnp.zeros` takes three times as long to trace.
    zero, sizes = np.zeros((), carry_dtype(dtype)), shape if isinstance(shape, tuple) else (shape,)
    return state_type(*(jax.lax.broadcast(zero, sizes) for _ in state_type._fields))


def carried_copy(state: State, dtype: DType) -> State:
    """A learned state in the carry's dtype, copied, so that both the cell and its state may be donated."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, carry_dtype(dtype)), state)


def learnable_zeros(learn: bool, state_type: type, shape: int | tuple[int, ...], dtype: DType) -> State | None:
    """The field `initial_state` of a new cell: zeros to be trained if `learn`, else None."""
    return state_type(*(random.zeros(shape, dtype) for _ in state_type._fields)) if learn else None


def describe(cell: object) -> str:
    """The name of a cell, a network or a function, for messages."""
    name = getattr(cell, "__name__", None)  # that of an Equinox module with defaults is not a string
    return name if isinstance(name, str) else type(cell).__name__
