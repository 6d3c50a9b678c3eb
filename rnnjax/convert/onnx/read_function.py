"""Nodes that act on every step by itself, as layers of Equinox or as functions."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ... import random
from ...network import Layer
from ...networks.time_distributed import TimeDistributed
from .activations import FORMS, Activation, function_of
from .values import Attributes, Constant, Given, Steps, Value

POINTWISE = {name: form for name, form in FORMS.items() if name not in ("Affine", "ScaledTanh")}
ALONG_FEATURES: dict[str, Callable[..., Any]] = {"Softmax": jax.nn.softmax, "LogSoftmax": jax.nn.log_softmax}
THRESHOLD = Activation("ThresholdedRelu", (1.0,))


def function_node(operator: str, attributes: Attributes, steps: Steps, weights: Sequence[Value]) -> Steps | None:
    """The sequence after a node of one sequence and of constants; None for a node that is no layer here."""
    if operator in ALONG_FEATURES and attributes.get("axis", -1) in (-1, 2) and steps.axes[-1] == "F":
        return _each_step(steps, ALONG_FEATURES[operator], np.float32)
    if operator in POINTWISE and "D" not in steps.axes:
        return _each_step(steps, function_of(_activation(operator, attributes)), np.float32)
    if "D" in steps.axes or steps.axes[-1] != "F" or not all(isinstance(each, Constant) for each in weights):
        return None
    arrays = [each.array for each in weights if isinstance(each, Constant)]
    known = {"MatMul": _product, "Add": _sum, "LayerNormalization": _layer_norm}
    return known[operator](steps, attributes, arrays) if operator in known else None


def embedding(table: np.ndarray, tokens: Given) -> Steps:
    """The rows of a table by the tokens of a sequence."""
    layer = eqx.tree_at(
        lambda layer: layer.weight,
        eqx.filter_eval_shape(lambda: eqx.nn.Embedding(*table.shape, key=jax.random.key(0), dtype=table.dtype)),
        random.array(table, table.dtype),
    )
    axes = f"{tokens.axes}F"
    looked_up = TimeDistributed(layer, (), dtype=np.int32)
    return Steps(tokens.source, axes, None, table.shape[1]).then(looked_up)


def _activation(operator: str, attributes: Attributes) -> Activation:
    defaults = THRESHOLD.parameters if operator == THRESHOLD.name else FORMS[operator].defaults or ()
    words = ("alpha", "beta")[: len(FORMS[operator].keywords)]
    return Activation(
        operator, tuple(attributes.get(word, default) for word, default in zip(words, defaults, strict=True))
    )


def _each_step(steps: Steps, function: Callable[..., Any], dtype: Any) -> Steps:
    if steps.features is None:
        raise ValueError(
            f"model: expected the input {steps.source} to have a known number of features, got one that depends on the "
            "input. Export the model with that size fixed"
        )
    return steps.then(TimeDistributed(function, steps.features, dtype=dtype))


def _product(steps: Steps, attributes: Attributes, arrays: list[Any]) -> Steps | None:
    """W x, of a weight [I, O]."""
    del attributes
    (weight,) = arrays
    return steps.then(_linear(weight.T, None), features=weight.shape[1]) if weight.ndim == 2 else None


def _sum(steps: Steps, attributes: Attributes, arrays: list[Any]) -> Steps | None:
    """The bias of the product before it."""
    del attributes
    (bias,) = arrays
    layer: Layer | None = steps.layers[-1] if steps.layers else None
    fits = bias.shape == (steps.features,)
    if not fits or not isinstance(layer, TimeDistributed) or not isinstance(layer.function, eqx.nn.Linear):
        return None
    linear = layer.function
    return None if linear.use_bias else steps.last_layer(_linear(np.asarray(linear.weight), bias))


def _linear(weight: np.ndarray, bias: np.ndarray | None) -> TimeDistributed:
    outputs, inputs = weight.shape
    arrays = [random.array(array, array.dtype) for array in (weight, bias) if array is not None]
    like = eqx.filter_eval_shape(
        lambda: eqx.nn.Linear(inputs, outputs, bias is not None, weight.dtype, key=jax.random.key(0))
    )
    fields = ("weight", "bias")[: len(arrays)]
    linear = eqx.tree_at(lambda linear: [getattr(linear, field) for field in fields], like, arrays)
    return TimeDistributed(linear, inputs, dtype=weight.dtype)


def _layer_norm(steps: Steps, attributes: Attributes, arrays: list[Any]) -> Steps | None:
    weight, *rest = arrays
    bias = rest[0] if rest else None
    if attributes.get("axis", -1) not in (-1, 2) or weight.ndim != 1:
        return None
    like = eqx.filter_eval_shape(
        lambda: eqx.nn.LayerNorm(
            weight.shape, attributes.get("epsilon", 1e-5), use_bias=bias is not None, dtype=weight.dtype
        )
    )
    fields, arrays = ("weight", "bias")[: 1 + (bias is not None)], [each for each in (weight, bias) if each is not None]
    placed = [random.array(array, array.dtype) for array in arrays]
    norm = eqx.tree_at(lambda norm: [getattr(norm, field) for field in fields], like, placed)
    return steps.then(TimeDistributed(norm, weight.shape, dtype=weight.dtype))
