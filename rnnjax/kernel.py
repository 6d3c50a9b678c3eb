"""The noun *kernel*: how fast a gated cell goes, as a forward half and its transpose, on a batch."""

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from .arrays import RecurrentWeight, State, States
from .cell import AbstractGatedCell
from .marks import Marks


class Cotangents(NamedTuple):
    """What the backward half gives back, step by step; the weights' gradients are products of these, made outside."""

    dus: Float[Array, "B T G H"]
    dvs: Float[Array, "B T G H"]
    dgains: PyTree
    dstate: State


class AbstractKernel(eqx.Module):
    """The recurrence of any `AbstractGatedCell` on one platform, for a batch: every array but the weights leads with B.

    Subclass requirements: both halves trace `cell.pointwise` (and `jax.vjp` of it) on a cell stripped of its weights,
    so that a new cell needs no new kernel; the carry is float32 or wider; `marks` are honoured inside, so that a ragged
    batch pays for its valid steps alone; and `<tangent(t), c> == <t, backward(c)>`.
    """

    @abc.abstractmethod
    def refusal(self, cell: AbstractGatedCell, us: Float[Array, "B T G H"]) -> str | None:
        """Why this kernel cannot run `cell` on `us`, and what can; None if it can."""

    @abc.abstractmethod
    def forward(
        self,
        cell: AbstractGatedCell,
        us: Float[Array, "B T G H"],
        R: RecurrentWeight,
        gains: PyTree,
        state: State,
        marks: Marks,
    ) -> States:
        """The states over time, from the initial `state`."""

    @abc.abstractmethod
    def backward(
        self,
        cell: AbstractGatedCell,
        us: Float[Array, "B T G H"],
        R: RecurrentWeight,
        gains: PyTree,
        state: State,
        marks: Marks,
        states: States,
        dstates: States,
    ) -> Cotangents:
        """The transpose of `forward`'s derivative at `states`, applied to `dstates`."""
