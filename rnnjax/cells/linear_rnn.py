"""The diagonal linear network: every unit decays at its own rate."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, Units, carry_dtype
from ..cell import AbstractLinearCell, Hidden, Shapes, learnable_zeros
from ..gated_cell import AbstractAffineCell


class LinearRNN(AbstractAffineCell, AbstractLinearCell):
    """Mozer 1992 ("Induction of multiscale temporal structure"); Martin & Cundy 2018, arXiv:1709.04057.

        h_t = a * h_{t-1} + W x_t + b

    A set of leaky integrators: `a` is a real weight, one for each unit, and the same at every step. It is drawn inside
    (-1, 1), where the memory decays, but training may move it out; that of `LRU` stays inside. With a dense R in
    place of `a` it is `Elman(activation=rnnjax.cells.linear)`.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    bias: Bias | None
    decay: Float[Array, " H"]  # a
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
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        decay_initialiser: initialise.Initialiser = initialise.time_constants(),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; `decay_initialiser` is any `(key, shape, dtype) -> a`."""
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[1], self.gates, hidden_size, dtype) if bias else None
        self.decay = decay_initialiser(keys[2], (hidden_size,), dtype)
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        return super().weight_shapes | {"decay": (self.hidden_size,)}

    def coefficients(self, u: Gates) -> tuple[Units, Units]:
        carried = carry_dtype(u.dtype)
        return self.decay.astype(carried), u[0].astype(carried)
