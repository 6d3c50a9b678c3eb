"""The Elman network, vanilla, rectified or linear."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, InputWeight, RecurrentWeight, UnitGates
from ..cell import Hidden, learnable_zeros
from ..checked import Checked
from ..gated_cell import AbstractGatedCell
from ..hints import OF_LAYERS, instead
from ..named import named


class Elman(AbstractGatedCell):
    """Elman 1990, "Finding structure in time".

        h_t = activation(W x_t + R h_{t-1} + b)

    `activation` is any elementwise function: `jnp.tanh`, `jax.nn.relu` (with `initialise.identity` the IRNN), or
    `rnnjax.cells.linear`, which gives the linear network `s_k = s_{k-1} w_rec + x_k w_x`. Since its R is dense,
    `Associative` does not run it. With a `leak` the units are leaky integrators (Lukoševičius 2012, "A practical guide
    to applying echo state networks"):

        h_t = (1 - leak) * h_{t-1} + leak * activation(W x_t + R h_{t-1} + b)

    Shapes:
        input_weight       W [I, H]
        recurrent_weight   R [H, H], or [N, D, D] of N heads with D = H / N units each
        bias               b [H], or None
        initial_state      h [H], or None
    W is the transpose of torch's. `rnnjax.convert` reads and writes the layouts of other libraries.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    leak: float | None = eqx.field(static=True)

    @instead(OF_LAYERS)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        activation: Checked[Callable[[Array], Array]] = jnp.tanh,
        leak: float | None = None,
        heads: int = 1,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`, `activation`, and `leak`, above 0 and up to 1."""
        check.sizes(input_size=input_size, hidden_size=hidden_size, heads=heads)
        check.flags(bias=bias, learn_initial=learn_initial)
        check.activations(activation=activation)
        leak = None if leak is None else check.number("leak", leak)
        if leak is not None and not 0 < leak <= 1:
            raise ValueError(
                f"leak: expected a share above 0 and up to 1, or None, got {leak!r}. "
                "Pass None for units that do not integrate"
            )
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.recurrent_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, heads, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation
        self.leak = leak

    def pointwise(self, parameters: None, u: UnitGates, v: UnitGates, state: Hidden) -> Hidden:
        del parameters
        (n,) = u + v
        n = self.activation(n)
        return Hidden(n if self.leak is None else (1 - self.leak) * state.h + self.leak * n)


def linear(n: Array) -> Array:
    """The identity as an activation."""
    return n
