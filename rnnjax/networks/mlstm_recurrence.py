"""The recurrences of the matrix LSTM without weights: their queries, keys, values and gates are their inputs."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from .. import check
from ..arrays import DType, carry_dtype, cast
from ..cell import initial_or_zeros
from ..cells.matrix_recurrence import MatrixRecurrence
from ..cells.slstm import START
from ..exporting import exportable
from ..matrix_cell import Matrix, Transition
from ..network import AbstractNetwork, Options
from ..unroll import unroll
from .max_plus import running_maximum

Read = Float[Array, "T N V"]


@exportable
class MLSTMInputs(NamedTuple):
    """The inputs of one step of a matrix LSTM, or over time with an axis T in front; gates are pre-activations."""

    query: Float[Array, "*T N K"]
    key: Float[Array, "*T N K"]
    value: Float[Array, "*T N V"]
    input_gate: Float[Array, "*T N"]
    forget_gate: Float[Array, "*T N"]


@exportable
class MLSTMState(NamedTuple):
    """The state of a matrix LSTM: the memory and the normaliser, both divided by exp(m), and m of each head."""

    C: Float[Array, "N K V"]
    n: Float[Array, "N K"]
    m: Float[Array, " N"]


class MLSTMRecurrence(AbstractNetwork):
    """Beck et al. 2024, "xLSTM", arXiv:2405.04517, section 2.3: the matrix LSTM, of inputs that are `MLSTMInputs`.

        i = exp(i~)     f = sigmoid(f~), or exp(f~) with `exponential_forget_gate`
        C_t = f C_{t-1} + i k v'                n_t = f n_{t-1} + i k                       C: [K, V], n: [K]
        h_t = C_t' q / max(|n_t' q|, 1)         q = query / sqrt(K)                         h: [V]

    without overflow: the state has C exp(-m), n exp(-m) and m_t = max(log f + m_{t-1}, i~), which starts at -1e30. h
    does not depend on m. All m are found by an associative scan; C and n are a `MatrixRecurrence`, which the given
    engine runs. Gates and states are float32 or wider, also as inputs.

    As in NX-AI's `mlstm_kernels` the query is divided by sqrt(K). The paper, and NX-AI's `xlstm`, divide the key: their
    C and n are smaller by that factor, so states cannot be exchanged, though h is the same. Both programs add 1e-6 to
    the denominator, where the paper adds nothing; here nothing is added.
    """

    heads: int = eqx.field(static=True)
    key_size: int = eqx.field(static=True)
    value_size: int = eqx.field(static=True)
    exponential_forget_gate: bool = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        heads: int,
        key_size: int,
        value_size: int,
        *,
        exponential_forget_gate: bool = False,
        dtype: DType = jnp.float32,
    ):
        """`heads`, `key_size` and `value_size` are N, K and V; `dtype` is that of inputs and outputs."""
        check.sizes(heads=heads, key_size=key_size, value_size=value_size)
        check.flags(exponential_forget_gate=exponential_forget_gate)
        check.dtype(dtype)
        self.heads, self.key_size, self.value_size = heads, key_size, value_size
        self.exponential_forget_gate = exponential_forget_gate
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))

    def input_type(self) -> MLSTMInputs:
        return inputs_of(self.heads, self.key_size, self.value_size, self.dtype)

    def initial(self) -> MLSTMState:
        carried, (N, K, V) = carry_dtype(self.dtype), (self.heads, self.key_size, self.value_size)
        zeros = lambda *shape: jax.lax.full(shape, 0, carried)  # noqa: E731
        return MLSTMState(zeros(N, K, V), zeros(N, K), jax.lax.full((N,), START, carried))

    def run(self, state: MLSTMState, xs: MLSTMInputs, options: Options) -> tuple[MLSTMState, Read]:
        wide = cast(xs, carry_dtype(self.dtype))
        log_forget = options.over_time(self._log_forget, wide.forget_gate)
        maxima = running_maximum(state.m, log_forget, wide.input_gate, options)
        transition, floor = options.over_time(_stabilised, wide, log_forget, maxima.before, maxima.after)
        recurrence = MatrixRecurrence(
            self.heads, self.key_size, self.value_size + 1, scalar_decay=True, dtype=carry_dtype(self.dtype)
        )
        before = Matrix(jnp.concatenate([state.C, state.n[..., None]], axis=-1))
        after, reads = unroll(recurrence, before, transition, **options._asdict())
        ys = options.over_time(_normalised, reads, floor)
        C, n = after.S[..., :-1], after.S[..., -1]
        return MLSTMState(C, n, maxima.last), ys.astype(self.dtype)

    def _log_forget(self, gate: Float[Array, "T N"]) -> Float[Array, "T N"]:
        return gate if self.exponential_forget_gate else log_sigmoid(gate)


class SigmoidMLSTMRecurrence(AbstractNetwork):
    """Beck et al. 2025, "Tiled flash linear attention", arXiv:2503.14376: the mLSTM with a sigmoid input gate.

        i, f = sigmoid(i~), sigmoid(f~)
        C_t = f C_{t-1} + i k v'                h_t = C_t' q                q = query / sqrt(K)

    It is their mLSTMsig. Its gates are bounded, so that it needs neither m nor the normaliser n; a norm follows it. Its
    inputs are those of an `MLSTMRecurrence`, and its state is a `Matrix`. (The authors' program can normalise it by
    max(|n' q|, 1), too.)
    """

    heads: int = eqx.field(static=True)
    key_size: int = eqx.field(static=True)
    value_size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, heads: int, key_size: int, value_size: int, *, dtype: DType = jnp.float32):
        """Arguments as in `MLSTMRecurrence`."""
        check.sizes(heads=heads, key_size=key_size, value_size=value_size)
        check.dtype(dtype)
        self.heads, self.key_size, self.value_size = heads, key_size, value_size
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))

    def input_type(self) -> MLSTMInputs:
        return inputs_of(self.heads, self.key_size, self.value_size, self.dtype)

    def initial(self) -> Matrix:
        return initial_or_zeros(Matrix, None, (self.heads, self.key_size, self.value_size), self.dtype)

    def run(self, state: Matrix, xs: MLSTMInputs, options: Options) -> tuple[Matrix, Read]:
        wide = cast(xs, carry_dtype(self.dtype))
        recurrence = MatrixRecurrence(
            self.heads, self.key_size, self.value_size, scalar_decay=True, dtype=carry_dtype(self.dtype)
        )
        after, ys = unroll(recurrence, state, options.over_time(_gated, wide), **options._asdict())
        return after, ys.astype(self.dtype)

    def hidden(self, state: Matrix) -> None:
        """None: a matrix state has no vector of hidden units."""
        del state


def inputs_of(heads: int, key_size: int, value_size: int, dtype: np.dtype) -> MLSTMInputs:
    """The inputs of one step, by shape and dtype; gates are float32 or wider."""
    key: Any = jax.ShapeDtypeStruct((heads, key_size), dtype)
    value: Any = jax.ShapeDtypeStruct((heads, value_size), dtype)
    gate: Any = jax.ShapeDtypeStruct((heads,), carry_dtype(dtype))
    return MLSTMInputs(key, key, value, gate, gate)


def _stabilised(
    xs: MLSTMInputs, log_forget: Float[Array, "T N"], before: Float[Array, "T N"], after: Float[Array, "T N"]
) -> tuple[Transition, Float[Array, "T N"]]:
    """The coefficients of C exp(-m) and n exp(-m), and the least denominator, exp(-m)."""
    keep, write = jnp.exp(log_forget + before - after), jnp.exp(xs.input_gate - after)
    ones = jnp.ones_like(xs.value[..., :1])
    value = jnp.concatenate([xs.value, ones], axis=-1)
    return Transition(keep[..., None], write[..., None] * xs.key, value, _scaled(xs.query)), _least(after)


def _least(m: Float[Array, "T N"]) -> Float[Array, "T N"]:
    """exp(-m), bounded so that neither it nor its inverse square, which is in the gradient, overflows."""
    largest = -math.log(float(jnp.finfo(m.dtype).tiny))
    return jnp.exp(jnp.clip(-m, -0.45 * largest, largest))


def _normalised(reads: Float[Array, "T N W"], least: Float[Array, "T N"]) -> Read:
    """C' q / max(|n' q|, exp(-m)), where n' q is the last column of the reads."""
    return reads[..., :-1] / jnp.maximum(jnp.abs(reads[..., -1]), least)[..., None]


def _gated(xs: MLSTMInputs) -> Transition:
    write = sigmoid(xs.input_gate)[..., None] * xs.key
    return Transition(sigmoid(xs.forget_gate)[..., None], write, xs.value, _scaled(xs.query))


def _scaled(query: Float[Array, "T N K"]) -> Float[Array, "T N K"]:
    return query * query.shape[-1] ** -0.5
