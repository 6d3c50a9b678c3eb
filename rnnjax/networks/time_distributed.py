"""Any function of one step, applied at every step: the layers between recurrent ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import check
from ..arrays import DType, PyTree, Sizes
from ..checked import Checked
from ..map_steps import map_steps
from ..named import as_module
from ..network import AbstractNetwork, Layer, Options


class TimeDistributed(AbstractNetwork):
    """y_t = function(x_t), with the same weights at every step; it has no state.

    `function` maps one step's input to one step's output: a layer of Equinox (`eqx.nn.LayerNorm(64)`, `eqx.nn.MLP`...),
    whose weights are trained along, or any function of arrays. A normalisation and a map of the features around each
    recurrence are what deep linear networks are made of:

        Stack([residual(Stack([TimeDistributed(norm, 64), LRU(64, 128, key=key), TimeDistributed(gate, 64)])), ...])

    and a convolution of each frame of a video, [T, 1, 28, 28], stands before them as

        TimeDistributed(eqx.nn.Conv2d(1, 8, 3, key=key), (1, 28, 28))

    The function is called with the input alone. Layers that need a key or a state (`eqx.nn.Dropout`,
    `eqx.nn.BatchNorm`) cannot be used; for dropout use `Stack(..., dropout=)`. At an ignored step the function gets the
    input of the first step, or zeros if no step is valid. With `resets`, inputs that are not finite are replaced by
    zeros before it is called. If a layer has a function as a field, such as the activation of `eqx.nn.MLP`, use
    `eqx.filter_grad` and `eqx.filter_jit` in place of `jax.grad` and `jax.jit`, as everywhere in Equinox.
    """

    function: Callable[..., Any]
    input_shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def __init__(
        self, function: Checked[Callable[[Array], PyTree[Array]]], input_shape: Sizes, *, dtype: DType = jnp.float32
    ):
        """`input_shape` and `dtype` are those of the input of one step; sequences are checked against them.

        `input_shape` is a tuple of sizes, () for a scalar; an integer I stands for (I,).
        """
        if isinstance(function, type | Layer) or not callable(function):
            raise TypeError(
                f"function: expected a function of the input of one step, or a layer, got {function!r}. "
                "Build the layer first, as in eqx.nn.Linear(3, 4, key=key)"
            )
        self.function = as_module(function)
        self.input_shape = check.shape("input_shape", input_shape)
        self.dtype = jnp.dtype(dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_shape, self.dtype)

    def initial(self) -> tuple[()]:
        return ()

    def run(self, state: tuple[()], xs: Array, options: Options) -> tuple[tuple[()], PyTree[Array]]:
        return state, options.over_time(partial(map_steps, self.function), xs)
