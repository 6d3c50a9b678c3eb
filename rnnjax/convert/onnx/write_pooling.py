"""Pooling as nodes: the outputs [T, B, features] of all steps to one vector of each sequence, [B, features]."""

from collections.abc import Callable

import numpy as np

from ...cell import describe
from ...models.pooling import ends, last, maximum, mean
from .context import Context


def pooling_writer(pooling: Callable) -> Callable[[Context, str], str]:
    """A function that writes the nodes of a pooling. Raises for one that ONNX has no nodes for."""
    for known, writer in POOLINGS:
        if pooling is known:
            return writer
    raise ValueError(
        f"network: expected the pooling last, ends, mean or maximum, got {describe(pooling)}. "
        "Use one of these, or export with jax.export"
    )


def _last(context: Context, ys: str) -> str:
    graph = context.graph
    if context.lengths is None:
        return graph.node("Gather", ys, graph.constant(-1, np.int64), axis=0)
    final = graph.node("Where", context.lengths.final, ys, graph.constant(0, context.dtype))
    return graph.node("ReduceSum", final, graph.integers(0), keepdims=0)


def _ends(context: Context, ys: str) -> str:
    graph = context.graph
    forward, backward = graph.node("Split", context.valid(ys), axis=2, outputs=(".forward", ".backward"))
    first = graph.node("Gather", backward, graph.constant(0, np.int64), axis=0)
    return graph.node("Concat", _last(context, forward), first, axis=1)


def _mean(context: Context, ys: str) -> str:
    graph = context.graph
    if context.lengths is None:
        return graph.node("ReduceMean", ys, axes=[0], keepdims=0)
    total = graph.node("ReduceSum", context.valid(ys), graph.integers(0), keepdims=0)
    steps = graph.node("Cast", context.lengths.steps, to=graph.onnx.helper.np_dtype_to_tensor_dtype(context.dtype))
    return graph.node("Div", total, graph.node("Unsqueeze", steps, graph.integers(1)))


def _maximum(context: Context, ys: str) -> str:
    graph = context.graph
    top = graph.node("ReduceMax", context.valid(ys, -np.inf), axes=[0], keepdims=0)
    if context.lengths is None:
        return top
    return graph.node("Where", context.lengths.empty, graph.constant(0, context.dtype), top)


POOLINGS = ((last, _last), (ends, _ends), (mean, _mean), (maximum, _maximum))
