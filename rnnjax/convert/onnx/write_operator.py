"""The nodes RNN, LSTM and GRU of ONNX."""

from typing import Any

import numpy as np

from .context import Context, Names
from .direction import DEFAULTS, Direction

REVERSED = {False: "forward", True: "reverse"}


def write_operator(
    context: Context, directions: list[Direction], states: list[Names], xs: str
) -> tuple[list[Names], str]:
    """The last states, and the outputs [T, D, B, H], of one direction or of both, which agree in `common`."""
    graph, first = context.graph, directions[0]
    stacked = lambda arrays: graph.constant(np.stack(arrays))  # noqa: E731
    W, R = stacked([each.W for each in directions]), stacked([each.R for each in directions])
    b = "" if first.b is None else stacked([each.b for each in directions])
    lengths = "" if context.lengths is None else context.lengths.steps
    initial = [
        _initial(context, [state[field] for state in states], first.hidden_size) for field in range(len(states[0]))
    ]
    P = () if first.operator != "LSTM" else ("" if first.P is None else stacked([each.P for each in directions]),)
    fields = [f".{name}" for name in states[0]._fields] if context.has_last else []
    outputs = graph.node(
        first.operator,
        *(xs, W, R, b, lengths, *initial, *P),
        outputs=("", *fields),
        hidden_size=first.hidden_size,
        direction="bidirectional" if len(directions) == 2 else REVERSED[context.reverse],
        **_activations(directions),
        **first.attributes,
    )
    if not context.has_last:
        return states, outputs
    ys, *last = outputs
    parts = [_split(context, array, len(directions)) for array in last]
    after = [
        type(state)(
            *(context.last(name, part[number], first.hidden_size) for name, part in zip(state, parts, strict=True))
        )
        for number, state in enumerate(states)
    ]
    return after, ys


def _initial(context: Context, names: list[str], units: int) -> str:
    """One field of the states of all directions, [D, B, H]; no name where all are zero."""
    if not any(names):
        return ""
    graph, axis = context.graph, context.graph.integers(0)
    rows = [graph.node("Unsqueeze", context.filled(name, units), axis) for name in names]
    return rows[0] if len(rows) == 1 else graph.node("Concat", *rows, axis=0)


def _split(context: Context, array: str, directions: int) -> list[str]:
    """[D, B, H] as one [B, H] for each direction."""
    graph, axis = context.graph, context.graph.integers(0)
    parts = [array] if directions == 1 else graph.node("Split", array, axis=0, outputs=(".forward", ".backward"))
    return [graph.node("Squeeze", part, axis) for part in parts]


def _activations(directions: list[Direction]) -> dict[str, Any]:
    """The attributes that name the activations, where they are not the default."""
    activations = [activation for direction in directions for activation in direction.activations]
    if all(direction.activations == DEFAULTS[direction.operator] for direction in directions):
        return {}
    attributes: dict[str, Any] = {"activations": [activation.name for activation in activations]}
    for number, name in enumerate(("activation_alpha", "activation_beta")):
        values = [each.parameters[number] for each in activations if len(each.parameters) > number]
        if values:
            attributes[name] = values
    return attributes
