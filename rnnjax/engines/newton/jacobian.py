"""What `Newton` takes for the derivative of a step by the state before it: all of it, or its diagonal."""

import abc
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...arrays import State, cast
from ...cell import AbstractCell, AbstractDiagonalCell, AbstractGatedCell, describe, recur
from . import time
from .blocks import Blocks, Vectors
from .problem import Problem

COPIES = 4  # of all Jacobians that a parallel scan of them holds at once


class AbstractJacobian(eqx.Module):
    """A choice of Jacobian: how a state is laid out as [K, n], and its K blocks [n, n] at every step.

    Subclass requirements: `pack`, `unpack`, `evaluate`, and `propagate`, which is exact whatever `evaluate` leaves out.
    """

    @abc.abstractmethod
    def refusal(self, cell: AbstractCell, T: int) -> str | None:
        """Why `cell` cannot be solved with it over T steps, and what to do; None if it can."""

    @abc.abstractmethod
    def pack(self, state: State) -> Vectors:
        """One state as [K, n]."""

    @abc.abstractmethod
    def unpack(self, vectors: Vectors, like: State) -> State:
        """The inverse of `pack`."""

    @abc.abstractmethod
    def evaluate(self, problem: Problem, befores: Vectors) -> tuple[Vectors, Blocks]:
        """The states after each step from `befores`, and the derivatives of them."""

    @abc.abstractmethod
    def propagate(self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: Any) -> Vectors:
        """The exact tangents t_t = J_t t_{t-1} + moved_t of the trajectory, from t_0 = `start`; J at `befores`."""

    def flat(self, problem: Problem, step: Any, u: PyTree[Array], marks: Any) -> Callable[[Vectors], Vectors]:
        """One step as a function from [K, n] to [K, n]."""
        return lambda x: self.pack(problem.step(step, self.unpack(x, problem.start), u, marks))


