"""The real-gated linear recurrent unit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Flags, Inputs, RecurrentWeight, Units, UnitsOverTime, carry_dtype
from ..cell import Hidden, initial_or_zeros, learnable_zeros
from .gated_lru import AbstractGatedLRU, RGLRUState, draw_decay


class RGLRU(AbstractGatedLRU):
    """De et al. 2024, "Griffin", arXiv:2402.19427.

        r, i  = sigmoid(W x_t + b)              W block-diagonal over `heads`
        log a = -8 softplus(Lambda) * r
        h_t   = a * h_{t-1} + sqrt(1 - a^2) * (i * x_t)

    Gate order r, i; h and x have the same size. At the first step of a sequence, and at the first after a reset, there
    is no previous state, and the root is replaced by one. So the state includes whether the sequence has started, and
    this is a network around a linear cell, which the given engine runs. `networks.CGLRU` is its complex form.
    """

    gate_weight: RecurrentWeight  # of r and i
    bias: Bias | None
    decay: Float[Array, " H"]  # Lambda
    initial_state: Hidden | None

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 1,
        bias: bool = True,
        learn_initial: bool = False,
        gate_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: biases are zero, and Lambda is such that a at r = 1 is uniform from 0.9 to 0.999.

        hidden_size        both I and H
        gate_initialiser   draws the block of each gate and head
        The other arguments are as in `LSTM`.
        """
        check.sizes(hidden_size=hidden_size, heads=heads)
        check.flags(bias=bias, learn_initial=learn_initial)
        check.dtype(dtype)
        keys = random.split(key, 2)
        self.gate_weight = initialise.recurrent_weight(gate_initialiser, keys[0], "ri", hidden_size, heads, dtype)
        self.bias = random.zeros(2 * hidden_size, dtype) if bias else None
        self.decay = draw_decay(keys[1], hidden_size, dtype)
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.decay.shape, self.decay.dtype)

    def initial(self) -> RGLRUState:
        initial = initial_or_zeros(Hidden, self.initial_state, self.decay.shape[0], self.decay.dtype)
        return RGLRUState(initial.h, jnp.asarray(False))

    def hidden(self, state: RGLRUState) -> Units:
        return state.h

    def coefficients(self, xs: Inputs, first: Flags) -> tuple[UnitsOverTime, UnitsOverTime]:
        xs = xs.astype(carry_dtype(self.decay.dtype))
        gates = self.gates(xs, first)
        return jnp.exp(gates.log_size), gates.write * xs

    def readout(self, hs: UnitsOverTime) -> UnitsOverTime:
        return hs.astype(self.decay.dtype)
