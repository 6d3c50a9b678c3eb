"""The real-gated linear recurrent unit."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid, softplus
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Flags, Inputs, RecurrentWeight, Units, UnitsOverTime, by_gate, carry_dtype
from ..cell import Hidden, initial_or_zeros, learnable_zeros, recur
from ..cells.linear_recurrence import LinearRecurrence
from ..exporting import exportable
from ..network import AbstractNetwork, Options
from ..unroll import unroll


@exportable
class RGLRUState(NamedTuple):
    """The hidden state, and whether a step has been taken since the start or the last reset."""

    h: Units
    begun: Bool[Array, ""]


class RGLRU(AbstractNetwork):
    """De et al. 2024, "Griffin", arXiv:2402.19427.

        r, i  = sigmoid(W x_t + b)              W block-diagonal over `heads`
        log a = -8 softplus(Lambda) * r
        h_t   = a * h_{t-1} + sqrt(1 - a^2) * (i * x_t)

    Gate order r, i; h is as wide as x. The first step of a sequence, and the first after a reset, has nothing to mix x
    with: there the root is one. So the state knows whether it has begun, and this is a network around a linear cell,
    which the engine given runs.

    The root has an infinite slope at a = 1, which others clip. It is not needed: a comes near one only as r or softplus
    does near zero, and by their logarithms the root's slope is finite, and is what is computed here.
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

        hidden_size        I and H, which are one here
        gate_initialiser   draws each gate's block of each head
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

    def run(self, state: RGLRUState, xs: Inputs, options: Options) -> tuple[RGLRUState, UnitsOverTime]:
        T = xs.shape[0]
        first = (jnp.arange(T) == 0) & ~state.begun
        if options.resets is not None:
            first = first | options.resets
        coefficients = options.over_time(self._coefficients, xs, first)
        recurrence = LinearRecurrence(Hidden(self.initial().h))
        after, ys = unroll(recurrence, Hidden(state.h), coefficients, **options._asdict())
        taken = jnp.asarray(T if options.length is None else options.length) > 0
        return RGLRUState(after.h, state.begun | taken), ys.astype(self.decay.dtype)

    def _coefficients(self, xs: Inputs, first: Flags) -> tuple[UnitsOverTime, UnitsOverTime]:
        carried = carry_dtype(self.decay.dtype)
        xs = xs.astype(carried)
        gates = jax.vmap(recur, (None, 0, None))(self.gate_weight, xs, 2)
        if self.bias is not None:
            gates = gates + by_gate(self.bias.astype(carried), 2)[None]
        r, i = gates[:, 0], gates[:, 1]
        log_rate = math.log(16.0) + log_softplus(self.decay.astype(carried))[None] + log_sigmoid(r)  # of -2 log a
        log_rate = jnp.minimum(log_rate, 7.4)  # beyond, a is zero in float64, too
        root = jnp.where(first[:, None], 1.0, root_of_rest(log_rate))
        return jnp.exp(-0.5 * jnp.exp(log_rate)), root * sigmoid(i) * xs


def root_of_rest(log_rate: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(1 - exp(-exp(log_rate))), as accurate, and its slope as finite, where that is the root of nearly nothing."""
    small = log_rate < -12.0
    rate = jnp.exp(jnp.where(small, log_rate, 0.0))
    near = jnp.exp(0.5 * jnp.where(small, log_rate, 0.0)) * jnp.sqrt(1 - rate / 2 + rate**2 / 6)
    far = jnp.sqrt(-jnp.expm1(-jnp.exp(jnp.where(small, 0.0, log_rate))))
    return jnp.where(small, near, far)


def log_softplus(n: Float[Array, "..."]) -> Float[Array, "..."]:
    """log softplus(n), which tends to n where softplus would be lost."""
    small = n < -40.0
    return jnp.where(small, n, jnp.log(softplus(jnp.where(small, 0.0, n))))


def draw_decay(key: PRNGKeyArray, hidden_size: int, dtype: DType) -> Float[Array, " H"]:
    """Lambda, where exp(-8 softplus(Lambda)) is uniform from 0.9 to 0.999."""
    kept = random.uniform(key, (hidden_size,), jnp.float32, 0.9, 0.999)
    xp = random.numpy_for(kept)
    return random.array(xp.log(xp.expm1(-xp.log(kept) / 8)), dtype)
