"""Functions of one step as nodes: layers of Equinox, embeddings, and any elementwise function."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...arrays import AnyArray
from ...cell import describe
from ...kernels.recurrence.pointwise.expressions import Graph, Node
from ...kernels.recurrence.pointwise.primitives import TranslationError
from ...kernels.recurrence.pointwise.trace import trace
from ...models.embedding import Embedding
from ...named import Function, Named
from .activations import UNCHANGED, activation_of
from .context import Context
from .write_expression import write_expressions

NODES = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "LeakyRelu", "Elu", "HardSigmoid", "ThresholdedRelu")
ALONG_FEATURES = ((jax.nn.softmax, "Softmax"), (jax.nn.log_softmax, "LogSoftmax"))


def write_function(function: Callable, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    """`function` of every step; `form` is what it takes."""
    if type(function) in LAYERS:
        return LAYERS[type(function)](function, context, xs, form)
    if not jax.tree_util.all_leaves([function]):
        raise refused(function, "a layer whose operators ONNX has")
    plain = function.function if isinstance(function, Named) else function
    for known, operator in ALONG_FEATURES:
        if plain == known:
            return context.graph.node(operator, xs, axis=-1)
    activation = activation_of(function)
    if activation == UNCHANGED:
        return xs
    if activation is not None and activation.name in NODES:
        attributes = dict(zip(("alpha", "beta"), activation.parameters, strict=False))
        return context.graph.node(activation.name, xs, **attributes)
    return _write_elementwise(function, context, xs, form)


def _wrapped(function: Function, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    return write_function(function.function, context, xs, form)


def _wrapped_in_equinox(function: eqx.nn.Lambda, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    return write_function(function.fn, context, xs, form)


def _nothing(function: Any, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    del function, context, form
    return xs


def _linear(function: eqx.nn.Linear, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    del form
    if "scalar" in (function.in_features, function.out_features):
        raise refused(function, "one of vectors")
    return write_affine(context, xs, np.asarray(function.weight), function.bias)


def _layer_norm(function: eqx.nn.LayerNorm, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    weight = np.ones(form.shape, form.dtype) if function.weight is None else np.asarray(function.weight)
    bias = () if function.bias is None else (context.graph.constant(function.bias),)
    return context.graph.node(
        "LayerNormalization", xs, context.graph.constant(weight), *bias, axis=-1, epsilon=float(function.eps)
    )


def _embedding(function: Any, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    """Padding may hold any integer, which is none of the table's rows."""
    if context.lengths is not None:
        graph = context.graph
        valid = graph.node("Squeeze", context.lengths.valid, graph.integers(2))
        xs = graph.node("Where", valid, xs, graph.constant(0, form.dtype))
    return context.graph.node("Gather", context.graph.constant(function.weight), xs, axis=0)


def _sequential(function: eqx.nn.Sequential, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    for layer in function.layers:
        xs, form = write_function(layer, context, xs, form), jax.eval_shape(layer, form)
    return xs


def _perceptron(function: eqx.nn.MLP, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    for number, layer in enumerate(function.layers):
        xs, form = write_function(layer, context, xs, form), jax.eval_shape(layer, form)
        if number + 1 < len(function.layers):
            xs = _write_each_unit(function.activation, context, xs, form)
    return _write_each_unit(function.final_activation, context, xs, form)


def _write_each_unit(activation: Any, context: Context, xs: str, form: jax.ShapeDtypeStruct) -> str:
    """The activation of a perceptron, which has one copy for each unit where it has weights."""
    if any(map(eqx.is_array, jax.tree.leaves(activation))):
        raise refused(activation, "an activation without weights")
    return write_function(activation, context, xs, form)


def write_affine(context: Context, xs: str, weight: np.ndarray, bias: AnyArray | None) -> str:
    """W x + b, W [O, I]."""
    product = context.graph.node("MatMul", xs, context.graph.constant(weight.T))
    return product if bias is None else context.graph.node("Add", product, context.graph.constant(bias))


def _write_elementwise(
    function: Callable[[Array], Array], context: Context, xs: str, form: jax.ShapeDtypeStruct
) -> str:
    """A function whose every output is the same expression of one input."""
    size, dtype = int(np.prod(form.shape)), np.dtype(form.dtype)
    graph = Graph(dtype)
    try:
        (outputs,) = trace(graph, lambda x: {"y": jnp.ravel(function(x.reshape(form.shape)))}, {"x": size}).values()
    except TranslationError as error:
        raise refused(function, "an elementwise function of operations that ONNX has", str(error)) from error
    forms = {_of_row(graph, output, row) for row, output in enumerate(outputs)}
    if len(outputs) != size or len(forms) != 1 or None in forms:
        raise refused(function, "an elementwise function, or a layer that ONNX has")
    (written,) = write_expressions(context.graph, graph, outputs[:1], {("x", 0): xs})
    return written


def _of_row(graph: Graph, output: int, row: int) -> Any:
    """The expression as nested tuples, its input by no number; None where it looks at another row."""
    node: Node = graph.nodes[output]
    if node.operation == "input":
        return ("input",) if node.leaf == ("x", row) else None
    operands = [_of_row(graph, operand, row) for operand in node.operands]
    return None if None in operands else (node.operation, node.leaf, *operands)


def refused(function: object, expected: str, reason: str = "") -> ValueError:
    """The error for what has no counterpart."""
    because = f" ({reason})" if reason else ""
    return ValueError(
        f"network: expected {expected} for each step, got {describe(function)}{because}. "
        "Use eqx.nn.Linear, LayerNorm, Embedding, MLP, or elementwise functions, or export with jax.export"
    )


LAYERS: dict[type, Callable[[Any, Context, str, jax.ShapeDtypeStruct], str]] = {
    Function: _wrapped,
    eqx.nn.Lambda: _wrapped_in_equinox,
    eqx.nn.Identity: _nothing,
    eqx.nn.Dropout: _nothing,
    eqx.nn.Linear: _linear,
    eqx.nn.LayerNorm: _layer_norm,
    eqx.nn.Embedding: _embedding,
    Embedding: _embedding,
    eqx.nn.Sequential: _sequential,
    eqx.nn.MLP: _perceptron,
}
