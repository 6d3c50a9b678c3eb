"""The oracle for cells: their equations in NumPy float64, one step after the other, written from the papers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax

Vector = np.ndarray
State = tuple[Vector, ...]

ACTIVATIONS = {jnp.tanh: np.tanh, jax.nn.relu: lambda n: np.maximum(n, 0.0), rnnjax.linear: lambda n: n}


def run(cell: Any, state: Any, xs: Any) -> tuple[State, np.ndarray]:
    """The last state, and the outputs [T, ...]: the first field of the state after every step."""
    step = STEPS[type(cell)]
    state = tuple(float64(field) for field in state)
    ys = []
    for x in float64(xs):
        state = step(cell, state, x)
        ys.append(state[0])
    return state, np.stack(ys)


def float64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def sigmoid(a: Vector) -> Vector:
    return 1.0 / (1.0 + np.exp(-a))


def dense(R: Any) -> np.ndarray:
    """R of N heads [N, P, G, D] as the block-diagonal matrix of each gate, [N * P, G, N * D]."""
    blocks = float64(R)
    heads, rows, gates, columns = blocks.shape
    matrix = np.zeros((heads * rows, gates, heads * columns))
    for head in range(heads):
        down, right = head * rows, head * columns
        matrix[down : down + rows, :, right : right + columns] = blocks[head]
    return matrix


def from_input(cell: Any, x: Vector, gate: int) -> Vector:
    """W x + b of one gate."""
    product = x @ float64(cell.input_weight)[:, gate]
    return product if cell.bias is None else product + float64(cell.bias)[gate]


def from_state(R: Any, h: Vector, gate: int) -> Vector:
    """R h of one gate."""
    return h @ dense(R)[:, gate]


def both(cell: Any, x: Vector, h: Vector, gate: int) -> Vector:
    """W x + R h + b of one gate."""
    return from_input(cell, x, gate) + from_state(cell.recurrent_weight, h, gate)


def elman(cell: rnnjax.Elman, state: State, x: Vector) -> State:
    (h,) = state
    return (ACTIVATIONS[cell.activation](both(cell, x, h, 0)),)


def memory(cell: Any, peepholes: Any, state: State, x: Vector) -> State:
    """What an LSTM puts out before any projection, and its cell state."""
    h, c = state
    gates = cell.input_weight.shape[1]
    coupled = gates == 3
    see = lambda name: 0.0 if peepholes is None else float64(getattr(peepholes, name)).reshape(-1)  # noqa: E731
    i = sigmoid(both(cell, x, h, 0) + see("i") * c)
    f = 1.0 - i if coupled else sigmoid(both(cell, x, h, 1) + see("f") * c)
    g = np.tanh(both(cell, x, h, gates - 2))
    c = f * c + i * g
    if cell.clip is not None:
        c = np.minimum(np.maximum(c, -cell.clip), cell.clip)
    o = sigmoid(both(cell, x, h, gates - 1) + see("o") * c)
    return o * np.tanh(c), c


def lstm(cell: rnnjax.LSTM, state: State, x: Vector) -> State:
    return memory(cell, cell.gains, state, x)


def projected_lstm(cell: rnnjax.ProjectedLSTM, state: State, x: Vector) -> State:
    unprojected, c = memory(cell, cell.peepholes, state, x)
    return unprojected @ float64(cell.projection), c


def gru(cell: rnnjax.GRU, state: State, x: Vector) -> State:
    (h,) = state
    inside = 0.0 if cell.gains is None else float64(cell.gains)
    r, z = (sigmoid(both(cell, x, h, gate)) for gate in (0, 1))
    n = np.tanh(from_input(cell, x, 2) + r * (from_state(cell.recurrent_weight, h, 2) + inside))
    return ((1.0 - z) * n + z * h,)


def reset_before_gru(cell: rnnjax.ResetBeforeGRU, state: State, x: Vector) -> State:
    (h,) = state
    r, z = (sigmoid(both(cell, x, h, gate)) for gate in (0, 1))
    n = np.tanh(from_input(cell, x, 2) + from_state(cell.candidate_weight, r * h, 0))
    return ((1.0 - z) * n + z * h,)


def min_gru(cell: rnnjax.MinGRU, state: State, x: Vector) -> State:
    (h,) = state
    write, g = sigmoid(from_input(cell, x, 0)), from_input(cell, x, 1)
    return ((1.0 - write) * h + write * g,)


def own_past(cell: Any, x: Vector, h: Vector, gate: int) -> Vector:
    """W x + d * h + b of one gate."""
    return from_input(cell, x, gate) + float64(cell.recurrent_weight)[gate] * h


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
    see_f, see_o = float64(cell.peepholes)
    f = sigmoid(own_past(cell, x, h, 0) + see_f * c)
    c = f * c + (1.0 - f) * np.tanh(own_past(cell, x, h, 1))
    return sigmoid(own_past(cell, x, h, 2) + see_o * c) * np.tanh(c), c


STEPS: dict[type, Callable[[Any, State, Vector], State]] = {
    rnnjax.Elman: elman,
    rnnjax.LSTM: lstm,
    rnnjax.ProjectedLSTM: projected_lstm,
    rnnjax.GRU: gru,
    rnnjax.ResetBeforeGRU: reset_before_gru,
    rnnjax.MinGRU: min_gru,
    rnnjax.IndRNN: ind_rnn,
    rnnjax.DiagonalGRU: diagonal_gru,
    rnnjax.DiagonalLSTM: diagonal_lstm,
}
