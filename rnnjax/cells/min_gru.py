"""The minimal gated recurrent unit, linear in its state."""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import PRNGKeyArray

from .. import initialise
from ..arrays import Bias, Gates, InputWeight, Units, carry_dtype
from ..cell import AbstractAffineCell, AbstractLinearCell, Hidden, learned


class MinGRU(AbstractAffineCell, AbstractLinearCell):
    """Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201.

        i   = sigmoid(W x_t + b)         g = W x_t + b
        h_t = (1 - i) * h_{t-1} + i * g

    Gate order i, g; `i` is the paper's z, which writes (the z of `GRU` keeps). No gate sees the state, so `Associative`
    runs time in parallel; the price is that one layer alone cannot count or compare. Stack two or more.
    """

    input_weight: InputWeight
    bias: Bias | None
    start: Hidden | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype=jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; there is no R, so neither heads nor its initialiser."""
        initialise.check_sizes(input_size=input_size, hidden_size=hidden_size)
        keys = jax.random.split(key, 2)
        self.input_weight = initialise.input_weight(input_initialiser, keys[0], input_size, "ig", hidden_size, dtype)
        self.bias = bias_initialiser(keys[1], "ig", hidden_size, dtype) if bias else None
        self.start = learned(learn_initial, Hidden, hidden_size, dtype)

    def coefficients(self, u: Gates) -> tuple[Units, Units]:
        write, g = u.astype(carry_dtype(u.dtype))
        # sigmoid(-write) is 1 - i without the cancellation where i is close to one
        return sigmoid(-write), sigmoid(write) * g
