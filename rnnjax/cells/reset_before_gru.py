"""The gated recurrent unit of the paper, reset before the product."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, RecurrentWeight
from ..cell import Hidden, Shapes, learnable_zeros
from ..checked import Checked
from ..gated_cell import AbstractAffineCell, recur, recurrent_shape
from ..named import named


class ResetBeforeGRU(AbstractAffineCell):
    """Cho et al. 2014 (arXiv:1406.1078v3).

        r, z = sigmoid(W x_t + b + R h_{t-1})
        n    = tanh(W x_t + b + C (r * h_{t-1}))
        h_t  = (1 - z) * n + z * h_{t-1}

    The product with C depends on r, so two products follow each other in the loop, and it is a plain cell: engines that
    run any cell run it, and `Fused` does not. If speed matters use `GRU`; the two are different functions and do not
    share weights.
    `activation` and `gate_activation` are any elementwise functions in place of the tanh and the sigmoid.
    """

    gates: ClassVar[str] = "rzn"

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight  # of r and z
    candidate_weight: RecurrentWeight  # C, of n
    bias: Bias | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    gate_activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        activation: Checked[Callable[[Array], Array]] = jnp.tanh,
        gate_activation: Checked[Callable[[Array], Array]] = sigmoid,
        heads: int = 1,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, heads=heads)
        check.flags(bias=bias, learn_initial=learn_initial)
        check.activations(activation=activation, gate_activation=gate_activation)
        keys = random.split(key, 4)
        recurrent = lambda key, gates: initialise.recurrent_weight(  # noqa: E731
            recurrent_initialiser, key, gates, hidden_size, heads, dtype
        )
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = recurrent(keys[1], "rz")
        self.candidate_weight = recurrent(keys[2], "n")
        self.bias = initialise.bias(bias_initialiser, keys[3], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation
        self.gate_activation = gate_activation

    @property
    def weight_shapes(self) -> Shapes:
        hidden_size = self.hidden_size
        return super().weight_shapes | {
            "recurrent_weight": recurrent_shape(self.recurrent_weight, hidden_size, 2),
            "candidate_weight": recurrent_shape(self.candidate_weight, hidden_size, 1),
        }

    def step(self, state: Hidden, u: Gates) -> Hidden:
        u = u.astype(state.h.dtype)
        r, z = self.gate_activation(u[:2] + recur(self.recurrent_weight, state.h, 2))
        n = self.activation(u[2] + recur(self.candidate_weight, r * state.h, 1)[0])
        return Hidden((1 - z) * n + z * state.h)
