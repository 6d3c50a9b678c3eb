"""Straight-line code for expressions: instructions ordered so that few registers are needed, and registers reused."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from ..pointwise.expressions import Graph, Node
from ..pointwise.operations import NUMBERS


class Code(NamedTuple):
    """Instructions on a file of registers, each a vector over units: the inputs first, then constants, then the rest.

    instructions   (operation, destination, a, b, c), the operation by its number; unused operands are 0
    registers      their number; an instruction may write a register that it reads, but never an input or a constant
    outputs        the register of each output, at the end
    """

    instructions: tuple[tuple[int, ...], ...]
    constants: tuple[float, ...]
    registers: int
    outputs: tuple[int, ...]


def assemble(graph: Graph, inputs: Sequence[int], outputs: Sequence[int]) -> Code:
    """The code that computes the nodes `outputs` from the nodes `inputs`."""
    nodes = _fused(graph, outputs)
    order = _ordered(nodes, outputs)
    used = [*outputs, *(operand for number in order for operand in nodes[number].operands)]
    constants = {number: value for number in used if (value := graph.value(number)) is not None}
    register = {number: place for place, number in enumerate((*inputs, *constants))}
    instructions, registers = _allocated(nodes, order, register, frozenset(outputs))
    return Code(instructions, tuple(constants.values()), registers, tuple(register[number] for number in outputs))


def _fused(graph: Graph, outputs: Iterable[int]) -> list[Node]:
    """The nodes, where a sum with a product that has no other user is one operation: the product is then unused."""
    users = graph.users(outputs)
    nodes = list(graph.nodes)
    for number, node in enumerate(graph.nodes):
        lone = [x for x in node.operands if graph.nodes[x].operation == "mul" and users.get(x) == [number]]
        if node.operation == "add" and lone:
            (other,) = (x for x in node.operands if x != lone[0])
            nodes[number] = Node("multiply_add", (*graph.nodes[lone[0]].operands, other))
    return nodes


def _ordered(nodes: Sequence[Node], outputs: Iterable[int]) -> list[int]:
    """Operations depth first; the operand that needs more registers is computed first (Sethi & Ullman 1970)."""
    need: list[int] = []
    for node in nodes:
        operands = sorted((need[operand] for operand in node.operands), reverse=True)
        need.append(max([1, *(own + held for held, own in enumerate(operands))]) if operands else 0)
    order: dict[int, None] = {}
    stack = sorted(outputs, key=lambda number: need[number])
    while stack:
        waiting = [operand for operand in nodes[stack[-1]].operands if operand not in order and need[operand]]
        if waiting:
            stack += sorted(waiting, key=lambda number: need[number])
        elif need[number := stack.pop()]:
            order[number] = None
    return list(order)


def _allocated(
    nodes: Sequence[Node], order: Sequence[int], register: dict[int, int], outputs: frozenset[int]
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The instructions in order, and the number of registers; adds the register of each result to `register`."""
    fixed, fresh, free = len(register), count(len(register)), []
    last = {operand: number for number in order for operand in nodes[number].operands}
    instructions = []
    for number in order:
        operation, operands, _ = nodes[number]
        sources = [register[operand] for operand in operands]
        for operand in set(operands):
            if last[operand] == number and register[operand] >= fixed and operand not in outputs:
                heappush(free, register[operand])
        register[number] = heappop(free) if free else next(fresh)
        instructions.append((NUMBERS[operation], register[number], *sources, *(0,) * (3 - len(sources))))
    return tuple(instructions), next(fresh)
