"""The noun *cell*: a recurrence, as pure functions of arrays.

    xs --project--> us --step, step, step--> states --emit, readout--> ys        y_t may depend on x_t, too

Families, each with more engines: any cell; the gated cells (`gated_cell.py`), which kernels can fuse; the diagonal
cells, whose units do not depend on each other's past; of these the linear ones, which can run in parallel along time;
and the cells whose state is a matrix (`matrix_cell.py`), which have kernels of their own.
A cell takes one sequence; use `jax.vmap` for a batch.
"""

import abc
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import random
from .arrays import (
    DType,
    PyTree,
    State,
    States,
    Units,
    carry_dtype,
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
