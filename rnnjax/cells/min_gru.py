"""The minimal gated recurrent unit, linear in its state."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units, carry_dtype
from ..cell import AbstractLinearCell, Hidden, learnable_zeros
from ..gated_cell import AbstractAffineCell
from ..named import named
from .elman import linear


class MinGRU(AbstractAffineCell, AbstractLinearCell):
    """Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201.

        i   = sigmoid(W x_t + b)         g = activation(W x_t + b)
        h_t = (1 - i) * h_{t-1} + i * g

    Gate order i, g; `i` is the paper's z, which writes (the z of `GRU` keeps). No gate depends on the state, so
    `Associative` runs it in parallel along time; on the other hand, one layer alone cannot count or compare. Stack two
    or more.

    `activation` is `linear`, the identity; `positive`, the paper's, with which h stays positive if it starts so (both
    are in `rnnjax.cells`); or any other. With `positive` the paper computes with logarithms, since it takes sums of
    log(1 - i) over time, and differences of their exponentials. That is not needed here: steps are composed as maps
    h -> a h + b, by products of factors in (0, 1) and by sums, which neither overflow nor divide. Only the gate that
    keeps needs care: it is sigmoid(-(W x + b)) rather than a difference from one.
    """

    gates: ClassVar[str] = "ig"

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
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`, and `activation`; there is no R, and no arguments of R."""
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
        write, g = u.astype(carry_dtype(u.dtype))
        # sigmoid(-write) is 1 - i without the cancellation where i is close to one
        return sigmoid(-write), sigmoid(write) * self.activation(g)


def positive(n: Array) -> Array:
    """An activation that is always positive: n + 1/2 for n >= 0, sigmoid(n) below, with a continuous value."""
    return jnp.where(n >= 0, n + 0.5, sigmoid(n))
