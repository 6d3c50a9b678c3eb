"""Symbolic evaluation of a function of vectors: each entry of its outputs is an expression of entries of its inputs."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from ....arrays import DType, PyTree
from .expressions import Graph
from .primitives import CALLS, ELEMENTWISE, INDEXED, MOVES, REDUCTIONS, TranslationError

NOWHERE = -1  # the number of no node

# During the evaluation, arrays of the graph's dtype and of bool are arrays of node numbers. Arrays of any other dtype
# have values that depend on no input, such as the indices of a gather or a random key.


def trace(graph: Graph, function: Callable[..., PyTree], inputs: dict[str, int]) -> dict[str, list[int]]:
    """The nodes of the dict of vectors that `function` returns.

    inputs   the names of its arguments, and the number of rows of each; an entry is the input `(name, row)`

    Raises `TranslationError` where an operation has no counterpart.
    """
    closed, returned = _jaxpr_of(function, inputs, graph.dtype)
    for name, shape in returned.items():
        if shape.dtype != graph.dtype:
            raise TranslationError(
                f"pointwise gives `{name}` in {shape.dtype}, and states are carried in {graph.dtype}"
            )
    arguments = [
        np.array([graph.input((name, row)) for row in range(inputs[name])], np.int32) for name in sorted(inputs)
    ]
    outputs = _run(graph, closed.jaxpr, closed.consts, arguments)
    return {name: nodes.tolist() for name, nodes in zip(sorted(returned), outputs, strict=True)}


def _jaxpr_of(function: Callable[..., Any], inputs: dict[str, int], dtype: DType) -> tuple[Any, Any]:
    """The jaxpr of `function`, and the shapes of what it returns."""
    shapes = {name: jax.ShapeDtypeStruct((count,), dtype) for name, count in inputs.items()}
    try:
        return jax.make_jaxpr(lambda inputs: function(**inputs), return_shape=True)(shapes)
    except Exception as error:  # any error of the cell's own code: another engine may still be able to run it
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise TranslationError(f"pointwise cannot be traced: {reason}") from error


def _run(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    for variable, value in zip(jaxpr.constvars, constants, strict=True):
        values[variable] = _constant(graph, value, variable.aval)

    def read(atom: Any) -> Any:
        return _constant(graph, atom.val, atom.aval) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(graph, equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _has_nodes(graph: Graph, aval: Any) -> bool:
    return aval.dtype in (graph.dtype, np.bool_)


def _constant(graph: Graph, value: Any, aval: Any) -> Any:
    if isinstance(value, Tracer):
        raise TranslationError(
            "pointwise closes over an array that is not known yet. Make it one of the unit_parameters"
        )
    if not _has_nodes(graph, aval):
        return value if isinstance(value, jax.Array) else np.asarray(value, aval.dtype)
    entries = np.asarray(value, aval.dtype)
    return np.array([graph.constant(entry) for entry in entries.ravel().tolist()], np.int32).reshape(entries.shape)


def _apply(graph: Graph, equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The outputs of one equation."""
    name = _name(equation)
    if name in CALLS:
        inner = equation.params[CALLS[name]]
        return _run(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    nodes = all(_has_nodes(graph, atom.aval) for atom in (*equation.invars, *equation.outvars))
    for known, act in ((MOVES, _move), (REDUCTIONS, _reduce), (ELEMENTWISE, _combine)):
        if nodes and inputs and name in known:
            return act(graph, equation, inputs)
    return _by_value(graph, equation, inputs)


def _name(equation: JaxprEqn) -> str:
    """The name of the primitive; with the name of the function that it calls, if that one has a counterpart."""
    name = equation.primitive.name
    if name != "custom_jvp_call":
        return name
    function, _, _ = str(equation.params["call_jaxpr"].jaxpr.debug_info.func_src_info).partition(" at ")
    return f"{name} {function}" if f"{name} {function}" in ELEMENTWISE else name


def _move(graph: Graph, equation: JaxprEqn, inputs: list[np.ndarray]) -> list[np.ndarray]:
    del graph
    indexed = MOVES[equation.primitive.name](*inputs, **equation.params)
    return list(map(np.asarray, indexed)) if isinstance(indexed, list) else [np.asarray(indexed)]  # of a scalar, too


def _reduce(graph: Graph, equation: JaxprEqn, inputs: list[np.ndarray]) -> list[np.ndarray]:
    (nodes,), axes = inputs, equation.params["axes"]
    operation, nothing = REDUCTIONS[equation.primitive.name]
    aval: Any = equation.outvars[0].aval
    start = np.full(aval.shape, graph.constant(nothing))
    lines = np.moveaxis(nodes, axes, range(len(axes))).reshape(-1, *start.shape)
    return [reduce(lambda a, b: _each(lambda *pair: graph.node(operation, *pair), a, b), lines, start)]


def _combine(graph: Graph, equation: JaxprEqn, inputs: list[np.ndarray]) -> list[np.ndarray]:
    combine = ELEMENTWISE[_name(equation)]
    return [_each(lambda *nodes: combine(graph, equation.params, *nodes), *inputs)]


def _each(function: Callable[..., int], *arrays: np.ndarray | np.int32) -> np.ndarray:
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), np.int32)


