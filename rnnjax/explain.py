"""`explain`: the engine and kernel that would run each cell of a network, and why others were skipped."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from . import check
from .arrays import PyTree, Shaped, State
from .cell import AbstractCell, describe
from .checked import Checked
from .engine import AbstractEngine, Plan, check_engine
from .engines.auto import Auto
from .engines.scan import Scan
from .function import StepFunction
from .matrix_cell import AbstractMatrixCell
from .network import Layer
from .refusal import Refusal
from .unroll import unroll


def explain(
    cell: Checked[Layer | StepFunction],
    xs: Checked[PyTree[Shaped]],
    engine: Checked[AbstractEngine] = Auto(),
    *,
    state: State | None = None,
) -> "Explanation":
    """How `unroll(cell, state, xs, engine=engine)` would run. No step is computed.

        >>> print(rnnjax.explain(rnnjax.Stack([LSTM(3, 32, key=key), MinGRU(32, 32, key=key)]), xs))
        layers[0], LSTM
            Fused: CPU kernel, a program of 8 instructions forward and 25 backward; GPUs and TPUs step by ...
            Associative cannot run LSTM: it needs an AbstractLinearCell. Use Scan().
        layers[1], MinGRU
            Associative: CPU kernel; GPUs and TPUs by plain JAX, in blocks of about sqrt(T) steps

    cell     a cell, a network (your own, too), or a function `(state, x) -> (state, y)`
    xs       [T, I], one sequence, time first, or its `jax.ShapeDtypeStruct`
    engine   as in `unroll`
    state    as in `unroll`; required for a function only

    For each cell it gives the path in the network, the plan, and the reasons of the engines and kernels that were
    skipped. A cell that a network creates when it runs has the path of that network. If the engine refuses a cell, the
    refusal is part of the result; all other errors are those of `unroll`.

    If `cell` is a matrix-state cell and `xs` are arrays, a line warns of decays above 1 in modulus, by which the state
    may overflow. Those of the layers of a network are known only when it runs.
    """
    check_engine(engine)
    if not jax.tree.leaves(xs) or not all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(xs)):
        xs = check.sequence(xs)
    if any(leaf.shape[:1] == (0,) for leaf in jax.tree.leaves(xs)):
        raise ValueError("xs: expected at least one step, got T=0, which runs no engine. Pass a longer sequence")
    record = Record(tuple(places(cell, "")))
    jax.eval_shape(lambda xs: unroll(cell, state, xs, engine=Recorder(engine, record)), xs)
    warnings = _warnings(cell, xs)
    return Explanation(tuple(replace(planned, warnings=warnings) for planned in dict.fromkeys(record.cells)))


def _warnings(cell: Layer | StepFunction, xs: PyTree[Shaped]) -> tuple[str, ...]:
    """What the decays of a matrix cell, from known inputs, give reason to warn of."""
    if not isinstance(cell, AbstractMatrixCell):
        return ()
    if any(isinstance(leaf, jax.ShapeDtypeStruct | Tracer) for leaf in jax.tree.leaves((cell, xs))):
        return ()
    decays = np.abs(jax.vmap(cell.coefficients)(cell.project(xs)).decay)
    above = decays[decays > 1]
    if not above.size:
        return ()
    return (
        f"{above.size} of {decays.size} decays are above 1 in modulus, the largest {above.max():.3g}: the state may "
        "overflow, and so may products of decays in chunks. Use Scan() if results are not finite.",
    )


@dataclass(frozen=True)
class PlannedCell:
    """One cell, with its path in the network (empty for the network itself), its name, and its plan or refusal.

    `warnings` are sentences about the inputs.
    """

    path: str
    name: str
    plan: Plan | Refusal
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = self.plan.notes if isinstance(self.plan, Plan) else ()
        title = f"{self.path}, {self.name}" if self.path else self.name
        return "\n    ".join([title, str(self.plan), *self.warnings, *notes])


@dataclass(frozen=True, repr=False)
class Explanation:
    """The result of `explain`: the cells in the order in which they run. Its text has a paragraph for each."""

    cells: tuple[PlannedCell, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.cells))

    def __repr__(self) -> str:
        return str(self)


class Record:
    """The plans that a `Recorder` records, and the path to each cell and network.

    It has no hash, so that `unroll` does not compile: a compiled program would run a copy of the cell, and plan once.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, places: tuple[tuple[str, object], ...]):
        self.places = places
        self.cells: list[PlannedCell] = []

    def path_of(self, part: object, network: str) -> str:
        """The path to a layer of the network at the path `network`; that path itself, if it is not found."""
        paths = [path for path, other in self.places if other is part]
        return next((path for path in paths if path.startswith(network)), paths[0] if paths else network)


class Recorder(AbstractEngine):
    """`engine`, with its plans recorded. What runs is `Scan`, and only its shapes are computed."""

    engine: AbstractEngine
    record: Record
    path: str = eqx.field(static=True, default="")

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        path, plan = self.record.path_of(cell, self.path), self.engine.plan(cell, xs, axis)
        self.record.cells.append(PlannedCell(path, describe(cell), plan))
        return Scan().plan(cell, xs, axis)

    def within(self, network: object) -> "Recorder":
        return Recorder(self.engine, self.record, self.record.path_of(network, self.path))


def places(part: PyTree, path: str = "") -> Iterator[tuple[str, Any]]:
    """The cells and networks in `part` with the paths to them, itself first."""
    yield path, part
    is_inner = lambda node: node is not part and isinstance(node, Layer)  # noqa: E731
    for keys, node in jax.tree_util.tree_flatten_with_path(part, is_leaf=is_inner)[0]:
        if is_inner(node):
            yield from places(node, (path + jax.tree_util.keystr(keys)).removeprefix("."))
