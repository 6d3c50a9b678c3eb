"""The engine `Auto`: the first of its candidates that can."""

from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from ..arrays import State, States
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

    From which sizes on Fused pays is what `benchmarks/fused_against_scan.py` measures. Associative needs no such bound:
    where its kernel would not pay, it goes step by step as Scan does (`benchmarks/associative.py`).
    """

    candidates: tuple[AbstractEngine, ...] = (Associative(), Fused(shortest=32, narrowest=16), Scan())

    def __check_init__(self):
        if not isinstance(self.candidates, tuple) or not self.candidates:
            raise ValueError(f"candidates: expected a tuple of at least one engine, got {self.candidates!r}")
        for candidate in self.candidates:
            if not isinstance(candidate, AbstractEngine):
                raise TypeError(f"candidates: expected engines, such as Scan(), got {candidate!r}")

    def select(self, cell: Any, xs: PyTree[Array]) -> Selection:
        """Which engine would run `cell` on `xs`, and the reasons of those passed over."""
        if not isinstance(cell, AbstractCell):
            raise TypeError(f"cell: expected a cell, got {describe(cell)}. A network asks for each of its cells apart")
        refusals = []
        for candidate in self.candidates:
            reason = candidate.refusal(cell, xs)
            if reason is None:
                return Selection(candidate, tuple(refusals))
            refusals.append(reason)
        return Selection(None, tuple(refusals))

    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        selection = self.select(cell, xs)
        return None if selection.engine else "Auto has no candidate left. " + " ".join(selection.refusals)

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        engine = self.select(cell, xs).engine
        assert engine is not None
        return engine.run(cell, state, xs, marks)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        engine = self.select(cell, xs).engine
        assert engine is not None
        return engine.run_part(cell, state, xs, marks, axis)
