"""The dense Jacobian: the derivative of every number of a state by every other."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...arrays import PyTree, State
from . import time
from .blocks import Blocks, Vectors
from .jacobian import AbstractJacobian
from .memory import shortage
from .problem import Problem


class Dense(AbstractJacobian):
    """The whole Jacobian, D x D for a state of D numbers: Newton's method, DEER (Lim et al. 2024, arXiv:2309.12252).

    One iteration takes memory of T D^2 and work of T D^3: for few units, and many steps.
    """

    remedy: ClassVar[str] = "Use Newton(Diagonal()), fewer or shorter sequences, or Scan()"

    def refusal(self, state: State, T: int, damped: bool) -> str | None:
        leaves = jax.tree.leaves(state)
        D = sum(leaf.size for leaf in leaves)
        return shortage((T, D, D), leaves[0].dtype.itemsize, damped, self.remedy)

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

    def propagate(
        self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: str | None
    ) -> Vectors:
        return time.recurrence(self.evaluate(problem, befores)[1], moved, start, axis)
