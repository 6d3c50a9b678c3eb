"""The independently recurrent network: each unit depends on its own past alone."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units
from ..cell import AbstractDiagonalCell, Hidden, Shapes, learnable_zeros
from ..gated_cell import AbstractAffineCell
from ..named import named


class IndRNN(AbstractAffineCell, AbstractDiagonalCell):
    """Li et al. 2018, "Independently recurrent neural network", arXiv:1803.04831.

        h_t = activation(W x_t + r * h_{t-1} + b)

    Units are combined only in the layer above: stack two or more. Over T steps a state is multiplied by r^T, so the
    paper bounds |r| <= 2^(1/T); `initialise.interval(0.0, 2 ** (1 / T))` draws it within these bounds.
    `Newton(Diagonal())` solves for all of time at once, with the exact Jacobian.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    recurrent_weight: Units  # r
    bias: Bias | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        activation: Callable[[Array], Array] = jax.nn.relu,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.interval(0.0, 1.0),
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `Elman`; `recurrent_initialiser` draws r, [1, H]."""
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
        self.activation = activation

    @property
    def weight_shapes(self) -> Shapes:
        return super().weight_shapes | {"recurrent_weight": (self.hidden_size,)}

    def step(self, state: Hidden, u: Gates) -> Hidden:
        carried = state.h.dtype
        (n,) = u.astype(carried)
        return Hidden(self.activation(n + self.recurrent_weight.astype(carried) * state.h))