def _by_value(graph: Graph, equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Leave the equation to JAX: it computes with known values, and moves the numbers of nodes by known indices."""
    if equation.outvars and _has_nodes(graph, equation.outvars[0].aval):
        if equation.primitive.name in INDEXED:
            return [_moved_by_index(equation, inputs)]
        if equation.primitive.name == "scatter-add":
            return [_scatter_add(graph, equation, *inputs)]
    known = [_value(graph, value, atom.aval) for value, atom in zip(inputs, equation.invars, strict=True)]
    if any(value is None for value in known):
        raise TranslationError(_refusal(graph, equation))
    outputs = _bind(equation, known)
    return [_constant(graph, value, atom.aval) for value, atom in zip(outputs, equation.outvars, strict=True)]


def _bind(equation: JaxprEqn, inputs: Sequence[Any], **changed: Any) -> Sequence[Any]:
    with jax.ensure_compile_time_eval():
        outputs = equation.primitive.bind(*inputs, **equation.params | changed)
    return outputs if equation.primitive.multiple_results else [outputs]


def _moved_by_index(equation: JaxprEqn, inputs: list[Any]) -> np.ndarray:
    filled = {"fill_value": NOWHERE} if "fill_value" in equation.params else {}
    (indexed,) = _bind(equation, inputs, **filled)
    nodes = np.asarray(indexed, np.int32)
    if NOWHERE in nodes:
        raise TranslationError("pointwise has an index that is out of bounds")
    return nodes


def _scatter_add(graph: Graph, equation: JaxprEqn, onto: np.ndarray, indices: Any, updates: np.ndarray) -> np.ndarray:
    """One update at a time, added where JAX adds it."""
    nothing, each = np.zeros(onto.shape, graph.dtype), np.eye(updates.size, dtype=graph.dtype)
    with jax.ensure_compile_time_eval():
        places = jax.vmap(lambda one: _bind(equation, [nothing, indices, one])[0])(each.reshape(-1, *updates.shape))
    total = onto.copy()
    for place, update in zip(np.asarray(places) != 0, updates.ravel().tolist(), strict=True):
        total[place] = _each(lambda node, update=update: graph.node("add", node, update), total[place])
    return total


def _value(graph: Graph, value: Any, aval: Any) -> Any:
    """The value of an array, None where it depends on an input."""
    if not _has_nodes(graph, aval):
        return value
    entries = [graph.value(number) for number in value.ravel().tolist()]
    return None if None in entries else np.array(entries, aval.dtype).reshape(value.shape)


def _refusal(graph: Graph, equation: JaxprEqn) -> str:
    name = equation.primitive.name
    avals: list[Any] = [atom.aval for atom in (*equation.outvars, *equation.invars)]
    others = [aval.dtype for aval in avals if not _has_nodes(graph, aval)]
    if others and (name in ELEMENTWISE or name in MOVES or name in REDUCTIONS):
        return f"pointwise computes in {others[0]} (`{name}`), and the vector program in {graph.dtype} alone"
    return f"pointwise uses `{name}`, which has no counterpart in the vector program"
