"""Directions of ONNX's nodes as cells."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ... import random
from ...cells.clipped import clipped
from ...cells.elman import Elman
from ...cells.gru import GRU
from ...cells.lstm import LSTM, Peepholes
from ...cells.reset_before_gru import ResetBeforeGRU
from ...gated_cell import AbstractAffineCell
from .activations import function_of
from .direction import GATES, PEEPHOLES, Direction, reorder


class Built(NamedTuple):
    """How a cell is built, and the arrays of its fields."""

    make: Callable[..., AbstractAffineCell]
    options: dict[str, Any]
    fields: dict[str, Any]


def cell_of(direction: Direction) -> AbstractAffineCell:
    """The cell that a direction of a node is."""
    build = {"RNN": _elman, "LSTM": _lstm, "GRU": _gru}[direction.operator]
    made, bias = build(direction), direction.b is not None
    like = eqx.filter_eval_shape(
        lambda: made.make(
            direction.W.shape[1],
            direction.hidden_size,
            key=jax.random.key(0),
            bias=bias,
            dtype=direction.W.dtype,
            **made.options,
        )
    )
    fields = {name: value for name, value in made.fields.items() if value is not None}
    arrays = jax.tree.map(lambda array: random.array(array, array.dtype), [*fields.values()])
    return eqx.tree_at(lambda cell: [getattr(cell, name) for name in fields], like, arrays)


def _elman(direction: Direction) -> Built:
    (activation,) = _functions(direction)
    return Built(Elman, {"activation": activation}, _fields(direction, "n"))


def _lstm(direction: Direction) -> Built:
    gate, candidate, output = _functions(direction)
    coupled = bool(direction.attributes.get("input_forget"))
    options = {"activation": candidate, "output_activation": output, "gate_activation": gate, "coupled": coupled}
    fields = _fields(direction, "igo" if coupled else "ifgo")
    if direction.P is not None:
        vectors = np.split(reorder(direction.P, PEEPHOLES, "ifo"), 3)
        i, f, o = (random.array(vector, vector.dtype) for vector in vectors)
        fields["peepholes"] = Peepholes(i, () if coupled else (f,), o)
    return Built(LSTM, options | {"peepholes": direction.P is not None}, fields)


def _gru(direction: Direction) -> Built:
    gate, candidate = _functions(direction)
    options, H = {"activation": candidate, "gate_activation": gate}, direction.hidden_size
    if not direction.attributes.get("linear_before_reset"):
        fields = _fields(direction, "rzn")
        R = fields["recurrent_weight"]
        return Built(
            ResetBeforeGRU, options, fields | {"recurrent_weight": R[:, : 2 * H], "candidate_weight": R[:, 2 * H :]}
        )
    if direction.b is None:
        return Built(GRU, options, _fields(direction, "rzn"))
    first, second = np.split(direction.b, 2)
    inner = second[-H:]
    outer = np.concatenate([second[:-H], np.zeros_like(inner)])
    fields = _fields(direction._replace(b=np.concatenate([first, outer])), "rzn")
    return Built(GRU, options, fields | {"candidate_bias": inner})


def _functions(direction: Direction) -> list[Callable[..., Any]]:
    """The functions of the activations, behind the clip if there is one; that of c_t in an LSTM has none."""
    functions = [*map(function_of, direction.activations)]
    bound = direction.attributes.get("clip")
    return functions if bound is None else [*(clipped(each, bound) for each in functions[:2]), *functions[2:]]


def _fields(direction: Direction, gates: str) -> dict[str, Any]:
    """The weights that all cells have, in the order of these gates; the two biases added up."""
    given = GATES[direction.operator]
    W, R = (reorder(rows, given, gates).T for rows in (direction.W, direction.R))
    if direction.b is None:
        return {"input_weight": W, "recurrent_weight": R}
    first, second = np.split(direction.b, 2)
    bias = reorder(first + second if second.any() else first, given, gates)  # a zero keeps its sign
    return {"input_weight": W, "recurrent_weight": R, "bias": bias}
