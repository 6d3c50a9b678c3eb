"""A function of one step applied to all steps at once; products of linear layers see the steps as rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from .arrays import PyTree


def over_steps(function: Callable[..., Any], xs: Array) -> PyTree[Array]:
    """`jax.vmap(function)(xs)`, where xs is [T, ...].

    The batching rule of `W @ x` makes the features the first axis of the product, and XLA's CPU compiler transposes all
    of it for what follows, which can take longer than the product. So linear layers are computed as x W'.
    """
    if type(function) is eqx.nn.Linear and xs.ndim == 2 and function.out_features != "scalar":
        ys = xs @ function.weight.T
        return ys if function.bias is None else ys + function.bias
    if type(function) is eqx.nn.Sequential and not function.is_stateful():
        for layer in function.layers:
            xs = over_steps(layer, xs) if type(layer) is eqx.nn.Linear else jax.vmap(partial(layer, key=None))(xs)
        return xs
    return jax.vmap(function)(xs)
