"""The noun *kernel*: a gated cell on one platform, as a forward half and its transpose, on groups of batches.

S  groups, such as the members of an ensemble: each has its own weight gradient
B  sequences that share their weights         K  unit parameters, vectors [H]
F  fields of a state                          C  residuals: vectors [H] of a step that are stored for `backward`
"""

import abc
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...arrays import PyTree, Shaped, carry_dtype
from ...gated_cell import AbstractGatedCell
from ...refusal import Refusal

Form: TypeAlias = Any  # the structure of a primitive's operands, a PyTreeDef: no type that checkers know


class Pointwise(eqx.Module):
    """`cell.pointwise` on stacked arrays, of a cell stripped of its weights: hashable, a parameter of a program."""

    cell: AbstractGatedCell = eqx.field(static=True)
    unit_parameters: Any = eqx.field(static=True)  # the structure of the cell's unit parameters
    gates: int = eqx.field(static=True)

    @classmethod
    def of(cls, cell: AbstractGatedCell) -> "Pointwise":
        """The elementwise step of `cell`."""
        stripped = eqx.filter(cell, eqx.is_array, inverse=True)
        return cls(stripped, jax.tree.structure(cell.unit_parameters), len(cell.gates))

    @property
    def name(self) -> str:
        """The cell's, as kernels and profiles spell it."""
        return type(self.cell).__name__.lower()

    @property
    def fields(self) -> int:
        """F, the number of vectors in a state."""
        return len(self.cell.state_type._fields)

    def __call__(
        self,
        unit_parameters: Float[Array, "K H"],
        u: Float[Array, "G H"],
        v: Float[Array, "G H"],
        before: Float[Array, "F H"],
    ) -> Float[Array, "F H"]:
        """The state after one step."""
        return jax.vmap(self.of_unit, -1, -1)(unit_parameters, u, v, before)

    def of_unit(
        self,
        unit_parameters: Float[Array, " K"],
        u: Float[Array, " G"],
        v: Float[Array, " G"],
        before: Float[Array, " F"],
    ) -> Float[Array, " F"]:
        """The state of one unit after one step."""
        after = self.cell.pointwise(
            jax.tree.unflatten(self.unit_parameters, list(unit_parameters)), u, v, self.cell.state_type(*before)
        )
        return jnp.stack(list(after))


class Weights(NamedTuple):
    """The arrays that all sequences of a group share. Each leads with S, or with 1 where all groups share it too."""

    W: Float[Array, "S I G H"]
    b: Float[Array, "S G H"]
    R: Float[Array, "S N D G D"]
    unit_parameters: Float[Array, "S K H"]
    initial: Float[Array, "S F H"]  # the state after a reset


class PreparedWeights(NamedTuple):
    """`Weights` whose matrices are packed, and perhaps stored narrow. The other arrays are in the carry's dtype.

    P is PREPARED_UNITS, and Q the number of blocks of P units, of one head each: see `prepared/packing.py`.
    """

    W: Shaped  # [S Q I G P], of the carry's dtype, bfloat16 or int8
    b: Float[Array, "S G H"]
    R: Shaped  # [S Q D G P]
    unit_parameters: Float[Array, "S K H"]
    initial: Float[Array, "S F H"]
    W_scale: Float[Array, "S G H"] | None  # of the columns of W; None stands for one
    R_scale: Float[Array, "S G H"] | None


class Primals(NamedTuple):
    """The arrays to differentiate with respect to.

    The same tuple is also used for their tangents, and for one flag or one number for each of them.
    """

    weights: Any  # `Weights`, or `PreparedWeights`, which have no derivative
    xs: Any  # [S B T I]
    state: Any  # [S B F H]

    def flat(self) -> tuple[Any, ...]:
        """All of them in one tuple, including those that are None."""
        return *self.weights, self.xs, self.state

    @classmethod
    def of(cls, flat: Iterable[PyTree]) -> "Primals":
        """The inverse of `flat`."""
        *weights, xs, state = flat
        return cls(Weights(*weights), xs, state)


class SequenceMarks(NamedTuple):
    """The number of valid steps of each sequence, and the steps before which its state is reset."""

    length: Int[Array, "S B"] | None  # int32, from 0 to T: steps from there on are ignored
    resets: Bool[Array, "S B T"] | None  # those at or after `length` have no effect


