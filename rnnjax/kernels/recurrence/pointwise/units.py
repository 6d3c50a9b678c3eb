"""Whether a function is elementwise in the units; its expressions, the same for all of them, where it is."""

import numpy as np

from .expressions import Graph
from .primitives import TranslationError


def forget_units(by_unit: Graph, graph: Graph, outputs: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """The rows of `outputs`, nodes [rows, units] of inputs `(name, row, unit)`, as nodes of inputs `(name, row)`.

    Raises `TranslationError` where units see each other, or where they have different expressions.
    """
    nodes = enumerate(by_unit.nodes)
    inputs = {number: graph.input(node.leaf[:2]) for number, node in nodes if isinstance(node.leaf, tuple)}
    numbers, seen = by_unit.into(graph, inputs), _inputs_seen(by_unit)
    for name, array in outputs.items():
        for (row, unit), number in np.ndenumerate(array):
            _check_alone(f"unit {unit} of {name}[{row}]", unit, seen[number])
            if numbers[number] != numbers[array[row, 0]]:
                raise TranslationError(
                    f"pointwise has constants of each unit's own: units 0 and {unit} of {name}[{row}]"
                )
    return {name: [numbers[number] for number in array[:, 0]] for name, array in outputs.items()}


def _inputs_seen(graph: Graph) -> list[frozenset]:
    """For each node, the names of the inputs that it depends on."""
    seen: list[frozenset] = []
    for node in graph.nodes:
        own = {node.leaf} if node.operation == "input" else set()
        seen.append(frozenset(own).union(*(seen[operand] for operand in node.operands)))
    return seen


def _check_alone(what: str, unit: int, seen: frozenset) -> None:
    strangers = sorted(leaf for leaf in seen if leaf[2] != unit)
    if strangers:
        name, row, other = strangers[0]
        raise TranslationError(
            f"pointwise is not elementwise in the units: {what} depends on unit {other} of {name}[{row}]"
        )
