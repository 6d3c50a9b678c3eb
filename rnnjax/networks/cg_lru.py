"""The complex-gated linear recurrent unit."""

import math

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Flags, Inputs, RecurrentWeight, UnitsOverTime, by_gate, carry_dtype
from ..cells.lru import check_phase
from ..cells.state_space import join
from .gated_lru import AbstractGatedLRU, RGLRUState, draw_decay


class CGLRU(AbstractGatedLRU):
    """De et al. 2024, "Griffin", arXiv:2402.19427, appendix B: the `RGLRU` with complex units.

        r, i  = sigmoid(W x_t + b)                            W block-diagonal over `heads`, r and i of I / 2 units
        log a = (-8 softplus(Lambda) + j theta) * r           j the imaginary unit
        h_t   = a * h_{t-1} + sqrt(1 - |a|^2) * (i * z_t)     z_t = the first half of x_t, plus j times the second
        y_t   = [Re h_t, Im h_t]

    Inputs and outputs are real, of I features; the state has I / 2 complex units. All weights are real, so that any
    optimiser can be used. theta is the angle of a at r = 1, as in the authors' code; it is 8 times that of the paper.
    The first step of a sequence is as in `RGLRU`.
    """

    gate_weight: RecurrentWeight  # of r and i
    bias: Bias | None
    decay: Float[Array, " H"]  # Lambda
    theta: Float[Array, " H"]
    initial_state: Float[Array, " PH"] | None  # the real parts of h, and then the imaginary parts

    def __init__(
        self,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 1,
        bias: bool = True,
        max_phase: float = math.pi / 10,
        learn_initial: bool = False,
        gate_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: at r = 1, |a| is uniform from 0.9 to 0.999, and its angle from 0 to `max_phase`.

        hidden_size        I, a multiple of 2 * heads: half of the features are real parts, the others imaginary parts
        max_phase          the largest initial angle of a, in radians
        gate_initialiser   draws the block of each gate and head
        The other arguments are as in `LSTM`; biases are zero.
        """
        check.sizes(hidden_size=hidden_size, heads=heads)
        check.flags(bias=bias, learn_initial=learn_initial)
        check.dtype(dtype)
        check_phase(max_phase)
        check_pairs(hidden_size, heads)
        keys, units = random.split(key, 3), hidden_size // 2
        self.gate_weight = initialise.block_weight(gate_initialiser, keys[0], hidden_size, "ri", units, heads, dtype)
        self.bias = random.zeros(hidden_size, dtype) if bias else None
        self.decay = draw_decay(keys[1], units, dtype)
        self.theta = random.array(random.uniform(keys[2], (units,), jnp.float32, 0.0, max_phase), dtype)
        self.initial_state = random.zeros(hidden_size, dtype) if learn_initial else None

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2 * self.decay.shape[0],), self.decay.dtype)

    def initial(self) -> RGLRUState:
        parts = self.initial_state
        if parts is None:
            parts = jnp.zeros(2 * self.decay.shape[0], self.decay.dtype)
        return RGLRUState(join(by_gate(parts, 2)), jnp.asarray(False))

    def hidden(self, state: RGLRUState) -> Float[Array, " PH"]:
        return jnp.concatenate([state.h.real, state.h.imag])

    def coefficients(self, xs: Inputs, first: Flags) -> tuple[UnitsOverTime, UnitsOverTime]:
        xs = xs.astype(carry_dtype(self.decay.dtype))
        gates = self.gates(xs, first)
        angle = self.theta.astype(xs.dtype)[None] * sigmoid(gates.r)
        real, imaginary = jnp.split(xs, 2, axis=1)
        a = jnp.exp(jax.lax.complex(gates.log_size, angle))
        return a, jax.lax.complex(gates.write * real, gates.write * imaginary)

    def readout(self, hs: UnitsOverTime) -> Float[Array, "T PH"]:
        return jnp.concatenate([hs.real, hs.imag], axis=1).astype(self.decay.dtype)


def check_pairs(hidden_size: int, heads: int) -> None:
    """Raise unless the features of each head are pairs."""
    if hidden_size % (2 * heads):
        size = -(-hidden_size // (2 * heads)) * 2 * heads
        raise ValueError(
            f"hidden_size: expected a multiple of 2 * heads = {2 * heads}, since two features are one complex unit, "
            f"got {hidden_size}. Take {size} features"
        )
