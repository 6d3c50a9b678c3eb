"""The scalar LSTM of xLSTM: exponential gates, and a normaliser that divides the memory."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, InputWeight, PyTree, RecurrentWeight, Unit, UnitGates, Units
from ..cell import initial_or_zeros
from ..exporting import exportable
from ..gated_cell import AbstractGatedCell

START = -1e30  # of m, a maximum: -inf less -inf would be NaN, and from 0 a first input gate of -110 would give 0 / 0


@exportable
class SLSTMState(NamedTuple):
    """Hidden state, and memory and normaliser, both divided by exp(m), and m of each unit."""

    h: Units
    c: Units
    n: Units
    m: Units


class AbstractSLSTM(AbstractGatedCell):
    """The steps of an sLSTM. Subclass requirements: the fields below, and those of an `AbstractGatedCell`."""

    state_type: ClassVar[type] = SLSTMState
    gates: ClassVar[str] = "ifgo"
    initial_state: ClassVar[None] = None

    exponential_forget_gate: eqx.AbstractVar[bool]

    def initial(self) -> SLSTMState:
        zeros = initial_or_zeros(SLSTMState, None, self.hidden_size, self.dtype)
        return zeros._replace(m=jax.lax.full_like(zeros.m, START))

    def pointwise(self, parameters: PyTree[Unit], u: UnitGates, v: UnitGates, state: SLSTMState) -> SLSTMState:
        del parameters
        i, f, g, o = u + v
        log_forget = f if self.exponential_forget_gate else _log_sigmoid(f)
        carried = log_forget + state.m
        m = jnp.maximum(carried, i)
        keep, write = jnp.exp(carried - m), jnp.exp(i - m)  # one of the two is exactly one, so that n is one or more
        c, n = keep * state.c + write * jnp.tanh(g), keep * state.n + write
        return SLSTMState(sigmoid(o) * c / n, c, n, m)


class SLSTM(AbstractSLSTM):
    """Beck et al. 2024, "xLSTM: extended long short-term memory", arXiv:2405.04517, section 2.2: the sLSTM.

        i~, f~, g~, o~ = W x_t + R h_{t-1} + b
        i = exp(i~)     f = sigmoid(f~), or exp(f~) with `exponential_forget_gate`
        c_t = f * c_{t-1} + i * tanh(g~)        n_t = f * n_{t-1} + i
        h_t = sigmoid(o~) * c_t / n_t

    Gate order i, f, g, o; the paper calls the candidate g z. The gates do not overflow: the state has c exp(-m),
    n exp(-m) and m_t = max(log f + m_{t-1}, i~), unit by unit, and m starts at -1e30. h does not depend on m, so a
    gradient may stop at m. In a given state n exp(m) must be positive, or c and n zero and m -1e30, as at the start.

    Shapes:
        input_weight       W [I, 4 H]
        recurrent_weight   R [H, 4 H], or [N, D, 4 D] of N heads with D = H / N units each
        bias               b [4 H], or None

    The authors' program takes the first step of a sequence for one where n is zero in the whole batch; here it is that
    of each sequence, after resets, too. It has the gates in the order i, f, z, o; its layer `sLSTMLayer` computes i by
    the module `fgate`, and f by `igate`. `networks.SLSTMBlock` is the layer around this cell.
    """

    input_weight: InputWeight
    recurrent_weight: RecurrentWeight
    bias: Bias | None
    exponential_forget_gate: bool = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 1,
        exponential_forget_gate: bool = False,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.small,
        recurrent_initialiser: initialise.Initialiser = initialise.zero_weights,
        bias_initialiser: initialise.Initialiser | None = None,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as in the authors' program: R is zero, and the biases of f fall from 5 to -7 in each head.

        heads                     R is block-diagonal with this many blocks; the paper has 4
        exponential_forget_gate   f is exp(f~), not a sigmoid
        bias_initialiser          None: `initialise.power_law(heads)`
        The other arguments are as in `LSTM`.
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size, heads=heads)
        check.flags(exponential_forget_gate=exponential_forget_gate, bias=bias)
        keys = random.split(key, 3)
        bias_initialiser = initialise.power_law(heads) if bias_initialiser is None else bias_initialiser
        self.input_weight = initialise.input_weight(
            input_initialiser, keys[0], input_size, self.gates, hidden_size, dtype
        )
        self.recurrent_weight = initialise.recurrent_weight(
            recurrent_initialiser, keys[1], self.gates, hidden_size, heads, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_size, dtype) if bias else None
        self.exponential_forget_gate = exponential_forget_gate


def _log_sigmoid(f: Unit) -> Unit:
    """log sigmoid(f) by the operations that kernels have."""
    return jnp.minimum(f, 0) - jnp.log1p(jnp.exp(-jnp.abs(f)))
