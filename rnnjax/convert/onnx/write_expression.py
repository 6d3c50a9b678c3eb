"""Expressions of one unit, as `kernels/recurrence/pointwise` has them, as nodes for all units at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...kernels.recurrence.pointwise.expressions import Graph
from .builder import Builder

# What an operator of the same meaning is called.
SAME = {
    **{"neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "round_even": "Round"},
    **{"sqrt": "Sqrt", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "reciprocal": "Reciprocal"},
    **{"sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan"},
    **{"sinh": "Sinh", "cosh": "Cosh", "erf": "Erf", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
    **{"max": "Max", "min": "Min", "pow": "Pow"},
}
COMPARISONS = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}


def write_expressions(
    builder: Builder, graph: Graph, outputs: Sequence[int], inputs: Mapping[Hashable, str]
) -> list[str]:
    """The names of the nodes `outputs` of `graph`, of inputs that have names."""
    values: dict[int, str] = {}
    for number in sorted(graph.users(outputs)):
        node = graph.nodes[number]
        if node.operation == "input":
            values[number] = inputs[node.leaf]
        elif (constant := graph.value(number)) is not None:
            values[number] = builder.constant(constant, graph.dtype)
        else:
            operands = [values[operand] for operand in node.operands]
            values[number] = _write(builder, graph.dtype, node.operation, operands)
    return [values[output] for output in outputs]


def _write(builder: Builder, dtype: np.dtype, operation: str, operands: list[str]) -> str:
    if operation in SAME:
        return builder.node(SAME[operation], *operands)
    if operation in COMPARISONS:
        return _number(builder, dtype, builder.node(COMPARISONS[operation], *operands))
    if operation in COMPOSED:
        return COMPOSED[operation](builder, dtype, *operands)
    raise ValueError(
        f"network: expected elementwise operations that ONNX has, got {operation}. "
        "Write the cell or the function without it, or export with jax.export"
    )


def _number(builder: Builder, dtype: np.dtype, condition: str) -> str:
    """A boolean as 1 or 0."""
    return builder.node("Cast", condition, to=builder.onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _boolean(builder: Builder, number: str) -> str:
    return builder.node("Cast", number, to=builder.onnx.TensorProto.BOOL)


def _differs(builder: Builder, dtype: np.dtype, a: str, b: str) -> str:
    return _number(builder, dtype, builder.node("Not", builder.node("Equal", a, b)))


def _select(builder: Builder, dtype: np.dtype, a: str, b: str, where: str) -> str:
    del dtype
    return builder.node("Where", _boolean(builder, where), a, b)


def _multiply_add(builder: Builder, dtype: np.dtype, a: str, b: str, c: str) -> str:
    del dtype
    return builder.node("Add", builder.node("Mul", a, b), c)


def _chained(first: str, second: str, builder: Builder, dtype: np.dtype, x: str) -> str:
    del dtype
    return builder.node(second, builder.node(first, x))


def _less_one(builder: Builder, dtype: np.dtype, x: str) -> str:
    return builder.node("Sub", builder.node("Exp", x), builder.constant(1, dtype))


def _of_one_more(builder: Builder, dtype: np.dtype, x: str) -> str:
    return builder.node("Log", builder.node("Add", x, builder.constant(1, dtype)))


def _complement(builder: Builder, dtype: np.dtype, x: str) -> str:
    return builder.node("Sub", builder.constant(1, dtype), builder.node("Erf", x))


COMPOSED: dict[str, Callable[..., Any]] = {
    "ne": _differs,
    "select": _select,
    "multiply_add": _multiply_add,
    "rsqrt": partial(_chained, "Sqrt", "Reciprocal"),
    "expm1": _less_one,
    "log1p": _of_one_more,
    "erfc": _complement,
}
