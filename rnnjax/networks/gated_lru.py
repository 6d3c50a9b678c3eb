"""What the real-gated and the complex-gated linear recurrent unit of Griffin have in common."""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid, softplus
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import random
from ..arrays import Bias, DType, Flags, Inputs, RecurrentWeight, Units, UnitsOverTime, by_gate
from ..cell import Hidden
from ..cells.linear_recurrence import LinearRecurrence
from ..exporting import exportable
from ..gated_cell import recur
from ..network import AbstractNetwork, Options
from ..unroll import unroll


@exportable
class RGLRUState(NamedTuple):
    """The hidden state, and whether there has been a step since the start or the last reset."""

    h: Units
    begun: Bool[Array, ""]


class GatesOfSteps(NamedTuple):
    """The gates of all steps: log |a|, the recurrence gate r before its sigmoid, and the factor of the input."""

    log_size: UnitsOverTime
    r: UnitsOverTime
    write: UnitsOverTime


class AbstractGatedLRU(AbstractNetwork):
    """A network around a linear recurrence, whose gates r and i are functions of the input alone.

    At the first step of a sequence, and at the first after a reset, there is no previous state, and the factor
    sqrt(1 - |a|^2) is replaced by one. So the state includes whether the sequence has started.

    The derivative of the root is infinite at |a| = 1, and other implementations clip it. Here |a| is close to one only
    if r or the softplus is close to zero, and as a function of their logarithms the root has a finite derivative, which
    is computed without clipping.

    Subclass requirements: the fields below, `initial`, `coefficients` and `readout`.
    """

    gate_weight: eqx.AbstractVar[RecurrentWeight]  # of r and i
    bias: eqx.AbstractVar[Bias | None]
    decay: eqx.AbstractVar[Float[Array, " H"]]  # Lambda

    @abc.abstractmethod
    def initial(self) -> RGLRUState:
        """The state before the first step, and after a reset."""

    @abc.abstractmethod
    def coefficients(self, xs: Inputs, first: Flags) -> tuple[UnitsOverTime, UnitsOverTime]:
        """`(a, b)` of the recurrence h = a h + b, over time; `first` marks the steps that have no previous state."""

    @abc.abstractmethod
    def readout(self, hs: UnitsOverTime) -> UnitsOverTime:
        """The outputs from the hidden states."""

    def run(self, state: RGLRUState, xs: Inputs, options: Options) -> tuple[RGLRUState, UnitsOverTime]:
        T = xs.shape[0]
        first = (jnp.arange(T) == 0) & ~state.begun
        if options.resets is not None:
            first = first | options.resets
        coefficients = options.over_time(self.coefficients, xs, first)
        recurrence = LinearRecurrence(Hidden(self.initial().h))
        after, hs = unroll(recurrence, Hidden(state.h), coefficients, **options._asdict())
        any_valid = jnp.asarray(T if options.length is None else options.length) > 0
        return RGLRUState(after.h, state.begun | any_valid), self.readout(hs)

    def gates(self, xs: Inputs, first: Flags) -> GatesOfSteps:
        """The gates of inputs in the carry's dtype."""
        gates = jax.vmap(recur, (None, 0, None))(self.gate_weight, xs, 2)
        if self.bias is not None:
            gates = gates + by_gate(self.bias.astype(xs.dtype), 2)[None]
        r, i = gates[:, 0], gates[:, 1]
        log_rate = math.log(16.0) + log_softplus(self.decay.astype(xs.dtype))[None] + log_sigmoid(r)  # of -2 log |a|
        log_rate = jnp.minimum(log_rate, 7.4)  # beyond, a is zero in float64, too
        root = jnp.where(first[:, None], 1.0, root_of_rest(log_rate))
        return GatesOfSteps(-0.5 * jnp.exp(log_rate), r, root * sigmoid(i))


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