class Dense(AbstractJacobian):
    """All of it, D x D for a state of D numbers: Newton's method proper, DEER (Lim et al. 2024, arXiv:2309.12252).

    Memory of T D^2 and work of T D^3 for one iteration: for few units, and many steps.
    """

    def refusal(self, cell: AbstractCell, T: int) -> str | None:
        leaves = jax.tree.leaves(jax.eval_shape(cell.initial))
        D = sum(leaf.size for leaf in leaves)
        needed, available = COPIES * T * D * D * leaves[0].dtype.itemsize, memory()
        if available is None or needed <= available:
            return None
        return (
            f"its Jacobians, {T} of {D} x {D}, and the scan of them take {needed / 1e9:.0f} GB, "
            f"and there are {available / 1e9:.0f} GB. Use Newton(Diagonal()), shorter sequences, or Scan()"
        )

    def pack(self, state: State) -> Vectors:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(state)])[None]

    def unpack(self, vectors: Vectors, like: State) -> State:
        leaves, structure = jax.tree.flatten(like)
        ends = [0]
        for leaf in leaves:
            ends.append(ends[-1] + leaf.size)
        parts = [
            vectors[0, first:last].reshape(leaf.shape)
            for leaf, first, last in zip(leaves, ends[:-1], ends[1:], strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    def evaluate(self, problem: Problem, befores: Vectors) -> tuple[Vectors, Blocks]:
        units = jnp.eye(befores.shape[-1], dtype=befores.dtype)[:, None]

        def one(x: Vectors, u: PyTree[Array], marks: Any) -> tuple[Vectors, Blocks]:
            after, derivative = jax.linearize(self.flat(problem, problem.cell.step, u, marks), x)
            return after, jnp.moveaxis(jax.vmap(derivative)(units), 0, -1)

        return problem.over_time(one, befores)

    def propagate(self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: Any) -> Vectors:
        return time.recurrence(self.evaluate(problem, befores)[1], moved, start, axis)


class Diagonal(AbstractJacobian):
    """The diagonal: a block of n x n for each unit, n being the fields of the state. Memory and work of T H.

    All there is for an `AbstractDiagonalCell`, such as `IndRNN`, `DiagonalGRU`, `DiagonalLSTM` and every linear cell:
    Newton's method proper at the price of a linear cell. Of any other cell whose state is made of vectors of H units it
    leaves out what units see of each other, a quasi-Newton method (Gonzalez et al. 2024, arXiv:2407.19115): more
    iterations, each far cheaper than with `Dense`; the fewer, the weaker R. The gradient is exact in either case, but
    goes step by step where the cell is not diagonal.
    """

    def refusal(self, cell: AbstractCell, T: int) -> str | None:
        del T
        shapes = {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(cell.initial))}
        if len(shapes) == 1 and all(len(shape) == 1 for shape in shapes):
            return None
        return f"its state is not made of vectors of the same units, {sorted(shapes)}. Use Newton(Dense()) or Scan()"

    def pack(self, state: State) -> Vectors:
        return jnp.stack(jax.tree.leaves(state), -1)

    def unpack(self, vectors: Vectors, like: State) -> State:
        return jax.tree.unflatten(jax.tree.structure(like), list(jnp.moveaxis(vectors, -1, 0)))

    def evaluate(self, problem: Problem, befores: Vectors) -> tuple[Vectors, Blocks]:
        step, is_diagonal = _own_past(problem.cell)
        derive = _by_fields if is_diagonal else _by_units

        def one(x: Vectors, u: PyTree[Array], marks: Any) -> tuple[Vectors, Blocks]:
            return derive(self.flat(problem, step, u, marks), x)

        return problem.over_time(one, befores)

    def propagate(self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: Any) -> Vectors:
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


def _own_past(cell: AbstractCell) -> tuple[Any, bool]:
    """The step of `cell`, without what its units see of each other where that is known; and whether it was."""
    if isinstance(cell, AbstractDiagonalCell):
        return cell.step, True
    if isinstance(cell, AbstractGatedCell) and type(cell).step is AbstractGatedCell.step:
        return partial(_gated_own_past, cell), True
    return cell.step, False


def _gated_own_past(cell: AbstractGatedCell, state: Any, u: Any) -> State:
    """The step of `cell`, in which a change of one unit's h changes v = R h for that unit alone."""
    heads, units, gates, _ = cell.recurrent_weight.shape
    own = jnp.einsum("npgp->gnp", cell.recurrent_weight).reshape(gates, heads * units).astype(state.h.dtype)
    h = jax.lax.stop_gradient(state.h)
    v = recur(cell.recurrent_weight, h) + own * (state.h - h)
    return cell.pointwise(cast(cell.gains, h.dtype), u.astype(h.dtype), v, state)


def _by_fields(function: Callable[[Vectors], Vectors], x: Vectors) -> tuple[Vectors, Blocks]:
    """A function of units by themselves and its Jacobian, from one derivative by each field of all units at once."""
    after, derivative = jax.linearize(function, x)
    fields = jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype)[:, None], (x.shape[1], *x.shape))
    return after, jnp.moveaxis(jax.vmap(derivative)(fields), 0, -1)


def _by_units(function: Callable[[Vectors], Vectors], x: Vectors) -> tuple[Vectors, Blocks]:
    """A function and the blocks on the diagonal of its Jacobian, unit by unit: one row of them is held at a time."""
    after, derivative = jax.linearize(function, x)

    def block(unit: Array) -> Array:
        fields = jnp.zeros((x.shape[1], *x.shape), x.dtype).at[:, unit].set(jnp.eye(x.shape[1], dtype=x.dtype))
        return jax.vmap(derivative)(fields)[:, unit].T

    return after, jax.lax.map(block, jnp.arange(x.shape[0]))


def memory() -> int | None:
    """Bytes of memory of the device that computes, or of this machine; None where nobody knows."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
