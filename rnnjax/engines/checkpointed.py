"""The engine `Checkpointed`: a scan in segments, which the gradient computes a second time to save memory."""

import math
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .. import check
from ..arrays import PyTree, Shaped, State, States, count_steps, widen
from ..cell import AbstractCell
from ..engine import AbstractEngine, Plan, marked_step, refuse_symbolic, steps_of
from ..marks import Marks
from ..refusal import Refusal


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

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = count_steps(xs)
        whole = T - T % self.segment
        inputs = xs, marks.over_time(T)
        wide, narrow = widen(cell)

        # Each segment slices its steps out of the inputs: a scan over reshaped inputs would copy all of them first.
        def run_segment(steps: int, state: State, start: Int[Array, ""]) -> tuple[State, States]:
            part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, steps), inputs)
            cell = narrow(wide)
            us_and_marks = cell.project(part[0]), part[1]
            return jax.lax.scan(partial(marked_step, steps_of(cell), marks.initial), state, us_and_marks)

        starts = jnp.arange(0, whole, self.segment)
        state, folded = jax.lax.scan(jax.checkpoint(partial(run_segment, self.segment)), state, starts)
        states = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), folded)
        if whole == T:
            return state, states
        state, remainder = jax.checkpoint(partial(run_segment, T - whole))(state, jnp.asarray(whole))
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), states, remainder)
