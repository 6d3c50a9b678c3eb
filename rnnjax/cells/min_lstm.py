"""The minimal long short-term memory, linear in its state."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jaxtyping import Array, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units, carry_dtype
from ..cell import AbstractLinearCell, Hidden, learnable_zeros
from ..gated_cell import AbstractAffineCell
from ..named import named
from .elman import linear


class MinLSTM(AbstractAffineCell, AbstractLinearCell):
    """Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201.

        i, f = sigmoid(W x_t + b)         g = activation(W x_t + b)
        h_t  = f / (f + i) * h_{t-1} + i / (f + i) * g

    Gate order i, f, g. The two factors add up to one. They are computed as sigmoids of log f - log i, which is exact
    even if both gates are close to zero, where the quotients would be 0 / 0. For `activation`, and for why the
    recurrence needs no logarithms, see `MinGRU`; as there, stack two or more.
    """

    gates: ClassVar[str] = "ifg"

    input_weight: InputWeight
    bias: Bias | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        activation: Callable[[Array], Array] = linear,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `MinGRU`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 2)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[1], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation

    def coefficients(self, u: Gates) -> tuple[Units, Units]:
        i, f, g = u.astype(carry_dtype(u.dtype))
        keep = softplus(-i) - softplus(-f)  # log f - log i
        return sigmoid(keep), sigmoid(-keep) * self.activation(g)
