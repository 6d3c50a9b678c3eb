"""The engine `Chunked`: matrix-state cells by a compiled recurrence on CPUs, and by matrix products elsewhere."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
from jaxtyping import Array

from ... import check
from ...arrays import PyTree, Shaped, State, count_steps
from ...cell import AbstractCell, describe
from ...engine import AbstractEngine, Plan, refuse_symbolic
from ...kernels.matrix_scan import cpu
from ...kernels.matrix_scan.primitive import matrix_scan
from ...kernels.matrix_scan.tiles import misfit
from ...marks import Marks, poisoned
from ...matrix_cell import AbstractMatrixCell, Matrix
from ...refusal import Refusal
from .operands import operands_of
from .parts import ChunkedPartsPlan


class Chunked(AbstractEngine):
    """Matrix-state cells: on CPUs a compiled recurrence, elsewhere matrix products in chunks of `size` steps (Hua et
    al. 2022, arXiv:2202.10447; Yang et al. 2024, arXiv:2312.06635 and arXiv:2406.06484).

    The compiled code runs real cells step by step, on a state that stays in the first-level cache; its gradient stores
    nothing, and computes the states again. In chunks one state passes through memory for each chunk in place of one
    for each step, and the gradient stores no more: it computes each chunk a second time. Decays are multiplied, and
    never divided or taken the logarithm of, so zero, negative and complex decays are exact, and small ones do not
    overflow. T need not be a multiple of `size`. Chunks also run complex cells, programs of `jax.export`, forward mode
    and second derivatives, and everything if the CPU kernel was not built, or if JAX runs on GPUs or TPUs by default.
    Ignored steps cost no time in the compiled code.

    The coefficients of all steps are computed at once, in the dtype of the state, with a row for each head also where
    heads share keys. Under `jax.vmap` the batch is one call, for which what is not mapped is copied. A batch that is
    sharded over devices stays so under `jax.shard_map`; without it the compiled recurrence gathers the batch.

    From the first input on that is not finite, all heads are NaN up to the next reset, and their gradients. In chunks,
    if decays may exceed one in modulus, or an erase grows the state, a product of many steps can overflow and make a
    whole chunk NaN, where step by step a state of zero would stay zero, or a reset would end the overflow: use `Scan`.

    size          the number of steps in a chunk, a power of two
    min_steps     shorter sequences are refused
    needs_kernel  whether to refuse cells that the compiled recurrence does not run
    pallas        on CUDA and TPU, run the kernels written in Pallas, which keep the state on the chip. They are
                  experimental: no device has measured them. Cells that they do not run are refused
    """

    size: int = eqx.field(static=True, default=64)
    min_steps: int = eqx.field(static=True, default=1)
    needs_kernel: bool = eqx.field(static=True, default=False)
    pallas: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        remedy = "Pass a power of two, such as 64"
        check.positive("size", self.size, "a power of two", remedy)
        if self.size & (self.size - 1):
            raise ValueError(f"size: expected a power of two, got {self.size!r}. {remedy}")
        check.positive("min_steps", self.min_steps, "a positive number of steps", "Pass 1 for sequences of any length")
        check.flags(needs_kernel=self.needs_kernel, pallas=self.pallas)

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
        if self.min_steps > T:
            return Refusal(
                f"Chunked(min_steps={self.min_steps}) does not run {T} steps of {describe(cell)}. Use Scan()."
            )
        S = jax.eval_shape(cell.initial).S
        compiled = cpu.is_here_for(S.dtype)
        if self.needs_kernel and not compiled:
            return Refusal(
                f"Chunked(needs_kernel=True) cannot run {describe(cell)}: there is no compiled recurrence for it here. "
                "Use Scan() or Chunked()."
            )
        unfit = misfit(S.shape[1], S.dtype) if self.pallas else None
        if unfit is not None:
            return Refusal(f"Chunked(pallas=True) cannot run {describe(cell)}: {unfit}. Use Scan() or Chunked().")
        plan = ChunkedPlan(min(self.size, 1 << (T - 1).bit_length()), compiled, self.pallas)
        return plan if axis is None else ChunkedPartsPlan(plan, plan.size, self.pallas, axis)


@dataclass(frozen=True)
class ChunkedPlan(Plan):
    """The compiled recurrence, or chunks of `size` steps."""

    size: int
    compiled: bool  # on a CPU
    pallas: bool

    def __str__(self) -> str:
        chunks = f"matrix products in chunks of {self.size} steps that the gradient computes again"
        others = "their kernels (experimental: no device has measured them)" if self.pallas else chunks
        if self.compiled:
            return f"Chunked: compiled recurrence on CPUs; GPUs and TPUs by {others}"
        return f"Chunked: CPUs by {chunks}; GPUs and TPUs by {others}" if self.pallas else f"Chunked: {chunks}"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        return poisoned(partial(self._run, cell), state, xs, marks)

    def _run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        assert isinstance(cell, AbstractMatrixCell)
        operands = operands_of(cell, state, xs, marks)
        ys, last = matrix_scan(operands, reads_before=cell.reads_before, size=self.size, pallas=self.pallas)
        return Matrix(last), ys
