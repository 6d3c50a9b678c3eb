"""The matrix LSTM: a layer around its recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Inputs, State, UnitsOverTime, carry_dtype, cast
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .head_norm import head_norm
from .mlstm_recurrence import MLSTMInputs, MLSTMRecurrence, SigmoidMLSTMRecurrence


class MLSTM(AbstractNetwork):
    """Beck et al. 2024, "xLSTM", arXiv:2405.04517: the matrix LSTM, with a layer norm of each head as in its releases.

        q, k, v, o~ = W x_t                 i~, f~ = P x_t + p          for each head: q, k: [K], v, o~: [V], i~, f~: []
        h~_t = C_t' q / max(|n_t' q|, 1)    `MLSTMRecurrence`, whose docstring has the equations of C and n
        y_t  = sigmoid(o~) * norm(h~_t) * scale                         y: [H], H = N V, the heads side by side

    The state is that of the recurrence: an `MLSTMState`. With `sigmoid_input_gate` it is the mLSTMsig of Beck et al.
    2025 (arXiv:2503.14376), `SigmoidMLSTMRecurrence`, whose state is a `Matrix`. There is no matrix product inside the
    loop, and `Chunked` runs it, as `Auto` chooses where there is a CPU kernel.

        layer = rnnjax.networks.MLSTM(64, 64, heads=4, key=jax.random.key(0))
        state, ys = rnnjax.unroll(layer, None, xs)

    This is the recurrent layer of xLSTM-7B (arXiv:2503.13427) without its output matrix and the soft cap of its gates;
    `MLSTMBlock` is the block of the first paper. The paper has biases on q, k, v and o, the releases have none.

    Shapes:
        input_weight   W [I, 2 N K + 2 N V], the columns of q, then of k, v and o, each head by head
        gate_weight    P [I, 2 N], the columns of i, then of f
        gate_bias      p [2 N]
        norm_scale     scale [H]
    """

    input_weight: Float[Array, "I KKVV"]
    gate_weight: Float[Array, "I NN"]
    gate_bias: Float[Array, " NN"]
    norm_scale: Float[Array, " H"]
    recurrence: MLSTMRecurrence | SigmoidMLSTMRecurrence

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        key: PRNGKeyArray,
        heads: int = 4,
        key_size: int | None = None,
        sigmoid_input_gate: bool = False,
        exponential_forget_gate: bool = False,
        input_initialiser: initialise.Initialiser = initialise.small,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights as published: P is zero, p of f from 3 to 6, head by head, and of i normal times 0.1.

        input_size, hidden_size   I and H
        heads                     N; it must divide H
        key_size                  K; None: V = H / N
        sigmoid_input_gate        mLSTMsig: i is a sigmoid, without normaliser
        exponential_forget_gate   f is exp(f~), not a sigmoid; not for mLSTMsig
        input_initialiser         draws W, [I, columns]
        dtype                     of weights, inputs and outputs; below float32 gates and states stay in float32
        """
        check.sizes(input_size=input_size, hidden_size=hidden_size, heads=heads)
        value_size = hidden_size // heads
        key_size = value_size if key_size is None else key_size
        check.sizes(key_size=key_size)
        check.dtype(dtype)
        keys = random.split(key, 2)
        drawn = input_initialiser(keys[0], (input_size, 2 * heads * (key_size + value_size)), carry_dtype(dtype))
        self.input_weight = random.array(drawn, dtype)
        self.gate_weight = random.zeros((input_size, 2 * heads), dtype)
        self.gate_bias = draw_gate_bias(keys[1], heads, dtype)
        self.norm_scale = random.array(np.ones(hidden_size), dtype)
        sizes = heads, key_size, value_size
        self.recurrence = _recurrence(sizes, sigmoid_input_gate, exponential_forget_gate, dtype)

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    def initial(self) -> State:
        return self.recurrence.initial()

    def hidden(self, state: State) -> None:
        """None: attention and decoders read a vector of hidden units, and a matrix state has none."""
        del state

    def run(self, state: State, xs: Inputs, options: Options) -> tuple[State, UnitsOverTime]:
        inputs, o = options.over_time(self._project, xs)
        state, hs = unroll(self.recurrence, state, inputs, **options._asdict())
        return state, options.over_time(self._readout, hs, o)

    def _project(self, xs: Inputs) -> tuple[MLSTMInputs, UnitsOverTime]:
        N, K, V = self.recurrence.heads, self.recurrence.key_size, self.recurrence.value_size
        q, k, v, o = jnp.split(xs @ self.input_weight, (N * K, 2 * N * K, 2 * N * K + N * V), axis=1)
        i, f = gates(xs, self.gate_weight, self.gate_bias)
        by_head = lambda rows: rows.reshape(-1, N, rows.shape[1] // N)  # noqa: E731
        return MLSTMInputs(by_head(q), by_head(k), by_head(v), i, f), o

    def _readout(self, hs: Float[Array, "T N V"], o: UnitsOverTime) -> UnitsOverTime:
        hs, o = cast((hs, o), carry_dtype(self.input_weight.dtype))
        return (sigmoid(o) * head_norm(hs, self.norm_scale)).astype(self.input_weight.dtype)


def _recurrence(
    sizes: tuple[int, int, int], sigmoid_input_gate: bool, exponential_forget_gate: bool, dtype: DType
) -> MLSTMRecurrence | SigmoidMLSTMRecurrence:
    """The recurrence with these gates, of sizes N, K and V."""
    check.flags(sigmoid_input_gate=sigmoid_input_gate, exponential_forget_gate=exponential_forget_gate)
    if not sigmoid_input_gate:
        return MLSTMRecurrence(*sizes, exponential_forget_gate=exponential_forget_gate, dtype=dtype)
    if exponential_forget_gate:
        raise ValueError(
            "exponential_forget_gate: expected False with sigmoid_input_gate=True, whose state has no stabiliser, "
            "got True. Pass one of the two"
        )
    return SigmoidMLSTMRecurrence(*sizes, dtype=dtype)


def gates(
    xs: Inputs, weight: Float[Array, "I NN"], bias: Float[Array, " NN"]
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """The pre-activations of i and f, in float32 or wider."""
    wide = carry_dtype(xs.dtype)
    i, f = jnp.split(jnp.matmul(xs, weight, preferred_element_type=wide) + bias.astype(wide)[None], 2, axis=1)
    return i, f


def draw_gate_bias(key: PRNGKeyArray, heads: int, dtype: DType) -> Float[Array, " NN"]:
    """The biases of i, normal times 0.1, and of f, from 3 to 6, head by head."""
    drawn = random.normal(key, (heads,), dtype) * 0.1
    xp = random.numpy_for(drawn)
    return random.array(xp.concatenate([drawn, xp.linspace(3.0, 6.0, heads)]), dtype)
