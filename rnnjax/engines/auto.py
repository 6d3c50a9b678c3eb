"""The engine `Auto`: the first of its candidates that can."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from ..arrays import Shaped, State, States
from ..cell import AbstractCell, describe
from ..engine import AbstractEngine
from ..marks import Marks
from .associative import Associative
from .fused import Fused
from .scan import Scan


class Selection(NamedTuple):
    """What `Auto` chose, and why not what stood before it; `engine` is None where every candidate refused."""

    engine: AbstractEngine | None
    refusals: tuple[str, ...]


class Auto(AbstractEngine):
    """The first candidate that does not refuse. The candidates, and their order, are the caller's to replace.

    The choice is made when a program is traced. The platform is not known then, and one program may be lowered for
    several, so the choice is the same for all. On GPUs and TPUs `Associative` and `Fused` are plain JAX by default. To
    run the experimental kernels, pass `Auto((Associative(pallas=True), Fused(cuda=GPU()), Scan()))`.

    `python -m benchmarks.fused_against_scan` measures from which sizes on Fused pays. Associative has no such bound:
    where its kernel would not pay, it goes step by step. On a CPU it still is behind Scan by some microseconds where
    there are few numbers in all, and by up to a half where many sequences have one to three units.
    """

    candidates: tuple[AbstractEngine, ...] = (Associative(), Fused(shortest=32, narrowest=16), Scan())

    def __check_init__(self):
        if not isinstance(self.candidates, tuple) or not self.candidates:
            raise ValueError(f"candidates: expected a tuple of at least one engine, got {self.candidates!r}")
        for candidate in self.candidates:
            if not isinstance(candidate, AbstractEngine):
                raise TypeError(f"candidates: expected engines, such as Scan(), got {candidate!r}")

    def select(self, cell: Any, xs: PyTree[Shaped]) -> Selection:
        """Which engine would run `cell` on `xs`, and the reasons of those passed over."""
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. A network asks for each of its cells apart")
        return self._first(candidate.refusal(cell, xs) for candidate in self.candidates)

    def _first(self, reasons: Iterable[str | None]) -> Selection:
        """The first candidate without a reason not to."""
        refusals = []
        for candidate, reason in zip(self.candidates, reasons, strict=True):
            if reason is None:
                return Selection(candidate, tuple(refusals))
            refusals.append(reason)
        return Selection(None, tuple(refusals))

    def _select_of_part(self, cell: AbstractCell, xs: PyTree[Shaped]) -> Selection:
        return self._first(candidate.refusal_of_part(cell, xs) for candidate in self.candidates)

    def refusal(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        return _none_left(self.select(cell, xs))

    def refusal_of_part(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        return _none_left(self._select_of_part(cell, xs))

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        engine = self.select(cell, xs).engine
        assert engine is not None
        return engine.run(cell, state, xs, marks)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        engine = self._select_of_part(cell, xs).engine
        assert engine is not None
        return engine.run_part(cell, state, xs, marks, axis)


def _none_left(selection: Selection) -> str | None:
    return None if selection.engine else "Auto has no candidate left. " + " ".join(selection.refusals)
