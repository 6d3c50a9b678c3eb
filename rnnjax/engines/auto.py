"""The engine `Auto`: the first of its candidates that can run the cell."""

from dataclasses import dataclass

from jaxtyping import Array

from ..arrays import PyTree, Shaped, State, States
from ..cell import AbstractCell, describe
from ..engine import AbstractEngine, Plan
from ..marks import Marks
from ..refusal import Refusal
from .associative import Associative
from .chunked.chunked import Chunked
from .fused import Fused
from .scan import Scan


class Auto(AbstractEngine):
    """The first candidate that does not refuse the cell. You can pass other candidates, in another order.

    The choice is made when a program is traced. The platform is not known then, and one program may be lowered for
    several platforms, so the choice is the same for all. On GPUs and TPUs `Associative` and `Fused` are plain JAX by
    default. To run the experimental kernels, pass `Auto((Associative(pallas=True), Fused(cuda=GPU()), Scan()))`.

    A program of `jax.export` holds plain JAX alone, and so runs without rnnjax. If its T is a symbol, the plan is that
    of `Scan`; if it is a number, the plan is the one that runs here, with plain JAX in place of the CPU kernels.

    Matrix-state cells run by `Chunked` where JAX runs on CPUs by default and the compiled recurrence is there for them,
    and else by `Scan`.

    `python -m benchmarks.fused_against_scan` measures the sizes from which Fused pays off. Associative has no such
    bound: if its kernel would not pay off, it runs step by step. On a CPU it is still slower than Scan by some
    microseconds for very small arrays, and by up to a half for many sequences of one to three units.
    """

    candidates: tuple[AbstractEngine, ...] = (
        Associative(),
        Fused(min_steps=32, min_units=16),
        Chunked(min_steps=8, needs_kernel=True),
        Scan(),
    )

    def __check_init__(self):
        if not isinstance(self.candidates, tuple) or not self.candidates:
            raise ValueError(
                f"candidates: expected a tuple of at least one engine, got {self.candidates!r}. "
                "Write Auto((Scan(),)) for one engine"
            )
        for candidate in self.candidates:
            if not isinstance(candidate, AbstractEngine):
                raise TypeError(
                    f"candidates: expected engines, such as Scan(), got {candidate!r}. "
                    "Build each of them, as in Auto((Fused(), Scan()))"
                )

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        if not isinstance(cell, AbstractCell):
            raise TypeError(
                f"cell: expected a cell, got {describe(cell)}. Use rnnjax.explain for the cells of a network"
            )
        refusals: list[Refusal] = []
        for candidate in self.candidates:
            plan = candidate.plan(cell, xs, axis)
            if not isinstance(plan, Refusal):
                return AutoPlan(plan, tuple(refusals))
            refusals.append(plan)
        return Refusal("Auto has no candidate left. " + " ".join(map(str, refusals)))


@dataclass(frozen=True)
class AutoPlan(Plan):
    """The plan of the first candidate that does not refuse, and the refusals of those before it."""

    plan: Plan
    refusals: tuple[Refusal, ...]

    def __str__(self) -> str:
        return str(self.plan)

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        return self.plan.run(cell, state, xs, marks)

    @property
    def part_axis(self) -> str | None:
        return self.plan.part_axis

    @property
    def notes(self) -> tuple[str, ...]:
        return *map(str, self.refusals), *self.plan.notes
