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
    """The hidden state, and whether there has been a step since the start or the last reset."""

    h: Units
    begun: Bool[Array, ""]


class RGLRU(AbstractNetwork):
    """De et al. 2024, "Griffin", arXiv:2402.19427.

        r, i  = sigmoid(W x_t + b)              W block-diagonal over `heads`
        log a = -8 softplus(Lambda) * r
        h_t   = a * h_{t-1} + sqrt(1 - a^2) * (i * x_t)

    Gate order r, i; h and x have the same size. At the first step of a sequence, and at the first after a reset, there
    is no previous state, and the root is replaced by one. So the state includes whether the sequence has started, and
    this is a network around a linear cell, which the given engine runs.

    The derivative of the root is infinite at a = 1, and other implementations clip it. Here a is close to one only if r
    or the softplus is close to zero, and as a function of their logarithms the root has a finite derivative, which is
    computed without clipping.
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

        hidden_size        both I and H
        gate_initialiser   draws the block of each gate and head
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
        any_valid = jnp.asarray(T if options.length is None else options.length) > 0
        return RGLRUState(after.h, state.begun | any_valid), ys.astype(self.decay.dtype)

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
    """sqrt(1 - exp(-exp(log_rate))), accurate and with a finite derivative even where the root is close to zero."""
    small = log_rate < -12.0
    rate = jnp.exp(jnp.where(small, log_rate, 0.0))
    near = jnp.exp(0.5 * jnp.where(small, log_rate, 0.0)) * jnp.sqrt(1 - rate / 2 + rate**2 / 6)
    far = jnp.sqrt(-jnp.expm1(-jnp.exp(jnp.where(small, 0.0, log_rate))))
    return jnp.where(small, near, far)


def log_softplus(n: Float[Array, "..."]) -> Float[Array, "..."]:
    """log softplus(n), which tends to n where softplus would underflow."""
    small = n < -40.0
    return jnp.where(small, n, jnp.log(softplus(jnp.where(small, 0.0, n))))


def draw_decay(key: PRNGKeyArray, hidden_size: int, dtype: DType) -> Float[Array, " H"]:
    """Lambda, where exp(-8 softplus(Lambda)) is uniform from 0.9 to 0.999."""
    kept = random.uniform(key, (hidden_size,), jnp.float32, 0.9, 0.999)
    xp = random.numpy_for(kept)
    return random.array(xp.log(xp.expm1(-xp.log(kept) / 8)), dtype)
