"""Long expressive memory: two states, each with its own time step."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, InputWeight, RecurrentWeight, Units
from ..cell import Shapes, learnable_zeros
from ..exporting import exportable
from ..gated_cell import AbstractAffineCell, recur


@exportable
class LEMState(NamedTuple):
    """Hidden state, the y of the paper, and memory."""

    h: Units
    z: Units


class LEM(AbstractAffineCell):
    """Rusch, Mishra, Erichson & Mahoney 2022, arXiv:2110.04744; a discretised pair of differential equations.

        d, e = time_step * sigmoid(W x_t + R h_{t-1} + b)
        z_t  = (1 - d) * z_{t-1} + d * tanh(W x_t + R h_{t-1} + b)
        h_t  = (1 - e) * h_{t-1} + e * tanh(W x_t + C z_t + b)

    The gate order of W and b is d, e, the candidate of z, the candidate of h; R has the first three. h depends on the
    new z, so that two products follow each other in the loop. So it is a plain cell: engines that run any cell run it,
    and `Fused` does not. Weights and biases are drawn as in the paper's code, uniformly within 1/sqrt(H).
    """

    state_type: ClassVar[type] = LEMState
    gates: ClassVar[str] = "iigg"

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight  # of all but the candidate of h
    candidate_weight: RecurrentWeight  # C
    bias: Bias | None
    initial_state: LEMState | None
    time_step: float = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        time_step: float = 1.0,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.uniform,
        recurrent_initialiser: initialise.Initialiser = initialise.uniform,
        bias_initialiser: initialise.Initialiser = initialise.uniform_bias,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`; `time_step` is the largest that d and e can be, above 0.

        For `bias_initialiser`, d and e are two gates `i`, which write, and keep with 1 - i.
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        time_step = check.number("time_step", time_step)
        if not 0 < time_step < np.inf:
            raise ValueError(
                f"time_step: expected a positive number, got {time_step!r}. "
                "Pass the largest step of the state, such as 1.0"
            )
        keys = random.split(key, 4)
        recurrent = lambda key, gates: initialise.recurrent_weight(  # noqa: E731
            recurrent_initialiser, key, gates, hidden_size, 1, dtype
        )
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = recurrent(keys[1], "iig")
        self.candidate_weight = recurrent(keys[2], "g")
        self.bias = initialise.bias(bias_initialiser, keys[3], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, LEMState, hidden_size, dtype)
        self.time_step = time_step

    @property
    def weight_shapes(self) -> Shapes:
        hidden_size = self.hidden_size
        recurrent = {"recurrent_weight": (hidden_size, 3 * hidden_size), "candidate_weight": (hidden_size, hidden_size)}
        return super().weight_shapes | recurrent

    def step(self, state: LEMState, u: Gates) -> LEMState:
        u = u.astype(state.h.dtype)
        *steps, g = u[:3] + recur(self.recurrent_weight, state.h, 3)
        d, e = (self.time_step * sigmoid(step) for step in steps)
        z = (1 - d) * state.z + d * jnp.tanh(g)
        g = u[3] + recur(self.candidate_weight, z, 1)[0]
        return LEMState((1 - e) * state.h + e * jnp.tanh(g), z)
