"""The engine `Checkpointed`: a scan that forgets, and computes again when the gradient asks."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..arrays import State, States
from ..cell import AbstractCell
from ..engine import AbstractEngine, marked_step
from ..marks import Marks


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
            raise ValueError(f"segment: expected a positive number of steps or None, got {segment!r}")

    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        del cell, xs
        return None

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = jax.tree.leaves(xs)[0].shape[0]
        segment = min(self.segment or math.isqrt(T - 1) + 1, T)
        whole = T - T % segment
        inputs = xs, marks.over_time(T)

        @jax.checkpoint
        def run_segment(state, inputs):
            xs, step_marks = inputs
            return jax.lax.scan(partial(marked_step, cell, marks.initial), state, (cell.project(xs), step_marks))

        def fold(leaf):
            return leaf[:whole].reshape(whole // segment, segment, *leaf.shape[1:])

        state, folded = jax.lax.scan(run_segment, state, jax.tree.map(fold, inputs))
        states = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), folded)
        if whole == T:
            return state, states
        state, remainder = run_segment(state, jax.tree.map(lambda leaf: leaf[whole:], inputs))
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), states, remainder)
