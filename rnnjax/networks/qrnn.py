"""The quasi-recurrent network: gates computed from a few inputs, and a pooling along time."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Inputs, Units, UnitsOverTime, carry_dtype, count_steps
from ..cell import Hidden, initial_or_zeros, learnable_zeros
from ..cells.linear_recurrence import LinearRecurrence
from ..checked import Checked
from ..exporting import exportable
from ..gated_cell import affine
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .window import Remembered, look_back


@exportable
class QRNNState(NamedTuple):
    """The inputs of the last `window - 1` steps, oldest first, and the state of the pooling."""

    inputs: Remembered
    c: Units


class QRNN(AbstractNetwork):
    """Bradbury et al. 2016, "Quasi-recurrent neural networks", arXiv:1611.01576.

        i, f, o = sigmoid(W * x + b)         g = tanh(W * x + b)         W * x: a causal convolution over `window` steps
        c_t = f * c_{t-1} + (1 - f) * g      y_t = o * c_t

    Gate order i, f, g, o. That is the paper's fo-pooling. Without `output_gate` it is f-pooling, y = c; with
    `input_gate` it is ifo-pooling, c = f c + i g. The gates are one matrix product for all of time, and the pooling is
    a linear cell, which the given engine runs: `Associative`, or any that runs step by step.

    With `zoneout` and a `key`, each unit keeps its c for a step with that probability, c_t = c_{t-1}: the paper's
    zoneout, f = 1 - dropout(1 - sigmoid(..)), where the dropout does not rescale; with an input gate, i is dropped
    along with 1 - f. It draws for every step anew, and it changes the coefficients alone, so every engine runs it.
    Without a key nothing is dropped and nothing is rescaled. (The authors' code then multiplies 1 - f by 1 - zoneout.)
    """

    input_weight: Float[Array, "W I GH"]  # input_weight[age] multiplies x_{t - age}
    bias: Bias | None
    initial_state: Hidden | None  # of c
    gates: str = eqx.field(static=True)
    zoneout: float = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        window: int = 2,
        output_gate: bool = True,
        input_gate: bool = False,
        zoneout: Checked[float] = 0.0,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights; the initialiser draws [window * I, H].

        window                   1 or more steps
        output_gate, input_gate  which pooling: see above
        zoneout                  the probability of keeping c as it was, 0 <= zoneout < 1
        The other arguments are as in `LSTM`.
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size, window=window)
        check.flags(output_gate=output_gate, input_gate=input_gate, bias=bias, learn_initial=learn_initial)
        keys = random.split(key, 2)
        self.zoneout = check.probability("zoneout", zoneout, "keeping c as it was (of 1 it would never change)")
        self.gates = "i" * input_gate + "fg" + "o" * output_gate
        rows = window * input_size
        weight = initialise.input_weight(input_initialiser, keys[0], rows, self.gates, hidden_size, dtype)
        self.input_weight = random.array(random.known(weight).reshape(window, input_size, -1), dtype)
        self.bias = initialise.bias(bias_initialiser, keys[1], self.gates, hidden_size, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, hidden_size, dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[1:2], self.input_weight.dtype)

    def initial(self) -> QRNNState:
        window, inputs, columns = self.input_weight.shape
        units, dtype = columns // len(self.gates), self.input_weight.dtype
        return QRNNState(
            jnp.zeros((window - 1, inputs), dtype), initial_or_zeros(Hidden, self.initial_state, units, dtype).h
        )

    def hidden(self, state: QRNNState) -> Units:
        return state.c

    def run(self, state: QRNNState, xs: Inputs, options: Options) -> tuple[QRNNState, UnitsOverTime]:
        last, windows = look_back(state.inputs, xs, options)
        coefficients, o = options.over_time(self._gates, self._updated(xs, options.key), *windows)
        pooling = LinearRecurrence(Hidden(self.initial().c))
        after, ys = unroll(pooling, Hidden(state.c), coefficients, **options._asdict())
        if o is not None:
            ys = options.over_time(jnp.multiply, o, ys)
        return QRNNState(last, after.h), ys.astype(self.input_weight.dtype)

    def _updated(self, xs: Inputs, key: PRNGKeyArray | None) -> Bool[Array, "T H"] | None:
        """Which units change their c at each step; None if all do."""
        if key is None or self.zoneout == 0:
            return None
        units = self.input_weight.shape[2] // len(self.gates)
        return jax.random.bernoulli(key, 1 - self.zoneout, (count_steps(xs), units))

    def _gates(
        self, updated: Bool[Array, "T H"] | None, *windows: Inputs
    ) -> tuple[tuple[UnitsOverTime, UnitsOverTime], UnitsOverTime | None]:
        """The coefficients of the pooling, and the output gate if there is one."""
        flat = self.input_weight.reshape(-1, self.input_weight.shape[2])
        us = affine(flat, self.bias, jnp.concatenate(windows, axis=-1)).astype(carry_dtype(self.input_weight.dtype))
        u = dict(zip(self.gates, jnp.split(us, len(self.gates), axis=1), strict=True))
        write = sigmoid(u["i"]) if "i" in u else sigmoid(-u["f"])  # 1 - f, without the cancellation
        a, b = sigmoid(u["f"]), write * jnp.tanh(u["g"])
        if updated is not None:
            a, b = jnp.where(updated, a, 1.0), jnp.where(updated, b, 0.0)
        return (a, b), sigmoid(u["o"]) if "o" in u else None
