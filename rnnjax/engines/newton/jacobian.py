"""The Jacobian of a step by the state before it, as `Newton` uses it: all of it, or its diagonal."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
from jaxtyping import Array

from ...arrays import PyTree, State
from ...marks import StepMarks
from .blocks import Blocks, Vectors
from .problem import Problem


class AbstractJacobian(eqx.Module):
    """A choice of Jacobian: how a state is laid out as [K, n], and its K blocks [n, n] at every step.

    Subclass requirements: `remedy`; `pack`, `unpack`, `evaluate`, and `propagate`, which is exact even if `evaluate` is
    an approximation.
    """

    remedy: ClassVar[str]  # what to do if there is too little memory

    @abc.abstractmethod
    def refusal(self, state: State, T: int, damped: bool) -> str | None:
        """Why T steps of a cell with this state cannot be solved for, and what to do; None if they can."""

    @abc.abstractmethod
    def pack(self, state: State) -> Vectors:
        """One state as [K, n]."""

    @abc.abstractmethod
    def unpack(self, vectors: Vectors, like: State) -> State:
        """The inverse of `pack`."""

    @abc.abstractmethod
    def evaluate(self, problem: Problem, befores: Vectors) -> tuple[Vectors, Blocks]:
        """The states after each step from `befores`, and their derivatives."""

    @abc.abstractmethod
    def propagate(
        self, problem: Problem, befores: Vectors, moved: Vectors, start: Vectors, axis: str | None
    ) -> Vectors:
        """The exact tangents t_t = J_t t_{t-1} + moved_t of all states, from t_0 = `start`; J at `befores`."""

    def flat(
        self, problem: Problem, step: Callable[[State, PyTree], State], u: PyTree[Array], marks: StepMarks
    ) -> Callable[[Vectors], Vectors]:
        """One step as a function from [K, n] to [K, n]."""
        return lambda x: self.pack(problem.step(step, self.unpack(x, problem.start), u, marks))
