"""The noun *strategy*: a way to spread a recurrence over a GPU."""

import abc
from typing import NamedTuple

from jaxtyping import Array, Float

from ...pallas import Interpret
from ..contract import Sequences, Weights
from ..pointwise.step import Step


class Problem(NamedTuple):
    """The arguments that both halves share."""

    name: str  # of the cell
    step: Step
    weights: Weights
    sequences: Sequences


class Loop(NamedTuple):
    """The results of the loop of the backward half."""

    dpre_activations: Float[Array, "S B T C H"]  # in the dtype of R
    dunit_parameters: Float[Array, "S B K H"] | None  # None where there are none
    dinitial: Float[Array, "S B F H"] | None  # None where there are no resets
    dstate: Float[Array, "S B F H"]


class AbstractStrategy(abc.ABC):
    """The loop over time of both halves; the large products are outside. Hashable; its `str` says how it runs."""

    @abc.abstractmethod
    def forward(
        self,
        problem: Problem,
        us: Float[Array, "S B T G H"],
        used_outputs: tuple[bool, ...],
        interpret: Interpret,
    ) -> tuple[tuple[Float[Array, "S B T H"] | None, ...], Float[Array, "S B F H"]]:
        """The states of the fields that are used, and the last state."""

    @abc.abstractmethod
    def backward(
        self,
        problem: Problem,
        pre_activations: Float[Array, "S B T C H"],
        before: Float[Array, "S B T F H"],
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"],
        interpret: Interpret,
    ) -> Loop:
        """The results of the loop, from the pre-activations and the states before the steps."""
