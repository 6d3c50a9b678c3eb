"""Long short-term memory with coupled gates whose recurrent weights are diagonal."""

from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, by_gate
from ..cell import AbstractDiagonalCell, Shapes, learnable_zeros
from ..gated_cell import AbstractAffineCell
from .lstm import LSTMState


class DiagonalLSTM(AbstractAffineCell, AbstractDiagonalCell):
    """The CIFG-LSTM of Danieli et al. 2025, "ParaRNN", arXiv:2510.21450; gate order f, g, o.

        f   = sigmoid(W x_t + b + d * h_{t-1} + p * c_{t-1})         g = tanh(W x_t + b + d * h_{t-1})
        c_t = f * c_{t-1} + (1 - f) * g
        o   = sigmoid(W x_t + b + d * h_{t-1} + p * c_t)
        h_t = o * tanh(c_t)

    with a vector d for each gate, and peepholes p. The Jacobian is a block of h and c for each unit:
    `Newton(Diagonal())` solves for all of time at once, with the exact Jacobian. Units are combined only in the layer
    above: stack two or more.
    """

    state_type: ClassVar[type] = LSTMState
    gates: ClassVar[str] = "fgo"

    input_weight: InputWeight
    recurrent_weight: Bias  # d of all gates, [3 H]
    peepholes: Float[Array, " FO"]  # p of f and o, [2 H]
    bias: Bias | None
    initial_state: LSTMState | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.interval(-1.0, 1.0),
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; `recurrent_initialiser` draws d, [3, H], and p, [2, H]."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 4)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.diagonal_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, dtype
        )
        self.peepholes = initialise.diagonal_weight(recurrent_initialiser, keys[2], "fo", hidden_size, dtype)
        self.bias = initialise.bias(bias_initialiser, keys[3], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, LSTMState, hidden_size, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        hidden_size = self.hidden_size
        return super().weight_shapes | {"recurrent_weight": (3 * hidden_size,), "peepholes": (2 * hidden_size,)}

    def step(self, state: LSTMState, u: Gates) -> LSTMState:
        carried = state.h.dtype
        d, (p_f, p_o) = by_gate(self.recurrent_weight.astype(carried), 3), by_gate(self.peepholes.astype(carried), 2)
        f, g, o = u.astype(carried) + d * state.h[None]
        f = sigmoid(f + p_f * state.c)
        c = f * state.c + (1 - f) * jnp.tanh(g)
        return LSTMState(sigmoid(o + p_o * c) * jnp.tanh(c), c)
