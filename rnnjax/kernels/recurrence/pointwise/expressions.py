"""Scalar expressions: a table of nodes, in which equal expressions are one node."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .operations import MEANINGS

COMMUTE = frozenset({"add", "mul", "eq", "ne"})


class Node(NamedTuple):
    """An operation on earlier nodes, or a leaf: an input by its name, a constant by its hexadecimal digits.

    The digits distinguish the two zeros, and a nan is equal to itself.
    """

    operation: str
    operands: tuple[int, ...] = ()
    leaf: Hashable = None


class Graph:
    """Nodes, each after its operands, all of one dtype; a node is referred to by its number."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}

    def input(self, name: Hashable) -> int:
        """The input of that name."""
        return self._enter(Node("input", leaf=name))

    def constant(self, value: float | int) -> int:
        """The constant of that value, rounded to the dtype."""
        return self._enter(Node("constant", leaf=float(self.dtype.type(value)).hex()))

    def node(self, operation: str, *operands: int) -> int:
        """The operation on the operands: computed if they are constants, left out if it changes nothing."""
        if operation in COMMUTE:
            operands = tuple(sorted(operands))
        if all(self.nodes[operand].operation == "constant" for operand in operands):
            return self.constant(_compute(operation, self.dtype, [self.value(operand) for operand in operands]))
        simpler = SIMPLER[operation](self, *operands) if operation in SIMPLER else None
        return self._enter(Node(operation, operands)) if simpler is None else simpler

    def value(self, number: int) -> float | None:
        """The value of a constant; None for any other node."""
        node = self.nodes[number]
        return float.fromhex(str(node.leaf)) if node.operation == "constant" else None

    def negated(self, number: int) -> int | None:
        """x where the node is -x; None for any other node."""
        node = self.nodes[number]
        return node.operands[0] if node.operation == "neg" else None

    def users(self, outputs: Iterable[int]) -> dict[int, list[int]]:
        """For each node that the outputs need, the nodes that use it, once per use; OUTPUT for an output."""
        found: dict[int, list[int]] = {}
        for output in outputs:
            found.setdefault(output, []).append(OUTPUT)
        for number in reversed(range(len(self.nodes))):
            if number in found:
                for operand in self.nodes[number].operands:
                    found.setdefault(operand, []).append(number)
        return found

    def into(self, other: "Graph", replaced: Mapping[int, int]) -> list[int]:
        """Copy every node to `other`, except those that `replaced` maps to nodes of it: the new number of each node."""
        numbers: list[int] = []
        for number, node in enumerate(self.nodes):
            if number in replaced:
                numbers.append(replaced[number])
            elif node.operands:
                numbers.append(other.node(node.operation, *(numbers[operand] for operand in node.operands)))
            else:
                numbers.append(other._enter(node))
        return numbers

    def evaluate(self, outputs: Iterable[int], inputs: Mapping[Hashable, Array]) -> list[Array]:
        """The values of the nodes `outputs`, for inputs that are arrays of one shape."""
        shape = next(iter(inputs.values())).shape
        outputs, values = tuple(outputs), dict[int, Array]()
        for number in sorted(self.users(outputs)):
            node = self.nodes[number]
            if node.operands:
                value = MEANINGS[node.operation](*(values[operand] for operand in node.operands))
                values[number] = value.astype(self.dtype)  # a boolean is 1 or 0
            elif node.operation == "input":
                values[number] = inputs[node.leaf]
            elif (constant := self.value(number)) is not None:
                values[number] = jnp.full(shape, constant, self.dtype)
        return [values[output] for output in outputs]

    def _enter(self, node: Node) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]


OUTPUT = -1


def _compute(operation: str, dtype: np.dtype, values: list) -> float:
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):  # of constants, while tracing
        return float(MEANINGS[operation](*(np.asarray(value, dtype) for value in values)))


def _add(graph: Graph, a: int, b: int) -> int | None:
    for x, y in ((a, b), (b, a)):
        if graph.value(x) == 0:
            return y
        if (negated := graph.negated(x)) is not None:
            return graph.node("sub", y, negated)
    return None


def _subtract(graph: Graph, a: int, b: int) -> int | None:
    if graph.value(b) == 0:
        return a
    negated = graph.negated(b)
    return None if negated is None else graph.node("add", a, negated)


def _multiply(graph: Graph, a: int, b: int) -> int | None:
    for x, y in ((a, b), (b, a)):
        if graph.value(x) == 1:
            return y
        if graph.value(x) == -1:
            return graph.node("neg", y)
    return None


def _divide(graph: Graph, a: int, b: int) -> int | None:
    """Division by a power of two is exactly a product."""
    if graph.value(a) == 1:
        return graph.node("reciprocal", b)
    divisor = graph.value(b)
    exact = divisor is not None and abs(math.frexp(divisor)[0]) == 0.5 and 2**-100 < abs(divisor) < 2**100
    return graph.node("mul", a, graph.constant(1 / divisor)) if divisor and exact else None


def _select(graph: Graph, case: int, otherwise: int, where: int) -> int | None:
    condition = graph.value(where)
    if condition is not None or case == otherwise:
        return case if condition else otherwise
    if graph.value(case) == 1 and graph.value(otherwise) == 0:
        return where
    return None


def _bounded(bound: float) -> Callable[[Graph, int, int], int | None]:
    """A maximum or minimum with `bound`, where reductions start."""
    return lambda graph, a, b: b if graph.value(a) == bound else a if graph.value(b) == bound else None


# A zero of either sign may be left out of a sum; a product with zero stays, for it may be nan.
SIMPLER: dict[str, Callable[..., int | None]] = {
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "neg": Graph.negated,
    "select": _select,
    "max": _bounded(-math.inf),
    "min": _bounded(math.inf),
}