class Sequences(NamedTuple):
    """The arrays that each sequence has of its own."""

    xs: Float[Array, "S B T I"]
    state: Float[Array, "S B F H"]
    length: Int[Array, "S B"] | None
    resets: Bool[Array, "S B T"] | None

    @classmethod
    def of(cls, primals: Primals, marks: SequenceMarks) -> "Sequences":
        """The sequences of a call of a primitive."""
        return cls(primals.xs, primals.state, *marks)


class Trajectory(NamedTuple):
    """The results of `forward`, all in the carry's dtype."""

    states: tuple[Float[Array, "S B T H"] | None, ...]  # by field; at an ignored step, the state before it
    last: Float[Array, "S B F H"]
    residuals: Float[Array, "S B T C H"]  # for `backward`


class Cotangents(NamedTuple):
    """The results of the backward half; None where no gradient is needed. Those of weights are in the carry's dtype."""

    weights: Weights  # each array leads with S, even if its weight is shared
    xs: Float[Array, "S B T I"] | None
    state: Float[Array, "S B F H"] | None


class NeedsGradient(NamedTuple):
    """Which of the `Primals` need a gradient: a bool for each."""

    weights: Weights
    xs: bool
    state: bool


class KernelPlan(abc.ABC):
    """How a kernel runs one cell: hashable, a static parameter of the primitives, made once per trace.

        u_t = W x_t + b        v_t = R h_{t-1}        state_t = pointwise(unit_parameters, u_t, v_t, state_{t-1})

    Subclass requirements: a frozen dataclass with the field below, and these properties.
    - Both halves trace `pointwise` (and `jax.vjp` of it), so that a new cell needs no new kernel.
    - Weights and inputs have one dtype; states, their cotangents and all sums are in its `carry_dtype`.
    - `length` and `resets` are applied inside the kernel, so that ignored steps cost little.
    - `<tangent(t), c> == <t, backward(c)>`.
    """

    pointwise: Pointwise
    exported: bool = True  # whether a program that is lowered for `jax.export` holds its calls; else the reference

    @property
    def residual_size(self) -> int:
        """C, how many vectors [H] of every step `forward` stores for `backward`."""
        return 0

    @abc.abstractmethod
    def __str__(self) -> str:
        """How it runs, in one line that begins with the name of the kernel."""

    @abc.abstractmethod
    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        """All states.

        residual_size   the C of `residuals`: zero, or at least `self.residual_size` (another platform may need more)
        used_outputs    for each field whether its states are used; if not, they are None. `backward` needs all
        """

    @abc.abstractmethod
    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        """The transpose of the derivative of `forward`, at its own `trajectory`.

        None stands for a cotangent of zero; at least one is not None. `needs_gradient` says which results are computed.
        """


class PreparedPlan(abc.ABC):
    """How a kernel runs the forward half of one cell whose weights were packed ahead: hashable, as a `KernelPlan`.

    Subclass requirements: a frozen dataclass with the field below. All is computed in the carry's dtype.
    """

    pointwise: Pointwise
    exported: bool = True  # as of a `KernelPlan`

    @abc.abstractmethod
    def __str__(self) -> str:
        """How it runs, in one line that begins with the name of the kernel."""

    @abc.abstractmethod
    def forward(
        self, weights: PreparedWeights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        """All states, as `KernelPlan.forward`; `residual_size` is zero."""


class AbstractKernel(eqx.Module):
    """The recurrence of any `AbstractGatedCell` on one platform: projection, steps, and the gradients of both.

    Subclass requirements: `plan`, and `plan_prepared` where it runs prepared weights. Options live on the object.
    """

    @abc.abstractmethod
    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        """How this kernel runs such a cell, or why it cannot. `weights` may be arrays or shapes alone."""

    def plan_prepared(self, pointwise: Pointwise, weights: PreparedWeights) -> PreparedPlan | Refusal:
        """How this kernel runs a cell whose weights were packed ahead, or why it cannot."""
        del pointwise, weights
        return Refusal(f"The {type(self).__name__} kernel does not run prepared weights.")


def carried(weights: Weights) -> jnp.dtype:
    """The dtype of states, unit parameters and sums."""
    return carry_dtype(weights.W.dtype)
