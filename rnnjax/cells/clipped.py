"""Activations of pre-activations that are held within a bound."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array

from .. import check
from ..checked import Checked
from ..named import named


def clipped(activation: Checked[Callable[[Array], Array]], bound: Checked[float]) -> Callable[[Array], Array]:
    """`activation(clip(a, -bound, bound))`: the `clip` of the RNN, LSTM and GRU of ONNX.

        GRU(32, 64, activation=clipped(jnp.tanh, 3.0), gate_activation=clipped(jax.nn.sigmoid, 3.0), key=key)

    An activation for the cells that take one. In an `LSTM` the cell state is not a pre-activation: pass
    `output_activation=jnp.tanh` beside it. The option `clip` of `LSTM` is another: it bounds the cell state.
    """
    check.activations(activation=activation)
    size = check.number("bound", bound)
    if not size > 0:
        raise ValueError(
            f"bound: expected a positive number, got {bound!r}. "
            "Pass the largest absolute value that a pre-activation may have"
        )
    return named(partial(clip_first, named(activation), size))


def clip_first(activation: Callable[[Array], Array], bound: float, a: Array) -> Array:
    """What `clipped` is of one array."""
    return activation(jnp.clip(a, -bound, bound))
