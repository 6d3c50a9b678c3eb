"""The vector program of a cell: its columns, what it keeps of them, and both halves as code."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ...kernel import Pointwise
from .code import Code, assemble
from .expressions import OUTPUT, Graph
from .primitives import TranslationError
from .sizes import check_sizes
from .trace import UNITS, trace
from .units import forget_units


class Column(NamedTuple):
    """A row of the gate buffer: the gate it belongs to, and which of the two products adds to it."""

    gate: int
    input: bool
    recurrent: bool


class Program(NamedTuple):
    """`pointwise` of one unit, and its transposed derivative, where both products of a gate are one column if they can.

    forward    columns[C], before[F], gains[K]              -> after[F], kept[C]
    backward   kept[C], before[F], dafter[F], gains[K]      -> dcolumns[C], dbefore[F], dgains[K]

    What is kept of a column is the column itself, or the last of what it alone goes through, such as an activation.
    """

    columns: tuple[Column, ...]
    forward: Code
    backward: Code


class _Rows(NamedTuple):
    """What the function and its transpose give, as nodes."""

    after: list[int]
    dgains: list[int]
    dcolumns: list[int]
    dbefore: list[int]

    @property
    def transposed(self) -> list[int]:
        """The outputs of the backward code."""
        return [*self.dcolumns, *self.dbefore, *self.dgains]


@lru_cache
def translate(pointwise: Pointwise, dtype: np.dtype, units: int) -> Program | str:
    """The program of `pointwise` in the dtype that states are carried in, or the reason why there is none."""
    program = _translated(pointwise, dtype)
    if isinstance(program, Program):
        try:
            for function, inputs in _functions(pointwise):
                check_sizes(function, inputs, dtype, (UNITS, units))
        except TranslationError as refusal:
            return str(refusal)
    return program


@lru_cache
def _translated(pointwise: Pointwise, dtype: np.dtype) -> Program | str:
    """The program, whatever the number of units."""
    try:
        columns, graph, rows = _in_columns(*_expressions(pointwise, dtype))
    except TranslationError as refusal:
        return str(refusal)
    fields, gains = _names("before", pointwise.fields), _names("gains", pointwise.gains.num_leaves)
    kept, backward = _kept(graph, rows, len(columns)), Graph(dtype)
    names = [*_names("columns", len(columns)), *fields, *gains]
    forward = assemble(graph, [graph.input(name) for name in names], [*rows.after, *kept])
    replaced = {number: backward.input(("kept", column)) for column, number in enumerate(kept)}
    numbers = graph.into(backward, replaced)
    names = [*_names("kept", len(columns)), *fields, *_names("dafter", pointwise.fields), *gains]
    transposed = [numbers[number] for number in rows.transposed]
    return Program(columns, forward, assemble(backward, [backward.input(name) for name in names], transposed))


def _names(name: str, count: int) -> list[tuple[str, int]]:
    return [(name, row) for row in range(count)]


def _expressions(pointwise: Pointwise, dtype: np.dtype) -> tuple[Graph, dict[str, list[int]]]:
    """The rows of the state after a step and of all cotangents, as nodes of the inputs' rows."""
    by_unit, graph = Graph(dtype), Graph(dtype)
    outputs = {}
    for function, inputs in _functions(pointwise):
        outputs |= trace(by_unit, function, inputs)
    return graph, forget_units(by_unit, graph, outputs)


def _functions(pointwise: Pointwise) -> list[tuple[Callable[..., dict[str, Array]], dict[str, int]]]:
    """`pointwise` and its transposed derivative, each with the rows of its inputs."""
    rows = {
        "gains": pointwise.gains.num_leaves,
        "u": pointwise.gates,
        "v": pointwise.gates,
        "before": pointwise.fields,
    }
    return [
        (lambda **arguments: {"after": pointwise(**arguments)}, rows),
        (partial(_transposed, pointwise), rows | {"dafter": pointwise.fields}),
    ]


def _transposed(pointwise: Pointwise, dafter: Float[Array, "F H"], **inputs: Float[Array, "_ H"]) -> dict[str, Array]:
    """The cotangents of the inputs, each named `d` and the input."""
    _, pull = jax.vjp(lambda inputs: pointwise(**inputs), inputs)
    (cotangents,) = pull(dafter)
    return {f"d{name}": cotangent for name, cotangent in cotangents.items()}


def _in_columns(graph: Graph, rows: dict[str, list[int]]) -> tuple[tuple[Column, ...], Graph, _Rows]:
    """One column for a gate whose u and v are seen as their sum alone, so that their cotangents are one; else two."""
    users = graph.users(number for outputs in rows.values() for number in outputs)
    columns, replaced, dcolumns, fresh = [], {}, [], Graph(graph.dtype)
    for gate, (du, dv) in enumerate(zip(rows["du"], rows["dv"], strict=True)):
        u, v = graph.input(("u", gate)), graph.input(("v", gate))
        total = graph.node("add", u, v)
        summed = du == dv and {*users.get(u, ()), *users.get(v, ())} <= {total}
        parts = [(total, True, True, du)] if summed else [(u, True, False, du), (v, False, True, dv)]
        for number, by_input, by_state, cotangent in parts:
            replaced[number] = fresh.input(("columns", len(columns)))
            columns.append(Column(gate, by_input, by_state))
            dcolumns.append(cotangent)
    numbers = graph.into(fresh, replaced)
    outputs = _Rows(rows["after"], rows["dgains"], dcolumns, rows["dbefore"])
    return tuple(columns), fresh, _Rows(*([numbers[number] for number in row] for row in outputs))


def _kept(graph: Graph, rows: _Rows, columns: int) -> list[int]:
    """For each column the last node through which alone it is seen: with that, `backward` needs nothing before it."""
    forward, backward = graph.users(rows.after), graph.users(rows.transposed)
    kept = [graph.input(("columns", column)) for column in range(columns)]
    for column, number in enumerate(kept):
        while len(ahead := set(forward.get(number, ()))) == 1 and ahead.isdisjoint({OUTPUT}):
            if not ahead.issuperset(backward.get(number, ())):
                break
            (number,) = ahead
        kept[column] = number
    return kept
