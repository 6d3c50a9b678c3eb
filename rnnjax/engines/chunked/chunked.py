"""The engine `Chunked`: matrix-state cells by matrix products, one chunk of time after the other."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
from jaxtyping import Array

from ... import check
from ...arrays import PyTree, Shaped, State, count_steps
from ...cell import AbstractCell, describe
from ...engine import AbstractEngine, Plan, refuse_symbolic
from ...kernels.matrix_scan.primitive import matrix_scan
from ...marks import Marks, poisoned
from ...matrix_cell import AbstractMatrixCell, Matrix
from ...refusal import Refusal
from .operands import operands_of
from .parts import ChunkedPartsPlan


class Chunked(AbstractEngine):
    """Matrix-state cells in chunks of `size` steps: within a chunk all is matrix products (Hua et al. 2022,
    arXiv:2202.10447; Yang et al. 2024, arXiv:2312.06635 and arXiv:2406.06484).

    One state passes through memory for each chunk in place of one for each step, and the gradient stores no more: it
    computes each chunk a second time. Decays are multiplied, and never divided or taken the logarithm of, so zero,
    negative and complex decays are exact, and small ones do not overflow. T need not be a multiple of `size`.

    `Auto` does not choose it: pass `engine=rnnjax.engines.Chunked()`. From the first input on that is not finite, all
    heads are NaN up to the next reset, and their gradients. If decays may exceed one in modulus, or an erase grows the
    state, a product of many steps can overflow and make a whole chunk NaN, where step by step a state of zero would
    stay zero, or a reset would end the overflow: use `Scan`.

    size    the number of steps in a chunk, a power of two
    """

    size: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        remedy = "Pass a power of two, such as 64"
        check.positive("size", self.size, "a power of two", remedy)
        if self.size & (self.size - 1):
            raise ValueError(f"size: expected a power of two, got {self.size!r}. {remedy}")

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        if not isinstance(cell, AbstractMatrixCell):
            return Refusal(f"Chunked cannot run {describe(cell)}: it needs an AbstractMatrixCell. Use Scan().")
        for name in ("step", "emit"):
            if getattr(type(cell), name) is not getattr(AbstractMatrixCell, name):
                return Refusal(f"Chunked cannot run {describe(cell)}: it overrides `{name}`. Use Scan().")
        symbolic = refuse_symbolic("Chunked", cell, xs)
        if symbolic is not None:
            return symbolic
        T = max(1, count_steps(xs))
        size = min(self.size, 1 << (T - 1).bit_length())
        plan = ChunkedPlan(size)
        return plan if axis is None else ChunkedPartsPlan(plan, size, axis)


@dataclass(frozen=True)
class ChunkedPlan(Plan):
    """Chunks of `size` steps."""

    size: int

    def __str__(self) -> str:
        return f"Chunked: matrix products in chunks of {self.size} steps that the gradient computes again"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        return poisoned(partial(self._run, cell), state, xs, marks)

    def _run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        assert isinstance(cell, AbstractMatrixCell)
        operands = operands_of(cell, state, xs, marks)
        ys, last = matrix_scan(operands, reads_before=cell.reads_before, size=self.size)
        return Matrix(last), ys
