"""Cells as directions of ONNX's nodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from ...arrays import AnyArray
from ...cell import AbstractCell
from ...cells.elman import Elman
from ...cells.gru import GRU
from ...cells.lstm import LSTM
from ...cells.reset_before_gru import ResetBeforeGRU
from ...gated_cell import AbstractAffineCell
from .activations import Activation, activation_of, unclipped
from .direction import GATES, PEEPHOLES, Direction, reorder


def direction_of(cell: AbstractCell) -> Direction | None:
    """The cell as ONNX has it; None for one that it lacks, such as one that inherits from one that it has."""
    known = KNOWN.get(type(cell))
    return None if known is None else known(cell)


def _elman(cell: Elman) -> Direction | None:
    named = _named(cell.activation)
    if cell.leak is not None or named is None:
        return None
    weights = _weights("RNN", cell, cell.recurrent_weight)
    return Direction("RNN", *named, *weights, _biases("RNN", cell), None)


def _lstm(cell: LSTM) -> Direction | None:
    named = _named(cell.gate_activation, cell.activation, unclipped_last=cell.output_activation)
    if cell.clip is not None or named is None:
        return None
    activations, attributes = named
    peepholes = None
    if cell.peepholes is not None:
        i, f, o = cell.peepholes
        peepholes = reorder(np.concatenate([*map(np.asarray, (i, *f, o))]), "io" if cell.coupled else "ifo", PEEPHOLES)
    return Direction(
        "LSTM",
        activations,
        attributes | ({"input_forget": 1} if cell.coupled else {}),
        *_weights("LSTM", cell, cell.recurrent_weight),
        _biases("LSTM", cell),
        peepholes,
    )


def _gru(cell: GRU) -> Direction | None:
    named = _named(cell.gate_activation, cell.activation)
    if named is None:
        return None
    activations, attributes = named
    weights, biases = _weights("GRU", cell, cell.recurrent_weight), _biases("GRU", cell, cell.candidate_bias)
    return Direction("GRU", activations, attributes | {"linear_before_reset": 1}, *weights, biases, None)


def _reset_before_gru(cell: ResetBeforeGRU) -> Direction | None:
    named = _named(cell.gate_activation, cell.activation)
    if named is None:
        return None
    weights = _weights("GRU", cell, cell.recurrent_weight, cell.candidate_weight)
    return Direction("GRU", *named, *weights, _biases("GRU", cell), None)


def _named(
    *functions: Callable[[Array], Array], unclipped_last: Callable[[Array], Array] | None = None
) -> tuple[tuple[Activation, ...], dict[str, Any]] | None:
    """Activations by their names, and the clip that all but the last of an LSTM share; None where ONNX has no such."""
    pairs = [unclipped(function) for function in functions]
    bounds = {bound for _, bound in pairs}
    last = () if unclipped_last is None else (unclipped_last,)
    names = [activation_of(function) for function in (*(function for function, _ in pairs), *last)]
    if len(bounds) > 1 or None in names:
        return None
    (bound,) = bounds
    return tuple(name for name in names if name is not None), {} if bound is None else {"clip": bound}


def _weights(operator: str, cell: AbstractAffineCell, *recurrent: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """W and R, the latter of one weight for all gates, or of several one after the other."""
    R = np.concatenate([dense(np.asarray(weight), cell.hidden_size) for weight in recurrent])
    W = np.asarray(cell.input_weight).T
    return reorder(W, cell.gates, GATES[operator]), reorder(R, cell.gates, GATES[operator])


def dense(weight: np.ndarray, units: int) -> np.ndarray:
    """[G H, H]: of a weight with heads, rows that are zero but for the columns of their own head."""
    heads, rows, columns = weight.shape if weight.ndim == 3 else (1, *weight.shape)
    blocks = weight.reshape(heads, rows, columns * heads // units, units // heads)
    dense = np.zeros((columns * heads // units, heads, units // heads, heads, rows), weight.dtype)
    for head, block in enumerate(blocks):
        dense[:, head, :, head] = block.transpose(1, 2, 0)
    return dense.reshape(-1, units)


def _biases(operator: str, cell: AbstractAffineCell, candidate_bias: AnyArray | None = None) -> np.ndarray | None:
    """The bias of the product with W, and that of the product with R, for the candidate alone; None without any."""
    if cell.bias is None and candidate_bias is None:
        return None
    zeros = np.zeros_like(cell.input_weight[0])
    first = zeros if cell.bias is None else np.asarray(cell.bias)
    second = zeros.copy()
    if candidate_bias is not None:
        second[-cell.hidden_size :] = candidate_bias
    return np.concatenate([reorder(each, cell.gates, GATES[operator]) for each in (first, second)])


KNOWN: dict[type, Callable[[Any], Direction | None]] = {
    Elman: _elman,
    LSTM: _lstm,
    GRU: _gru,
    ResetBeforeGRU: _reset_before_gru,
}
