"""The gated recurrent unit, reset after the product."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, InputWeight, PyTree, RecurrentWeight, Unit, UnitGates, Units
from ..cell import Hidden, learnable_zeros
from ..checked import Checked
from ..gated_cell import AbstractCandidateCell, unchanged
from ..hints import OF_LAYERS, instead
from ..named import named


class GRU(AbstractCandidateCell):
    """Cho et al. 2014 (arXiv:1406.1078v1), reset *after* the product as torch, cuDNN, Keras and Flax have it.

        r, z = sigmoid(W x_t + b + R h_{t-1})
        n    = tanh(W x_t + b + r * (R h_{t-1} + d))
        h_t  = (1 - z) * n + z * h_{t-1}

    Gate order r, z, n; a z of one keeps the state. `candidate_bias` is d, inside the reset; r and z have no second
    bias, being sums. The form with the reset before the product is `ResetBeforeGRU`. `activation` and
    `gate_activation` are any elementwise functions in place of the tanh and the sigmoid.

    Shapes; the columns are those of r, then of z and n:
        input_weight       W [I, 3 H]
        recurrent_weight   R [H, 3 H], or [N, D, 3 D] of N heads with D = H / N units each
        bias               b [3 H], or None
        candidate_bias     d [H], or None
        initial_state      h [H], or None
    `rnnjax.convert` reads and writes the layouts of other libraries.
    """

    gates: ClassVar[str] = "rzn"

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    candidate_bias: Units | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    gate_activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    @instead(OF_LAYERS)
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
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.recurrent_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, heads, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.candidate_bias = initialise.bias(bias_initialiser, keys[3], "n", hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation
        self.gate_activation = gate_activation

    @property
    def unit_parameters(self) -> PyTree:
        return self.candidate_bias

    def write(
        self, parameters: Unit | None, u: UnitGates, v: UnitGates, state: Hidden, through: Callable[[Unit], Unit]
    ) -> Hidden:
        return gate(parameters, u, v, state.h, self.activation, self.gate_activation, through)


def gate(
    bias: Float[Array, "..."] | None,
    u: Float[Array, "G *units"],
    v: Float[Array, "G *units"],
    h: Float[Array, "*units"],
    activation: Callable[[Array], Array] = jnp.tanh,
    gate_activation: Callable[[Array], Array] = sigmoid,
    through: Callable[[Array], Array] = unchanged,
) -> Hidden:
    """The elementwise half of every GRU that resets after the product; `bias` is the one inside the reset."""
    (u_r, u_z, u_n), (v_r, v_z, v_n) = u, v
    if bias is not None:
        v_n = v_n + bias
    z = gate_activation(u_z + v_z)
    n = activation(u_n + gate_activation(u_r + v_r) * v_n)
    return Hidden((1 - z) * through(n) + z * h)
