"""The firing-rate network of neuroscience, with a recurrent weight of full or of low rank."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Gates, Inputs, InputWeight, RecurrentWeight, Units, UnitsOverTime
from ..cell import Hidden, Shapes, learnable_zeros
from ..checked import Checked
from ..exporting import exportable
from ..gated_cell import AbstractAffineCell, recur
from ..named import named


@exportable
class LowRankWeight(NamedTuple):
    """R = n m' / H of rank K, for states in rows: m is where the recurrence writes, n what it reads."""

    m: Float[Array, "H K"]
    n: Float[Array, "H K"]


class RateRNN(AbstractAffineCell):
    """A leaky firing-rate network, in which currents h are integrated and rates are passed on.

        tau dh/dt = -h + W x + R activation(h) + b, by Euler's method with leak = dt / tau:

        h_t = (1 - leak) * h_{t-1} + leak * (W x_t + R r_{t-1} + b)
        r_t = activation(h_t),        y_t = r_t

    Sompolinsky, Crisanti & Sommers 1988 (Physical Review Letters 61:259); for cognitive tasks Song, Yang & Wang 2016
    (PLoS Computational Biology 12:e1004792), whose rates are rectified. `Elman` with a `leak` integrates the rates
    instead, and `Fused` runs it; this cell's activation is before the product, so it is a plain cell.

    With `rank=K` the recurrent weight is R = n m' / H (Mastrogiuseppe & Ostojic 2018, Neuron 99:609), which takes 2 H K
    products a step. Their network also has a random part of full rank, which this one lacks.

    Noise is that of `rnnjax.regularise.NoisyStates(cell, deviation)`: for the paper's sigma_rec, with deviation =
    sqrt(2 leak) sigma_rec. Excitatory and inhibitory units, and missing connections: `rnnjax.networks.Constrained`.
    """

    gates: ClassVar[str] = "n"

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight | LowRankWeight
    bias: Bias | None
    initial_state: Hidden | None
    activation: Callable[[Array], Array] = eqx.field(static=True, converter=named)
    leak: float = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        leak: Checked[float],
        key: PRNGKeyArray,
        rank: Checked[int | None] = None,
        activation: Checked[Callable[[Array], Array]] = jnp.tanh,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.normal,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `Elman`, and these:

        leak   dt / tau, above 0 and up to 1
        rank   K, up to H, of a recurrent weight of low rank, whose m and n are drawn standard normal, whatever
               `recurrent_initialiser` is; None: a matrix
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size)
        check.flags(bias=bias, learn_initial=learn_initial)
        check.activations(activation=activation)
        if not 0 < check.number("leak", leak) <= 1:
            raise ValueError(
                f"leak: expected dt / tau, above 0 and up to 1, got {leak!r}. "
                "Pass the time step over the time constant, such as 0.1"
            )
        keys = random.split(key, 3)
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = (
            initialise.recurrent_weight(recurrent_initialiser, keys[1], self.gates, hidden_size, 1, dtype)
            if rank is None
            else _draw_low_rank(keys[1], hidden_size, rank, dtype)
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)
        self.activation = activation
        self.leak = float(leak)

    @property
    def weight_shapes(self) -> Shapes:
        shapes, hidden_size, weight = super().weight_shapes, self.hidden_size, self.recurrent_weight
        if not isinstance(weight, LowRankWeight):
            return shapes | {"recurrent_weight": (hidden_size, hidden_size)}
        rank = min(weight.m.shape[-1], weight.n.shape[-1])
        return shapes | {f"recurrent_weight.{field}": (hidden_size, rank) for field in weight._fields}

    def step(self, state: Hidden, u: Gates) -> Hidden:
        v = _recur(self.recurrent_weight, self.activation(state.h))
        return Hidden((1 - self.leak) * state.h + self.leak * (u[0].astype(state.h.dtype) + v))

    def readout(self, states: Hidden, xs: Inputs) -> UnitsOverTime:
        del xs
        return self.activation(states.h).astype(self.dtype)

    def hidden(self, state: Hidden) -> Units:
        return self.activation(state.h)


def _recur(weight: RecurrentWeight | LowRankWeight, r: Units) -> Units:
    """R r, by two thin products where R is of low rank."""
    if not isinstance(weight, LowRankWeight):
        return recur(weight, r, 1)[0]
    return recur(weight.m.T, recur(weight.n, r, 1)[0], 1)[0] / r.size


def _draw_low_rank(key: PRNGKeyArray, hidden_size: int, rank: int, dtype: DType) -> LowRankWeight:
    check.sizes(rank=rank)
    if rank > hidden_size:
        raise ValueError(
            f"rank: expected up to hidden_size={hidden_size}, got {rank}. Pass None for a matrix of full rank"
        )
    draws = (random.normal(one, (hidden_size, rank), dtype) for one in random.split(key, 2))
    return LowRankWeight(*(random.array(drawn, dtype) for drawn in draws))
