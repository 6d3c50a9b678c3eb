"""The vector program of a cell: its columns, the residual of each, and both halves as code."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ....refusal import Refusal
from ..contract import Pointwise
from ..pointwise.expressions import OUTPUT, Graph
from ..pointwise.step import Column, Step
from ..pointwise.step import translate as translate_step
from .code import Code, assemble


class Program(NamedTuple):
    """`pointwise` of one unit, and its transposed derivative, where both products of a gate are one column if they can.

    forward    columns[C], before[F], gains[K]              -> after[F], residuals[C]
    backward   residuals[C], before[F], dafter[F], gains[K]      -> dcolumns[C], dbefore[F], dgains[K]

    The residual of a column is the column itself, or the last of what it alone goes through, such as an activation.
    """

    columns: tuple[Column, ...]
    forward: Code
    backward: Code


@lru_cache
def translate(pointwise: Pointwise, dtype: np.dtype) -> Program | Refusal:
    """The program of `pointwise` in the dtype that states are carried in, or why there is none."""
    step = translate_step(pointwise, dtype)
    return step if isinstance(step, Refusal) else _program(step, pointwise)


def _program(step: Step, pointwise: Pointwise) -> Program:
    columns, fields = _names("columns", len(step.columns)), _names("before", pointwise.fields)
    gains = _names("gains", pointwise.gains.num_leaves)
    residuals, backward = _residuals(step), Graph(step.graph.dtype)
    names = [*columns, *fields, *gains]
    forward = assemble(step.graph, [step.graph.input(name) for name in names], [*step.after, *residuals])
    replaced = {number: backward.input(("residuals", column)) for column, number in enumerate(residuals)}
    numbers = step.graph.into(backward, replaced)
    names = [*_names("residuals", len(columns)), *fields, *_names("dafter", pointwise.fields), *gains]
    transposed = [numbers[number] for number in _transposed(step)]
    return Program(step.columns, forward, assemble(backward, [backward.input(name) for name in names], transposed))


def _names(name: str, count: int) -> list[tuple[str, int]]:
    return [(name, row) for row in range(count)]


def _transposed(step: Step) -> list[int]:
    """The outputs of the backward code."""
    return [*step.dcolumns, *step.dbefore, *step.dgains]


def _residuals(step: Step) -> list[int]:
    """For each column the last node through which alone it is seen: with that, `backward` needs nothing before it."""
    forward, backward = step.graph.users(step.after), step.graph.users(_transposed(step))
    residuals = [step.graph.input(name) for name in _names("columns", len(step.columns))]
    for column, number in enumerate(residuals):
        while len(ahead := set(forward.get(number, ()))) == 1 and ahead.isdisjoint({OUTPUT}):
            if not ahead.issuperset(backward.get(number, ())):
                break
            (number,) = ahead
        residuals[column] = number
    return residuals
