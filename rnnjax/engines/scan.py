"""The engine `Scan`: one step after the other, as one compiled loop."""

from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, Shaped, State, States, count_steps
from ..cell import AbstractCell
from ..engine import AbstractEngine, Plan, scan_body
from ..marks import Marks
from ..refusal import Refusal


class Scan(AbstractEngine):
    """`jax.lax.scan`: any cell; compile time does not grow with T. The baseline of the tests and the benchmarks.

    For the gradient every step's intermediate results are stored: memory of about T times the gates. If that is too
    much, use `Checkpointed`. `unroll` steps are compiled into one turn of the loop.
    """

    unroll: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        remedy = "Pass 1 for one step in each turn of the loop"
        check.positive("unroll", self.unroll, "a positive number of steps", remedy)

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        del cell, xs
        return ScanPlan(self.unroll).over_parts(axis)


@dataclass(frozen=True)
class ScanPlan(Plan):
    """One step after the other, `unroll` of them to a turn of the loop."""

    unroll: int = 1

    def __str__(self) -> str:
        return "Scan: step by step" + (f", {self.unroll} steps to a turn of the loop" if self.unroll > 1 else "")

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = count_steps(xs)
        inputs = cell.project(xs), marks.over_time(T)
        return jax.lax.scan(scan_body(cell, marks.initial), state, inputs, unroll=self.unroll)
