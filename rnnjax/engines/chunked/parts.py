"""Parts of time of a matrix cell, one on each device of a mesh axis, all at once."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ...arrays import PyTree, State
from ...cell import AbstractCell
from ...engine import Plan
from ...kernels.matrix_scan.primitive import matrix_scan
from ...marks import Marks, poisoned
from ...matrix_cell import AbstractMatrixCell, Matrix
from .operands import operands_of, transitions


@dataclass(frozen=True)
class ChunkedPartsPlan(Plan):
    """`part` on each device, from the state before its part of time.

    A part as a whole is a map S -> F S + B: F is a matrix for each head, or without an erase the product of the decays.
    All devices compute theirs at once, by columns beside those of the values, which start from the identity; they
    exchange these maps, and run their parts a second time.
    """

    part: Plan
    size: int
    pallas: bool
    axis: str

    def __str__(self) -> str:
        return f"{self.part}; all parts along {self.axis!r} at once"

    @property
    def part_axis(self) -> str | None:
        return self.axis

    @property
    def notes(self) -> tuple[str, ...]:
        return self.part.notes

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        assert isinstance(cell, AbstractMatrixCell)
        erases = jax.eval_shape(partial(transitions, cell), xs).erase is not None
        identity = _identity(state.S, erases)
        nothing = Matrix(_beside(jnp.zeros_like(state.S), identity))
        initial = Matrix(_beside(marks.initial.S, jnp.zeros_like(identity)))
        of_part = partial(self._run_map, cell, state.S.shape[-1])
        after, _ = poisoned(of_part, nothing, xs, marks._replace(initial=initial))
        is_reset = jnp.asarray(False) if marks.resets is None else marks.resets.any()
        before = self._hand_on(state.S, after.S, is_reset, erases)
        return self.part.run(cell, Matrix(before), xs, marks)

    def _run_map(
        self, cell: AbstractMatrixCell, V: int, state: Matrix, xs: PyTree[Array], marks: Marks
    ) -> tuple[Matrix, Inexact[Array, "T N W"]]:
        """[B, F] of a part, for V columns of values."""
        narrow = lambda matrix: Matrix(matrix.S[..., :V])  # noqa: E731
        operands = operands_of(cell, narrow(state), xs, marks._replace(initial=narrow(marks.initial)))
        value = operands.steps.value
        more = jnp.zeros((*value.shape[:-1], state.S.shape[-1] - V), value.dtype)
        operands = operands._replace(
            steps=operands.steps._replace(value=_beside(value, more)),
            state=state.S,
            start=None if operands.start is None else marks.initial.S,
        )
        ys, last = matrix_scan(operands, reads_before=cell.reads_before, size=self.size, pallas=self.pallas)
        return Matrix(last), ys

    def _hand_on(
        self, S: Inexact[Array, "N K V"], own: Inexact[Array, "N K W"], is_reset: Array, erases: bool
    ) -> Inexact[Array, "N K V"]:
        """The state before this device's part, from the one before the whole and the maps of all parts."""

        def pass_part(S: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
            offset, factor = jnp.split(part[0], (S.shape[-1],), axis=-1)
            kept = jnp.where(part[1], jnp.zeros_like(S), S)  # a state that is not finite ends at a reset
            moved = jnp.matmul(factor, kept, precision=jax.lax.Precision.HIGHEST) if erases else factor * kept
            return moved + offset, S

        # Tiled along an axis of its own: JAX's transpose of the other form is wrong under `vmap`.
        parts = jax.lax.all_gather((own[None], is_reset[None]), self.axis, tiled=True)
        _, befores = jax.lax.scan(pass_part, S, parts)
        return befores[jax.lax.axis_index(self.axis)]


def _identity(S: Inexact[Array, "N K V"], erases: bool) -> Inexact[Array, "N K E"]:
    """The map that changes nothing: a matrix for each head; without an erase, a column of factors for its rows."""
    N, K, _ = S.shape
    one = jnp.eye(K, dtype=S.dtype) if erases else jnp.ones((K, 1), S.dtype)
    return jnp.broadcast_to(one[None], (N, *one.shape))


def _beside(values: Inexact[Array, "*L V"], others: Inexact[Array, "*L E"]) -> Inexact[Array, "*L W"]:
    return jnp.concatenate([values, others], axis=-1)
