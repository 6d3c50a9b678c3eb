"""The gated recurrent unit whose recurrent weights are diagonal."""

from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, by_gate
from ..cell import AbstractDiagonalCell, Hidden, Shapes, learnable_zeros
from ..gated_cell import AbstractAffineCell


class DiagonalGRU(AbstractAffineCell, AbstractDiagonalCell):
    """The ParaGRU of Danieli et al. 2025, "ParaRNN", arXiv:2510.21450; gate order r, z, n, as in `GRU`.

        r, z = sigmoid(W x_t + b + d * h_{t-1})
        n    = tanh(W x_t + b + d * (r * h_{t-1}))
        h_t  = (1 - z) * n + z * h_{t-1}

    with a vector d for each gate. Here z keeps, as in `GRU`; in the paper it writes. Units are combined only in the
    layer above: stack two or more. `Newton(Diagonal())` solves for all of time at once, with the exact Jacobian.
    """

    gates: ClassVar[str] = "rzn"

    input_weight: InputWeight
    recurrent_weight: Bias  # d of all gates, [3 H]
    bias: Bias | None
    initial_state: Hidden | None

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
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `GRU`, but for heads; `recurrent_initialiser` draws d, [3, H]."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.diagonal_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        return super().weight_shapes | {"recurrent_weight": (3 * self.hidden_size,)}

    def step(self, state: Hidden, u: Gates) -> Hidden:
        u, d = u.astype(state.h.dtype), by_gate(self.recurrent_weight.astype(state.h.dtype), 3)
        r, z = sigmoid(u[:2] + d[:2] * state.h[None])
        n = jnp.tanh(u[2] + d[2] * (r * state.h))
        return Hidden((1 - z) * n + z * state.h)
