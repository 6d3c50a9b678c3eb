"""The engine `Associative`: a linear cell, parallel in time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..arrays import PyTree, Shaped, State, States, Units, UnitsOverTime, count_steps, leading, select
from ..cell import AbstractCell, AbstractLinearCell, Hidden, describe
from ..check import flags, positive, show
from ..engine import AbstractEngine, Plan, before_step, refuse_symbolic
from ..kernels.linear_scan import cpu
from ..kernels.linear_scan.primitive import linear_scan
from ..kernels.linear_scan.sharded import scan_part
from ..marks import Marks, StepMarks
from ..refusal import Refusal
from ..segments import in_segments

SEGMENT = 64  # steps, of a cell that emits something else than its state


class Associative(AbstractEngine):
    """The steps of a linear cell as maps h -> a h + b, whose composition is associative (Blelloch 1990).

    On CPUs a kernel reads (a, b) and writes h, step by step within a sequence or a part of it. Elsewhere, and
    everywhere if `block` is a number of steps, plain JAX divides time into blocks, of about sqrt(T) steps or of
    `block`. All blocks run side by side, step by step, twice: first to compute the map of each block as a whole and,
    after these maps have been composed in the same way, to compute the states. T need not be a multiple. Work and
    memory are those of a loop, and compile time does not grow with T. If the CPU kernel was not built, one block is all
    of time.

    block    the number of steps in a block of plain JAX; None: the kernel if there is one, else about sqrt(T) steps
    pallas   on CUDA and TPU, run the kernels written in Pallas. They are experimental: no device has measured them

    The gradient is the same recurrence backwards. A batch that is sharded over devices stays so under `jax.shard_map`.
    In a program of `jax.export` it is plain JAX on CPUs, too, step by step; a symbolic T is refused. It needs an
    `AbstractLinearCell`; a nonlinear cell has to run step by step.

    If the cell emits something else than its state, such as `S6`, time is divided into segments of 64 or `block` steps,
    one after the other, and no more states are stored than those of one segment: the gradient computes them again.

    If |a| may exceed one, the product of many steps can overflow. Then blocks and parts that run at once (with a
    `block`, under `Sharded`, on GPUs and TPUs) may give NaN where a state of zero would stay zero step by step: use
    `Scan`.
    """

    block: int | None = eqx.field(static=True, default=None)
    pallas: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.block is not None:
            remedy = "Pass None to let the engine choose the size of a block"
            positive("block", self.block, "a positive number of steps or None", remedy)
        flags(pallas=self.pallas)
        if self.pallas and self.block is not None:
            raise ValueError(
                f"block: expected None with pallas=True, got {self.block!r}: blocks are plain JAX on every platform. "
                "Pass one of the two"
            )

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        if not isinstance(cell, AbstractLinearCell):
            return Refusal(f"Associative cannot run {describe(cell)}: it needs an AbstractLinearCell. Use Scan().")
        symbolic = refuse_symbolic("Associative", cell, xs)
        if symbolic is not None:
            return symbolic
        T = count_steps(xs)
        if not cell.emits_states:
            segment = min(T, SEGMENT if self.block is None else self.block)
            return EmittingPlan(segment, self.block, self.pallas).over_parts(axis)
        return AssociativePlan(self.block, self.pallas, axis, self.block is None and cpu.pays_for(T))


@dataclass(frozen=True)
class AssociativePlan(Plan):
    """The steps as maps h -> a h + b.

    A part of time as a whole is such a map, too: the devices of `axis` exchange these maps and run at the same time.
    """

    block: int | None
    pallas: bool
    axis: str | None
    compiled: bool  # on a CPU, by its kernel

    def __str__(self) -> str:
        parts = "" if self.axis is None else f"; all parts along {self.axis!r} at once"
        if self.block is not None:
            return f"Associative: plain JAX, in blocks of {self.block} steps{parts}"
        here = "CPU kernel" if self.compiled else "CPUs step by step in plain JAX"
        others = "plain JAX, in blocks of about sqrt(T) steps"
        if self.pallas:
            others = "their kernels (experimental: no device has measured them)"
        return f"Associative: {here}; GPUs and TPUs by {others}{parts}"

    @property
    def part_axis(self) -> str | None:
        return self.axis

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        a, b = _maps(cell, cell.project(xs), marks.over_time(count_steps(xs)), marks.initial.h)
        how: dict[str, Any] = {"block": self.block, "pallas": self.pallas}
        scan = linear_scan if self.axis is None else partial(scan_part, axis=self.axis)
        h = scan(a, b, state.h, **how)
        return Hidden(h[-1]), Hidden(h)


@dataclass(frozen=True)
class EmittingPlan(Plan):
    """The plan of a cell that emits something else than its state: no more states are stored than those of a segment.

    The steps of a segment run at once; the gradient computes the segments, and their coefficients, a second time.
    """

    segment: int
    block: int | None
    pallas: bool

    def __str__(self) -> str:
        return f"Associative: in segments of {self.segment} steps that the gradient computes again"

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, PyTree[Array]]:
        def steps(cell: AbstractCell, state: State, xs: PyTree[Array], part: StepMarks) -> tuple[State, PyTree[Array]]:
            us = cell.project(xs)
            h = linear_scan(*_maps(cell, us, part, marks.initial.h), state.h, block=self.block, pallas=self.pallas)
            befores = before_step(part, marks.initial, Hidden(jnp.concatenate([state.h[None], h[:-1]])))
            return Hidden(h[-1]), jax.vmap(cell.emit)(Hidden(h), befores, us)

        return in_segments(steps, self.segment, cell, state, xs, marks)


def _maps(
    cell: AbstractCell, us: PyTree[Array], marks: StepMarks, initial: Units
) -> tuple[UnitsOverTime, UnitsOverTime]:
    """The steps as maps h -> a h + b, their marks included; `initial` is the state after a reset."""
    assert isinstance(cell, AbstractLinearCell)
    a, b = jax.vmap(partial(_coefficients, cell, initial))(us)
    ignored, reset = marks
    if ignored is not None:
        a, b = select(ignored, (jnp.ones_like(a), jnp.zeros_like(b)), (a, b))
    if reset is not None:  # where a is zero, the state before has no effect
        a, b = select(reset, (jnp.zeros_like(a), a * leading(initial, a.ndim) + b), (a, b))
    return a, b


def _coefficients(cell: AbstractLinearCell, like: Units, u: PyTree[Array]) -> tuple[Units, Units]:
    """a and b of one step, broadcast to the shape of the state: a cell may return one number for all its units."""
    a, b = map(jnp.asarray, cell.coefficients(u))
    shapes = (), (1,), like.shape
    with jax.numpy_dtype_promotion("standard"):
        narrow = jnp.result_type(a, b, like) == like.dtype
    if a.shape not in shapes or b.shape not in shapes or not narrow:
        raise ValueError(
            f"{describe(cell)}.coefficients: expected a and b that fit the state, {show(like)}, "
            f"got a {show(a)} and b {show(b)}. "
            f"Return both in {like.dtype}, of shape {list(like.shape)}, [1] or []"
        )
    return jnp.broadcast_to(a, like.shape), jnp.broadcast_to(b, like.shape)
