"""The oracle: the equations of cells and networks in NumPy float64, step after step, written from the papers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import rnnjax

Vector = np.ndarray
State = tuple[Vector, ...]

ACTIVATIONS = {
    jnp.tanh: np.tanh,
    jax.nn.relu: lambda n: np.maximum(n, 0.0),
    rnnjax.cells.linear: lambda n: n,
    rnnjax.cells.positive: lambda n: np.where(n >= 0.0, n + 0.5, sigmoid(n)),
    jax.nn.sigmoid: lambda n: sigmoid(n),
    jax.nn.hard_sigmoid: lambda n: np.clip(n / 6.0 + 0.5, 0.0, 1.0),
    jax.nn.soft_sign: lambda n: n / (1.0 + np.abs(n)),
    rnnjax.cells.clipped(jnp.tanh, 0.2): lambda n: np.tanh(np.clip(n, -0.2, 0.2)),
    rnnjax.cells.clipped(jax.nn.sigmoid, 0.2): lambda n: sigmoid(np.clip(n, -0.2, 0.2)),
}


def run(cell: Any, state: Any, xs: Any) -> tuple[State, np.ndarray]:
    """The last state, and the outputs [T, ...]."""
    cell = jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, cell)  # once, not at each step
    state = tuple(float64(field) for field in state)
    ys = []
    for x in float64(xs):
        state, y = step(cell, state, x)
        ys.append(y)
    return state, np.stack(ys)


def step(cell: Any, state: State, x: Vector) -> tuple[State, Vector]:
    """The state after one step, and what is put out."""
    if type(cell) in READERS:
        return READERS[type(cell)](cell, state, x)
    after = STEPS[type(cell)](cell, state, x)
    return after, after[0]


def float64(array: Any) -> np.ndarray:
    """In float64, or complex128; truth values stay as they are."""
    array = np.asarray(array)
    if array.dtype == bool:
        return array
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def sigmoid(a: Vector) -> Vector:
    return 1.0 / (1.0 + np.exp(-a))


def by_gate(array: Any, gates: int) -> np.ndarray:
    """What ends in the columns of all gates, one gate after the other, with an axis for the gates."""
    return np.stack(np.split(float64(array), gates, -1), -2)


def dense(R: Any, gates: int) -> np.ndarray:
    """R [P, GH], or of N heads [N, D, GD], as the block-diagonal matrix of each gate, [N * P, G, N * D]."""
    blocks = by_gate(R if R.ndim == 3 else R[None], gates)
    heads, rows, gates, columns = blocks.shape
    matrix = np.zeros((heads * rows, gates, heads * columns))
    for head in range(heads):
        down, right = head * rows, head * columns
        matrix[down : down + rows, :, right : right + columns] = blocks[head]
    return matrix


def from_input(cell: Any, x: Vector, gate: int) -> Vector:
    """W x + b of one gate."""
    product = x @ by_gate(cell.input_weight, len(cell.gates))[:, gate]
    return product if cell.bias is None else product + by_gate(cell.bias, len(cell.gates))[gate]


def from_state(R: Any, h: Vector, gate: int, gates: int) -> Vector:
    """R h of one gate among `gates`."""
    return h @ dense(R, gates)[:, gate]


def both(cell: Any, x: Vector, h: Vector, gate: int, gates: int | None = None) -> Vector:
    """W x + R h + b of one gate; `gates` is how many R has, if not as many as W."""
    return from_input(cell, x, gate) + from_state(cell.recurrent_weight, h, gate, gates or len(cell.gates))


def elman(cell: rnnjax.Elman, state: State, x: Vector) -> State:
    (h,) = state
    leak = 1.0 if cell.leak is None else cell.leak
    return ((1 - leak) * h + leak * ACTIVATIONS[cell.activation](both(cell, x, h, 0)),)


def rate_rnn(cell: rnnjax.cells.RateRNN, state: State, x: Vector) -> tuple[State, Vector]:
    (h,) = state
    R, activation = cell.recurrent_weight, ACTIVATIONS[cell.activation]
    if isinstance(R, rnnjax.cells.LowRankWeight):
        R = float64(R.n) @ float64(R.m).T / len(h)
    h = (1 - cell.leak) * h + cell.leak * (from_input(cell, x, 0) + activation(h) @ float64(R))
    return (h,), activation(h)


def memory(cell: Any, peepholes: Any, state: State, x: Vector) -> State:
    """What an LSTM puts out before any projection, and its cell state."""
    h, c = state
    gates = len(cell.gates)
    coupled = gates == 3
    gate, candidate, output = (
        ACTIVATIONS[getattr(cell, name, default)]
        for name, default in (
            ("gate_activation", jax.nn.sigmoid),
            ("activation", jnp.tanh),
            ("output_activation", jnp.tanh),
        )
    )
    see = lambda name: 0.0 if peepholes is None else float64(getattr(peepholes, name)).reshape(-1)  # noqa: E731
    i = gate(both(cell, x, h, 0) + see("i") * c)
    f = 1.0 - i if coupled else gate(both(cell, x, h, 1) + see("f") * c)
    g = candidate(both(cell, x, h, gates - 2))
    c = f * c + i * g
    if cell.clip is not None:
        c = np.minimum(np.maximum(c, -cell.clip), cell.clip)
    o = gate(both(cell, x, h, gates - 1) + see("o") * c)
    return o * output(c), c


def lstm(cell: rnnjax.LSTM, state: State, x: Vector) -> State:
    return memory(cell, cell.peepholes, state, x)


def projected_lstm(cell: rnnjax.ProjectedLSTM, state: State, x: Vector) -> State:
    unprojected, c = memory(cell, cell.peepholes, state, x)
    return unprojected @ float64(cell.projection), c


def gru(cell: rnnjax.GRU, state: State, x: Vector) -> State:
    (h,) = state
    inside = 0.0 if cell.candidate_bias is None else float64(cell.candidate_bias)
    r, z = (ACTIVATIONS[cell.gate_activation](both(cell, x, h, gate)) for gate in (0, 1))
    n = from_input(cell, x, 2) + r * (from_state(cell.recurrent_weight, h, 2, 3) + inside)
    n = ACTIVATIONS[cell.activation](n)
    return ((1.0 - z) * n + z * h,)


def reset_before_gru(cell: rnnjax.ResetBeforeGRU, state: State, x: Vector) -> State:
    (h,) = state
    r, z = (ACTIVATIONS[cell.gate_activation](both(cell, x, h, gate, 2)) for gate in (0, 1))
    n = ACTIVATIONS[cell.activation](from_input(cell, x, 2) + from_state(cell.candidate_weight, r * h, 0, 1))
    return ((1.0 - z) * n + z * h,)


def lem(cell: rnnjax.LEM, state: State, x: Vector) -> State:
    h, z = state
    d, e = (cell.time_step * sigmoid(both(cell, x, h, gate, 3)) for gate in (0, 1))
    z = (1.0 - d) * z + d * np.tanh(both(cell, x, h, 2, 3))
    candidate = np.tanh(from_input(cell, x, 3) + from_state(cell.candidate_weight, z, 0, 1))
    return (1.0 - e) * h + e * candidate, z


def normalised_memory(f: Vector, m: Vector, i: Vector) -> tuple[Vector, Vector, Vector]:
    """What keeps the memory, what writes into it, and the new stabiliser, from log f and the i before its exp."""
    larger = np.maximum(f + m, i)
    return np.exp(f + m - larger), np.exp(i - larger), larger


def log_forget(gate: Vector, exponential: bool) -> Vector:
    return gate if exponential else np.log(sigmoid(gate))


def slstm(cell: rnnjax.cells.SLSTM, state: State, x: Vector) -> State:
    h, c, n, m = state
    i, f, z, o = (both(cell, x, h, gate) for gate in range(4))
    keep, write, m = normalised_memory(log_forget(f, cell.exponential_forget_gate), m, i)
    c, n = keep * c + write * np.tanh(z), keep * n + write
    return sigmoid(o) * c / n, c, n, m


def min_gru(cell: rnnjax.MinGRU, state: State, x: Vector) -> State:
    (h,) = state
    write, g = sigmoid(from_input(cell, x, 0)), ACTIVATIONS[cell.activation](from_input(cell, x, 1))
    return ((1.0 - write) * h + write * g,)


def own_past(cell: Any, x: Vector, h: Vector, gate: int) -> Vector:
    """W x + d * h + b of one gate."""
    return from_input(cell, x, gate) + by_gate(cell.recurrent_weight, len(cell.gates))[gate] * h


def ind_rnn(cell: rnnjax.IndRNN, state: State, x: Vector) -> State:
    (h,) = state
    return (ACTIVATIONS[cell.activation](own_past(cell, x, h, 0)),)


def diagonal_gru(cell: rnnjax.DiagonalGRU, state: State, x: Vector) -> State:
    (h,) = state
    r, z = (sigmoid(own_past(cell, x, h, gate)) for gate in (0, 1))
    n = np.tanh(own_past(cell, x, r * h, 2))
    return ((1.0 - z) * n + z * h,)


def diagonal_lstm(cell: rnnjax.DiagonalLSTM, state: State, x: Vector) -> State:
    h, c = state
    see_f, see_o = by_gate(cell.peepholes, 2)
    f = sigmoid(own_past(cell, x, h, 0) + see_f * c)
    c = f * c + (1.0 - f) * np.tanh(own_past(cell, x, h, 1))
    return sigmoid(own_past(cell, x, h, 2) + see_o * c) * np.tanh(c), c


def min_lstm(cell: rnnjax.MinLSTM, state: State, x: Vector) -> State:
    (h,) = state
    i, f = (sigmoid(from_input(cell, x, gate)) for gate in (0, 1))
    g = ACTIVATIONS[cell.activation](from_input(cell, x, 2))
    return (f / (f + i) * h + i / (f + i) * g,)


def linear_rnn(cell: rnnjax.LinearRNN, state: State, x: Vector) -> State:
    return (float64(cell.decay) * state[0] + from_input(cell, x, 0),)


def in_parts(weight: Any, axis: int) -> np.ndarray:
    """The complex weight whose real and then imaginary part stand along `axis`."""
    real, imaginary = np.split(float64(weight), 2, axis)
    return real + 1j * imaginary


def skipped(cell: Any, x: Vector) -> Any:
    return 0.0 if cell.skip is None else float64(cell.skip) * x


def lru(cell: rnnjax.LRU, state: State, x: Vector) -> tuple[State, Vector]:
    eigenvalue = np.exp(-np.exp(float64(cell.nu)) + 1j * np.exp(float64(cell.theta)))
    h = eigenvalue * state[0] + np.exp(float64(cell.log_gamma)) * (x @ in_parts(cell.input_weight, 1))
    return (h,), np.real(h @ in_parts(cell.output_weight, 0)) + skipped(cell, x)


def s5(cell: rnnjax.S5, state: State, x: Vector) -> tuple[State, Vector]:
    is_free = cell.real_part is None
    real = -np.exp(float64(cell.log_decay)) if is_free else np.minimum(float64(cell.real_part), cell.largest_real_part)
    eigenvalue, step = real + 1j * float64(cell.frequency), np.exp(float64(cell.log_step))
    before, written = state[0], x @ in_parts(cell.input_weight, 1)
    if cell.discretise == rnnjax.cells.bilinear:  # (h - before) / step = eigenvalue * (h + before) / 2 + written
        h = ((2.0 + eigenvalue * step) * before + 2.0 * step * written) / (2.0 - eigenvalue * step)
    else:
        a = np.exp(eigenvalue * step)
        h = a * before + (a - 1.0) / eigenvalue * written
    one = h @ in_parts(cell.output_weight, 0)
    return (h,), np.real(one + np.conj(one)) + skipped(cell, x)  # of the units, and of their conjugates


def sru(cell: rnnjax.SRU, state: State, x: Vector) -> tuple[State, Vector]:
    W, H = by_gate(cell.input_weight, 2), len(state[0])
    V = by_gate(cell.output_weight, cell.output_weight.shape[1] // H)
    b_f, b_r = (0.0, 0.0) if cell.bias is None else by_gate(cell.bias, 2)
    f, r = sigmoid(x @ W[:, 0] + b_f), sigmoid(x @ V[:, 0] + b_r)
    c = f * state[0] + (1.0 - f) * (x @ W[:, 1])
    highway = x @ V[:, 1] if V.shape[1] > 1 else x
    return (c,), r * ACTIVATIONS[cell.activation](c) + (1.0 - r) * highway


def shifted(inputs: np.ndarray, x: Vector) -> np.ndarray:
    """What is remembered one step later."""
    return np.concatenate([inputs, x[None]])[1:]


def with_bias(network: Any, y: Vector) -> Vector:
    return y if network.bias is None else y + float64(network.bias)


def convolved(weight: Any, inputs: np.ndarray, x: Vector) -> np.ndarray:
    """The sum over ages of W_age x_{t - age}, for a weight [window, I, ...]."""
    return sum(np.tensordot(past, W, 1) for past, W in zip([x, *inputs[::-1]], float64(weight), strict=True))


def convolution(network: rnnjax.networks.CausalConvolution, state: State, x: Vector) -> tuple[State, Vector]:
    (inputs,) = state
    return (shifted(inputs, x),), with_bias(network, convolved(network.weight, inputs, x))


def depthwise_convolution(
    network: rnnjax.networks.DepthwiseConvolution, state: State, x: Vector
) -> tuple[State, Vector]:
    (inputs,) = state
    y = sum(past * w for past, w in zip([x, *inputs[::-1]], float64(network.weight), strict=True))
    return (shifted(inputs, x),), with_bias(network, y)


def qrnn(network: rnnjax.QRNN, state: State, x: Vector) -> tuple[State, Vector]:
    inputs, c = state
    pre_activations = with_bias(network, convolved(network.input_weight, inputs, x))
    u = dict(zip(network.gates, by_gate(pre_activations, len(network.gates)), strict=True))
    f = sigmoid(u["f"])
    c = f * c + (sigmoid(u["i"]) if "i" in u else 1.0 - f) * np.tanh(u["g"])
    return (shifted(inputs, x), c), sigmoid(u["o"]) * c if "o" in u else c


def rg_lru(network: rnnjax.RGLRU, state: State, x: Vector) -> tuple[State, Vector]:
    h, begun = state
    b_r, b_i = (0.0, 0.0) if network.bias is None else by_gate(network.bias, 2)
    r, i = (sigmoid(from_state(network.gate_weight, x, gate, 2) + b) for gate, b in enumerate((b_r, b_i)))
    a = np.exp(-8.0 * np.log1p(np.exp(float64(network.decay))) * r)
    h = a * h + (np.sqrt(1.0 - a**2) if begun else 1.0) * (i * x)
    return (h, np.True_), h


def cg_lru(network: rnnjax.networks.CGLRU, state: State, x: Vector) -> tuple[State, Vector]:
    h, begun = state
    b_r, b_i = (0.0, 0.0) if network.bias is None else by_gate(network.bias, 2)
    r, i = (sigmoid(from_state(network.gate_weight, x, gate, 2) + b) for gate, b in enumerate((b_r, b_i)))
    real, imaginary = np.split(x, 2)
    decay = 1.0 / (1.0 + np.exp(float64(network.decay)))  # sigmoid(-Lambda)
    a = (decay * np.exp(1j * float64(network.theta) / 8.0)) ** (8.0 * r)
    h = a * h + (np.sqrt(1.0 - np.abs(a) ** 2) if begun else 1.0) * (i * (real + 1j * imaginary))
    return (h, np.True_), np.concatenate([h.real, h.imag])


def of_heads(rows: Vector, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1)


def normed(h: np.ndarray) -> np.ndarray:
    """The layer norm of the last axis."""
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def matrix_lstm(recurrence: Any, state: State, q: Any, k: Any, v: Any, i: Vector, f: Vector) -> tuple[State, Vector]:
    """One step of the recurrence of `MLSTM`: the state, and what each head reads."""
    q, outer = q / np.sqrt(q.shape[1]), k[:, :, None] * v[:, None, :]
    if isinstance(recurrence, rnnjax.networks.SigmoidMLSTMRecurrence):
        S = sigmoid(f)[:, None, None] * state[0] + sigmoid(i)[:, None, None] * outer
        return (S,), np.einsum("nkv,nk->nv", S, q)
    C, n, m = state
    keep, write, m = normalised_memory(log_forget(f, recurrence.exponential_forget_gate), m, i)
    C = keep[:, None, None] * C + write[:, None, None] * outer
    n = keep[:, None] * n + write[:, None] * k
    divisor = np.maximum(np.abs(np.sum(n * q, 1)), np.exp(-m))
    return (C, n, m), np.einsum("nkv,nk->nv", C, q) / divisor[:, None]


def mlstm(network: rnnjax.networks.MLSTM, state: State, x: Vector) -> tuple[State, Vector]:
    recurrence = network.recurrence
    N, K, V = recurrence.heads, recurrence.key_size, recurrence.value_size
    q, k, v, o = np.split(x @ float64(network.input_weight), np.cumsum([N * K, N * K, N * V]))
    i, f = np.split(x @ float64(network.gate_weight) + float64(network.gate_bias), 2)
    state, h = matrix_lstm(recurrence, state, *(of_heads(rows, N) for rows in (q, k, v)), i, f)
    return state, sigmoid(o) * normed(h).reshape(-1) * float64(network.norm_scale)


STEPS: dict[type, Callable[[Any, State, Vector], State]] = {
    rnnjax.Elman: elman,
    rnnjax.LSTM: lstm,
    rnnjax.ProjectedLSTM: projected_lstm,
    rnnjax.GRU: gru,
    rnnjax.ResetBeforeGRU: reset_before_gru,
    rnnjax.LEM: lem,
    rnnjax.cells.SLSTM: slstm,
    rnnjax.MinGRU: min_gru,
    rnnjax.IndRNN: ind_rnn,
    rnnjax.DiagonalGRU: diagonal_gru,
    rnnjax.DiagonalLSTM: diagonal_lstm,
    rnnjax.MinLSTM: min_lstm,
    rnnjax.LinearRNN: linear_rnn,
}
READERS: dict[type, Callable[[Any, State, Vector], tuple[State, Vector]]] = {  # whose output is more than their state
    rnnjax.LRU: lru,
    rnnjax.S5: s5,
    rnnjax.SRU: sru,
    rnnjax.cells.RateRNN: rate_rnn,
    rnnjax.networks.CausalConvolution: convolution,
    rnnjax.networks.DepthwiseConvolution: depthwise_convolution,
    rnnjax.QRNN: qrnn,
    rnnjax.RGLRU: rg_lru,
    rnnjax.networks.CGLRU: cg_lru,
    rnnjax.networks.MLSTM: mlstm,
}
