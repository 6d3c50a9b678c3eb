"""Weights of Equinox's cells: `eqx.nn.LSTMCell` and `eqx.nn.GRUCell`."""

from functools import partial

import equinox as eqx
import jax

from ..cell import AbstractCell
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..checked import Checked
from .layout import Weight, place, read
from .parts import biases_of, check_plain, gru, lstm, refuse, weights_of

TARGET = "Equinox"
WEIGHTS = "weight_ih", "weight_hh", "bias", "bias_n"


def from_equinox(cell: Checked[eqx.nn.LSTMCell | eqx.nn.GRUCell]) -> LSTM | GRU:
    """The cell with the weights of one of Equinox.

        input_weight      weight_ih^T         [G H, I] there; gates i, f, g, o and r, z, n as here
        recurrent_weight  weight_hh^T
        bias              bias
        candidate_bias    bias_n, of a GRU

    Raises a TypeError for any other module and for a subclass with a step of its own, and a ValueError for a subclass
    with further weights.
    """
    if not isinstance(cell, eqx.nn.LSTMCell | eqx.nn.GRUCell):
        raise TypeError(
            f"cell: expected an eqx.nn.LSTMCell or eqx.nn.GRUCell, got {type(cell).__name__}. "
            "Pass the cell alone; Equinox has no other recurrent ones"
        )
    if all(type(cell).__call__ is not kind.__call__ for kind in (eqx.nn.LSTMCell, eqx.nn.GRUCell)):
        raise TypeError(
            f"cell: expected one with the step of Equinox, got {type(cell).__name__}, which has its own. "
            "Write it as a cell of your own, as examples/new_cell.py does"
        )
    superfluous = [name for name, value in vars(cell).items() if name not in WEIGHTS and _has_arrays(value)]
    if superfluous:
        raise ValueError(
            f"cell: expected one with the weights {', '.join(WEIGHTS)} alone, got {superfluous}, too. "
            "Write its step as a cell of your own, as examples/new_cell.py does"
        )
    W, R = read(cell.weight_ih).T, read(cell.weight_hh).T
    b = None if cell.bias is None else read(cell.bias)
    if isinstance(cell, eqx.nn.LSTMCell):
        return lstm(W, R, b)
    return gru(W, R, b, None if cell.bias_n is None else read(cell.bias_n))


def _has_arrays(value: object) -> bool:
    return any(map(eqx.is_array, jax.tree.leaves(value)))


def to_equinox(cell: AbstractCell) -> eqx.nn.LSTMCell | eqx.nn.GRUCell:
    """The cell of Equinox with the weights of an `LSTM` or a `GRU`: the inverse of `from_equinox`, bit for bit.

    Of a GRU that has one of its two biases, the other one becomes zero. Raises a ValueError for any other cell, and for
    heads, peepholes, coupled gates, clipping, and a learned initial state.
    """
    if not isinstance(cell, LSTM | GRU):
        raise refuse(cell, TARGET, "an LSTM or a GRU")
    check_plain(cell, TARGET)
    W, R, b = weights_of(cell)
    fields = {"weight_ih": W.T, "weight_hh": R.T, **_biases(cell, b)}
    kind = eqx.nn.LSTMCell if isinstance(cell, LSTM) else eqx.nn.GRUCell
    make = partial(kind, W.shape[0], R.shape[0], "bias" in fields, cell.dtype)
    empty = eqx.filter_eval_shape(lambda key: make(key=key), jax.eval_shape(jax.random.key, 0))
    placed = [place(name, weight) for name, weight in fields.items()]
    return eqx.tree_at(lambda cell: [getattr(cell, name) for name in fields], empty, placed)


def _biases(cell: LSTM | GRU, b: Weight | None) -> dict[str, Weight]:
    """The biases by Equinox's names; none where there are none."""
    if isinstance(cell, GRU):
        return dict(zip(("bias", "bias_n"), biases_of(cell) or (), strict=False))
    return {} if b is None else {"bias": b}
