"""The simple recurrent unit in its linear version: a linear recurrence with a highway connection."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import (
    Bias,
    DType,
    Gates,
    GatesOverTime,
    Inputs,
    InputWeight,
    Units,
    UnitsOverTime,
    by_gate,
    carry_dtype,
    shift,
)
from ..cell import AbstractLinearCell, Hidden, Shapes, learnable_zeros
from ..gated_cell import AbstractAffineCell, affine
from ..named import named


class SRU(AbstractAffineCell, AbstractLinearCell):
    """Lei, Zhang & Artzi 2017, "Training RNNs as fast as CNNs", the first version, arXiv:1709.02755v1.

        f, r = sigmoid(W x_t + b)
        c_t  = f * c_{t-1} + (1 - f) * (W x_t)
        y_t  = r * activation(c_t) + (1 - r) * x_t

    c is the state; its field is named `h`, as in every linear cell. If I and H differ, the highway has W x_t in place
    of x_t. In later versions the gates depend on v * c_{t-1}, so that they are not linear in the state: they are
    different functions, with different weights.
    """

    gates: ClassVar[str] = "fg"

    input_weight: InputWeight  # of f and the candidate g
    output_weight: Float[Array, "I RX"]  # of r and, if I and H differ, of the highway x
    bias: Bias | None  # of f and r
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        activation: Callable[[Array], Array] = jnp.tanh,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`, and `activation`, any elementwise function; there is no R."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 3)
        outputs = "r" if input_size == hidden_size else "rx"
        weight = initialise.input_weight
        self.input_weight = weight(input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype)
        self.output_weight = weight(input_initialiser, keys[1], input_size, outputs, hidden_size, dtype)
        self.bias = initialise.bias(bias_initialiser, keys[2], "fr", hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation

    @property
    def weight_shapes(self) -> Shapes:
        inputs, outputs = self.input_weight.shape[0], self.hidden_size
        shape = inputs, outputs if inputs == outputs else 2 * outputs
        return super().weight_shapes | {"output_weight": shape}

    def project(self, xs: Inputs) -> GatesOverTime:
        us = by_gate(affine(self.input_weight, None, xs), 2)
        return us if self.bias is None else us.at[:, 0].add(self.bias[: self.hidden_size])

    def coefficients(self, u: Gates) -> tuple[Units, Units]:
        f, g = u.astype(carry_dtype(u.dtype))
        return sigmoid(f), sigmoid(-f) * g  # sigmoid(-f) is 1 - f without the cancellation

    def readout(self, states: Hidden, xs: Inputs) -> UnitsOverTime:
        us = affine(self.output_weight, None, xs)
        r, highway = (us, xs) if us.shape[1] == self.hidden_size else jnp.split(us, 2, axis=1)
        if self.bias is not None:
            r = shift(r, self.bias[self.hidden_size :])
        r, highway = r.astype(states.h.dtype), highway.astype(states.h.dtype)
        ys = sigmoid(r) * self.activation(states.h) + sigmoid(-r) * highway
        return ys.astype(self.input_weight.dtype)
