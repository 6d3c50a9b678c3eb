"""The diagonal of a Jacobian: the derivative of each unit's fields by themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...arrays import PyTree, State, by_gate, by_head
from ...cell import AbstractCell, AbstractDiagonalCell, describe
from ...gated_cell import AbstractGatedCell, recur
from . import time
from .blocks import Blocks, Vectors
from .jacobian import AbstractJacobian
from .memory import shortage
from .problem import Problem


class Diagonal(AbstractJacobian):
    """The diagonal: a block of n x n for each unit, where n is the number of fields of the state, in memory of T H.

    For an `AbstractDiagonalCell`, such as `IndRNN`, `DiagonalGRU`, `DiagonalLSTM` and every linear cell, this is the
    whole Jacobian: Newton's method at the cost of a linear cell. For any other cell whose fields are vectors of H units
    it neglects the derivatives between units, a quasi-Newton method (Gonzalez et al. 2024, arXiv:2407.19115), which
    takes more iterations the stronger R is. An iteration costs little more than a step for an `AbstractGatedCell`, and
    H derivatives of a step for a plain cell. The gradient is exact in either case, but if the cell is not diagonal it
    is computed step by step.
    """

    remedy: ClassVar[str] = "Use fewer or shorter sequences, or Scan()"

    def refusal(self, state: State, T: int, damped: bool) -> str | None:
        leaves = jax.tree.leaves(state)
        shapes, n = {leaf.shape for leaf in leaves}, len(leaves)
        if len(shapes) == 1 and leaves[0].ndim == 1:
            return shortage((T, leaves[0].size, n, n), leaves[0].dtype.itemsize, damped, self.remedy)
        return f"its state is not made of vectors of the same units, {sorted(shapes)}. Use Newton(Dense()) or Scan()"

    def pack(self, state: State) -> Vectors:
        return jnp.stack(jax.tree.leaves(state), -1)

    def unpack(self, vectors: Vectors, like: State) -> State:
        return jax.tree.unflatten(jax.tree.structure(like), list(jnp.moveaxis(vectors, -1, 0)))

    def evaluate(self, problem: Problem, befores: Vectors) -> tuple[Vectors, Blocks]:
        step, is_diagonal = own_past(problem.cell)
        derive = _by_fields if is_diagonal else _by_units

        def one(x: Vectors, u: PyTree[Array], marks: Any) -> tuple[Vectors, Blocks]:
            return derive(self.flat(problem, step, u, marks), x)

        return problem.over_time(one, befores)

    def propagate(
        self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: str | None
    ) -> Vectors:
        if isinstance(problem.cell, AbstractDiagonalCell):
            return time.recurrence(self.evaluate(problem, befores)[1], moved, start, axis)

        def advance(tangent: Vectors, inputs: Any) -> tuple[Vectors, Vectors]:
            x, moved, u, marks = inputs
            derived = jax.jvp(self.flat(problem, problem.cell.step, u, marks), (x,), (tangent,))[1] + moved
            return derived, derived

        if axis is not None:
            raise ValueError(
                f"engine: the gradient of Newton(Diagonal()) goes step by step for {describe(problem.cell)}, which is "
                "no AbstractDiagonalCell, and parts of time cannot. Use Newton(Dense()), or Sharded(Scan(), ...)"
            )
        return jax.lax.scan(advance, start, (befores, moved, problem.us, problem.marks))[1]


def own_past(cell: AbstractCell) -> tuple[Callable[[State, PyTree], State], bool]:
    """The step of `cell`, without the influence between units if that can be left out; and whether it is."""
    if isinstance(cell, AbstractDiagonalCell):
        return cell.step, True
    if isinstance(cell, AbstractGatedCell) and type(cell).step is AbstractGatedCell.step:
        return partial(_gated_own_past, cell), True
    return cell.step, False


def _gated_own_past(cell: AbstractGatedCell, state: Any, u: Any) -> State:
    """The step of `cell`, where the derivative of v = R h by h is the diagonal of R alone."""
    gates = len(cell.gates)
    blocks = by_gate(by_head(cell.recurrent_weight), gates)
    own = jnp.einsum("ndgd->gnd", blocks).reshape(gates, cell.hidden_size).astype(state.h.dtype)
    h = jax.lax.stop_gradient(state.h)
    v = recur(cell.recurrent_weight, h, gates) + own * (state.h - h)
    return cell.advance(u, v, state)


def _by_fields(function: Callable[[Vectors], Vectors], x: Vectors) -> tuple[Vectors, Blocks]:
    """A function that does not mix units and its Jacobian, by one derivative for each field of all units at once."""
    after, derivative = jax.linearize(function, x)
    fields = jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype)[:, None], (x.shape[1], *x.shape))
    return after, jnp.moveaxis(jax.vmap(derivative)(fields), 0, -1)


def _by_units(function: Callable[[Vectors], Vectors], x: Vectors) -> tuple[Vectors, Blocks]:
    """A function and the blocks on the diagonal of its Jacobian, unit by unit: one block row is stored at a time."""
    after, derivative = jax.linearize(function, x)

    def block(unit: Array) -> Array:
        fields = jnp.zeros((x.shape[1], *x.shape), x.dtype).at[:, unit].set(jnp.eye(x.shape[1], dtype=x.dtype))
        return jax.vmap(derivative)(fields)[:, unit].T

    return after, jax.lax.map(block, jnp.arange(x.shape[0]))
