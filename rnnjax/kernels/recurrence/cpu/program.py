"""The vector program of a cell: its pre-activations, the residual of each, and both halves as code."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ....refusal import Refusal
from ..contract import Pointwise
from ..pointwise.expressions import OUTPUT, Graph
from ..pointwise.step import PreActivation, Step
from ..pointwise.step import translate as translate_step
from .code import Code, assemble


class Program(NamedTuple):
    """`pointwise` of one unit, and its transposed derivative, where the two products of a gate
    share one pre-activation if they can.

    forward    pre_activations[C], before[F], unit_parameters[K]
               -> after[F], residuals[C]
    backward   residuals[C], before[F], dafter[F], unit_parameters[K]
               -> dpre_activations[C], dbefore[F], dunit_parameters[K]

    The residual of a pre-activation is the pre-activation itself, or the last value that is computed from it alone,
    such as its activation.
    """

    pre_activations: tuple[PreActivation, ...]
    forward: Code
    backward: Code


@lru_cache
def translate(pointwise: Pointwise, dtype: np.dtype) -> Program | Refusal:
    """The program of `pointwise` in the dtype that states are carried in, or why there is none."""
    step = translate_step(pointwise, dtype)
    return step if isinstance(step, Refusal) else _program(step, pointwise)


def _program(step: Step, pointwise: Pointwise) -> Program:
    pre_activations, fields = _names("pre_activations", len(step.pre_activations)), _names("before", pointwise.fields)
    unit_parameters = _names("unit_parameters", pointwise.unit_parameters.num_leaves)
    residuals, backward = _residuals(step), Graph(step.graph.dtype)
    names = [*pre_activations, *fields, *unit_parameters]
    forward = assemble(step.graph, [step.graph.input(name) for name in names], [*step.after, *residuals])
    replaced = {
        number: backward.input(("residuals", pre_activation)) for pre_activation, number in enumerate(residuals)
    }
    numbers = step.graph.into(backward, replaced)
    names = [*_names("residuals", len(pre_activations)), *fields, *_names("dafter", pointwise.fields), *unit_parameters]
    transposed = [numbers[number] for number in _transposed(step)]
    return Program(
        step.pre_activations, forward, assemble(backward, [backward.input(name) for name in names], transposed)
    )


def _names(name: str, count: int) -> list[tuple[str, int]]:
    return [(name, row) for row in range(count)]


def _transposed(step: Step) -> list[int]:
    """The outputs of the backward code."""
    return [*step.dpre_activations, *step.dbefore, *step.dunit_parameters]


def _residuals(step: Step) -> list[int]:
    """For each pre-activation, the last node that all its users depend on: `backward` needs nothing before it."""
    forward, backward = step.graph.users(step.after), step.graph.users(_transposed(step))
    residuals = [step.graph.input(name) for name in _names("pre_activations", len(step.pre_activations))]
    for pre_activation, number in enumerate(residuals):
        while len(ahead := set(forward.get(number, ()))) == 1 and ahead.isdisjoint({OUTPUT}):
            if not ahead.issuperset(backward.get(number, ())):
                break
            (number,) = ahead
        residuals[pre_activation] = number
    return residuals
