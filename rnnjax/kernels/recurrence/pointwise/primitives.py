"""The effect of each primitive of JAX on nodes: elementwise primitives make new nodes, structural ones move them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from .expressions import Graph
from .operations import MEANINGS

Parameters = dict[str, Any]


class TranslationError(Exception):
    """Why a function has no vector program."""


def _same(operation: str) -> Callable[..., int]:
    return lambda graph, _, *nodes: graph.node(operation, *nodes)


def _convert(graph: Graph, parameters: Parameters, x: int) -> int:
    """A boolean is 0 or 1 already; a number converted to boolean is 1 if it differs from zero."""
    return graph.node("ne", x, graph.constant(0)) if np.dtype(parameters["new_dtype"]).kind == "b" else x


def _integer_power(graph: Graph, parameters: Parameters, x: int) -> int:
    """By repeated squaring, as XLA does it."""
    product, exponent = graph.constant(1), abs(parameters["y"])
    while exponent:
        if exponent % 2:
            product = graph.node("mul", product, x)
        x, exponent = graph.node("mul", x, x), exponent // 2
    return graph.node("reciprocal", product) if parameters["y"] < 0 else product


def _round(graph: Graph, parameters: Parameters, x: int) -> int:
    if parameters["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise TranslationError(
            "pointwise uses `round` away from zero, which has no counterpart in the vector program. Use jnp.round"
        )
    return graph.node("round_even", x)


def _clamp(graph: Graph, _: Parameters, low: int, x: int, high: int) -> int:
    return graph.node("min", graph.node("max", x, low), high)


def _select(graph: Graph, _: Parameters, where: int, *cases: int) -> int:
    return graph.node("select", cases[-1], cases[0], where)


def _one_minus_square(graph: Graph, _: Parameters, x: int) -> int:
    """(1 - x) (1 + x), accurate where x is close to one."""
    rest = graph.node("sub", graph.constant(1), x)
    return graph.node("add", graph.node("mul", rest, x), rest)


def _is_finite(graph: Graph, _: Parameters, x: int) -> int:
    return graph.node("lt", graph.node("abs", x), graph.constant(np.inf))


OF_ANOTHER_NAME = ("round_even", "reciprocal", "select", "multiply_add")

# The node that a primitive makes of the nodes of one entry.
ELEMENTWISE: dict[str, Callable[..., int]] = {
    **{name: _same(name) for name in MEANINGS if name not in OF_ANOTHER_NAME},
    "add_any": _same("add"),
    "and": _same("mul"),
    "or": _same("max"),
    "xor": _same("ne"),
    "not": lambda graph, _, x: graph.node("sub", graph.constant(1), x),
    "square": lambda graph, _, x: graph.node("mul", x, x),
    "one_minus_square": _one_minus_square,
    "log2": lambda graph, _, x: graph.node("mul", graph.node("log", x), graph.constant(1 / np.log(2))),
    "exp2": lambda graph, _, x: graph.node("pow", graph.constant(2), x),
    "convert_element_type": _convert,
    "integer_pow": _integer_power,
    "round": _round,
    "clamp": _clamp,
    "select_n": _select,
    "is_finite": _is_finite,
    # JAX 0.12 differentiates erf by a function of this name, and writes it with the bits of its argument.
    "custom_jvp_call exp_neg_sq": lambda graph, _, x: graph.node("exp", graph.node("neg", graph.node("mul", x, x))),
}

# The operation of a reduction, and its result for an empty axis.
REDUCTIONS: dict[str, tuple[str, float]] = {
    "reduce_sum": ("add", 0.0),
    "reduce_prod": ("mul", 1.0),
    "reduce_max": ("max", -np.inf),
    "reduce_min": ("min", np.inf),
    "reduce_and": ("mul", 1.0),
    "reduce_or": ("max", 0.0),
}


def _slice(nodes: np.ndarray, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    steps = strides or (1,) * nodes.ndim
    return nodes[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, steps, strict=True))]


def _broadcast(nodes: np.ndarray, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    sizes = dict(zip(broadcast_dimensions, nodes.shape, strict=True))
    return np.broadcast_to(nodes.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _pad(nodes: np.ndarray, value: np.ndarray, padding_config: Any) -> np.ndarray:
    """Spread apart by the inner padding, then widened or, where the padding is negative, cropped at the ends."""
    inner = [inside + 1 for _, _, inside in padding_config]
    spread = np.full([max(size * by - by + 1, 0) for size, by in zip(nodes.shape, inner, strict=True)], value)
    spread[tuple(slice(None, None, by) for by in inner)] = nodes
    ends = [(int(low), int(high)) for low, high, _ in padding_config]
    wide = np.pad(spread, [(max(low, 0), max(high, 0)) for low, high in ends], constant_values=value)
    return wide[tuple(slice(max(-low, 0), -max(-high, 0) or None) for low, high in ends)]


def _split(nodes: np.ndarray, sizes: Any, axis: int) -> list[np.ndarray]:
    return np.split(nodes, np.cumsum(sizes)[:-1], axis)


def _reshape(nodes: np.ndarray, new_sizes: Any, **_: Any) -> np.ndarray:
    return nodes.reshape(new_sizes)


def _unchanged(*arrays: np.ndarray, **_: Any) -> list[np.ndarray]:
    return list(arrays)


# The moved nodes: one array, or a list of them if the primitive has several results.
MOVES: dict[str, Callable[..., np.ndarray | list[np.ndarray]]] = {
    "slice": _slice,
    "broadcast_in_dim": _broadcast,
    "pad": _pad,
    "split": _split,
    "reshape": _reshape,
    "squeeze": lambda nodes, dimensions: nodes.squeeze(tuple(dimensions)),
    "expand_dims": lambda nodes, dimensions: np.expand_dims(nodes, tuple(dimensions)),
    "transpose": lambda nodes, permutation: nodes.transpose(permutation),
    "rev": lambda nodes, dimensions: np.flip(nodes, dimensions),
    "tile": lambda nodes, reps: np.tile(nodes, reps),
    "concatenate": lambda *arrays, dimension: np.concatenate(arrays, dimension),
    "stack": lambda *arrays, axis: np.stack(arrays, axis),
    "unstack": lambda nodes, axis: list(np.moveaxis(nodes, axis, 0)),
    "stop_gradient": _unchanged,
    "optimization_barrier": _unchanged,
    "copy": _unchanged,
    "copy_p": _unchanged,
    "name": _unchanged,
}

# Moves by index: JAX itself moves the numbers of the nodes.
INDEXED = ("gather", "scatter", "dynamic_slice", "dynamic_update_slice")

# The program inside a primitive that only calls it.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
