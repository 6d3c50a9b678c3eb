"""The engine `Unrolled`: a Python loop, where every step is a part of the compiled program."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree, Shaped, State, States, count_steps
from ..cell import AbstractCell
from ..engine import AbstractEngine, Plan, refuse_symbolic, scan_body
from ..marks import Marks
from ..refusal import Refusal


class Unrolled(AbstractEngine):
    """A Python loop over time, for study and for comparison: any cell, the same numbers as `Scan`.

    The program grows with T, and compile time with it: tens of seconds at T = 64, minutes soon after. Use `Scan`.
    """

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        return refuse_symbolic("Unrolled", cell, xs) or UnrolledPlan().over_parts(axis)


@dataclass(frozen=True)
class UnrolledPlan(Plan):
    """A Python loop."""

    def __str__(self) -> str:
        return "Unrolled: a Python loop, every step a piece of the program"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = count_steps(xs)
        inputs = cell.project(xs), marks.over_time(T)
        body, emitted = scan_body(cell, marks.initial), []
        leaves, structure = jax.tree.flatten(inputs)
        for t in range(T):
            step_inputs = jax.tree.unflatten(structure, [leaf[t] for leaf in leaves])
            state, put_out = body(state, step_inputs)
            emitted.append(put_out)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *emitted)
