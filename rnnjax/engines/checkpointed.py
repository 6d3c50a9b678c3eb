"""The engine `Checkpointed`: a scan that forgets, and computes again when the gradient asks."""

import math
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..arrays import PyTree, Shaped, State, States, count_steps, widen
from ..cell import AbstractCell
from ..engine import AbstractEngine, Plan, marked_step, refuse_symbolic, steps_of
from ..marks import Marks
from ..refusal import Refusal


class Checkpointed(AbstractEngine):
    """`Scan` in segments, of which the gradient keeps only the states in between (Chen et al. 2016, arXiv:1604.06174).

    Any cell. Memory of the gradient of a loss on the last state falls from T to about T / segment + segment steps, for
    one more forward pass; the projection too is made segment by segment. `segment` is a number of steps, sqrt(T) where
    None; T need not be a multiple. A loss on all outputs keeps those, as any engine must.
    """

    segment: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        segment = self.segment
        if segment is not None and (isinstance(segment, bool) or not isinstance(segment, int) or segment < 1):
            raise ValueError(
                f"segment: expected a positive number of steps or None, got {segment!r}. "
                "Pass None for segments of sqrt(T) steps"
            )

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        symbolic = refuse_symbolic("Checkpointed", cell, xs)
        if symbolic is not None:
            return symbolic
        T = count_steps(xs)
        return CheckpointedPlan(min(self.segment or math.isqrt(T - 1) + 1, T)).over_parts(axis)


@dataclass(frozen=True)
class CheckpointedPlan(Plan):
    """Segments of so many steps, the last one of what is left."""

    segment: int

    def __str__(self) -> str:
        return f"Checkpointed: step by step, in segments of {self.segment} steps that the gradient computes again"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = count_steps(xs)
        whole = T - T % self.segment
        inputs = xs, marks.over_time(T)
        wide, narrow = widen(cell)

        # Each segment slices what it needs out of the whole: to scan over folded inputs would copy all of them first.
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
