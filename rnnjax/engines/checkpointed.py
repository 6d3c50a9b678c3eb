"""The engine `Checkpointed`: a scan in segments, which the gradient computes a second time to save memory."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, Shaped, State, count_steps
from ..cell import AbstractCell
from ..engine import AbstractEngine, Plan, refuse_symbolic, scan_body
from ..marks import Marks, StepMarks
from ..refusal import Refusal
from ..segments import in_segments


class Checkpointed(AbstractEngine):
    """`Scan` in segments; the gradient stores only the states between them (Chen et al. 2016, arXiv:1604.06174).

    Any cell. For a loss on the last state, the memory of the gradient is that of about T / segment + segment steps
    rather than T, at the cost of one more forward pass; the projection is computed segment by segment, too. `segment`
    is a number of steps, by default sqrt(T); T need not be a multiple. A loss on all outputs needs the memory of all
    outputs, as with any engine.
    """

    segment: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.segment is not None:
            remedy = "Pass None for segments of sqrt(T) steps"
            check.positive("segment", self.segment, "a positive number of steps or None", remedy)

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        symbolic = refuse_symbolic("Checkpointed", cell, xs)
        if symbolic is not None:
            return symbolic
        T = count_steps(xs)
        return CheckpointedPlan(min(self.segment or math.isqrt(T - 1) + 1, T)).over_parts(axis)


@dataclass(frozen=True)
class CheckpointedPlan(Plan):
    """Segments of `segment` steps; the last one may be shorter."""

    segment: int

    def __str__(self) -> str:
        return f"Checkpointed: step by step, in segments of {self.segment} steps that the gradient computes again"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        def steps(cell: AbstractCell, state: State, xs: PyTree[Array], part: StepMarks) -> tuple[State, PyTree[Array]]:
            return jax.lax.scan(scan_body(cell, marks.initial), state, (cell.project(xs), part))

        return in_segments(steps, self.segment, cell, state, xs, marks)
