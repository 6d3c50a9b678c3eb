"""A function of one step applied to all steps at once; products of linear layers see the steps as rows."""

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import equinox as eqx
import jax
from jaxtyping import Array

from .arrays import PyTree
from .checked import Checked


def map_steps(function: Checked[Callable[[Array], PyTree[Array]]], xs: Array) -> PyTree[Array]:
    """`jax.vmap(function)(xs)`, where xs is [T, ...].

    The batching rule of `W @ x` makes the features the first axis of the product, and XLA's CPU compiler transposes all
    of it for what follows, which can take longer than the product. So linear layers are computed as x W'.
    """
    if _is_linear(function) and xs.ndim == 2:
        ys = xs @ function.weight.T
        return ys if function.bias is None else ys + function.bias
    if _is_plain_sequence(function):
        for layer in function.layers:
            xs = map_steps(layer, xs) if _is_linear(layer) else jax.vmap(partial(layer, key=None))(xs)
        return xs
    return jax.vmap(function)(xs)


def _is_linear(function: object) -> TypeGuard[eqx.nn.Linear]:
    """Whether it maps vectors to vectors, by Equinox's own method."""
    if type(function) is not eqx.nn.Linear:
        return False
    return isinstance(function.in_features, int) and isinstance(function.out_features, int)


def _is_plain_sequence(function: object) -> TypeGuard[eqx.nn.Sequential]:
    return type(function) is eqx.nn.Sequential and not function.is_stateful()
