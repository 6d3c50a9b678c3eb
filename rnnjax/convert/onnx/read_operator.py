"""The nodes RNN, LSTM and GRU as layers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ... import random
from ...networks.bidirectional import Reversed
from ...networks.merge import Directions
from .activations import consume
from .cell_of import cell_of
from .direction import DEFAULTS, GATES, Direction
from .values import Attributes, Both, Constant, Given, Last, Value, Zeros, as_steps

NAMES = {"forward": 1, "reverse": 1, "bidirectional": 2}


class Operator(NamedTuple):
    """A node with its inputs by name."""

    operator: str
    attributes: Attributes
    inputs: dict[str, Value]

    @property
    def directions(self) -> int:
        """D."""
        return NAMES[self.attributes.get("direction", "forward")]


def read_operator(number: int, operator: str, attributes: Attributes, inputs: list[Value | None]) -> list[Value]:
    """The outputs Y, Y_h and Y_c."""
    words = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    given = {word: value for word, value in zip(words, inputs, strict=False) if value is not None}
    node = Operator(operator, attributes, given)
    xs = as_steps(given["X"])
    batch_first = bool(attributes.get("layout", 0))
    if xs is None or "D" in xs.axes or xs.axes[2] != "F" or xs.time not in (None, xs.axes[int(batch_first)]):
        raise ValueError(
            f"model: expected {operator} to read sequences [T, B, features], of the same axes as the nodes before it, "
            f"got {given['X']}. Export the model anew, or convert its layers one by one"
        )
    cells = [cell_of(direction) for direction in _directions(node)]
    states = [_state(node, cell, number, batch_first) for number, cell in enumerate(cells)]
    kept = [_learned(cell, state) for cell, state in zip(cells, states, strict=True)]
    states = [None if state is None or len(state.h) == 1 else state for state in states]
    time, batch = (xs.axes[1], xs.axes[0]) if batch_first else (xs.axes[0], xs.axes[1])
    axes = f"{batch}{time}DF" if batch_first else f"{time}D{batch}F"
    if node.directions == 2:
        layer, state = Both(*kept), None if states == [None, None] else Directions(*states)
    else:
        layer = Reversed(kept[0]) if attributes.get("direction") == "reverse" else kept[0]
        (state,) = states
    ys = xs.then(layer, state, axes=axes, time=time, features=cells[0].hidden_size, nodes=xs.nodes.union([number]))
    return [ys, *[Last(frozenset([number]))] * 2]


def _directions(node: Operator) -> list[Direction]:
    D, attributes = node.directions, node.attributes
    for word in ("W", "R", "B", "P"):
        if word in node.inputs and not isinstance(node.inputs[word], Constant):
            raise ValueError(
                f"model: expected the weights {word} of {node.operator} in the file, got {node.inputs[word]}. "
                "Export the model with its weights as initializers"
            )
    arrays = {word: value.array for word, value in node.inputs.items() if isinstance(value, Constant)}
    names = [each.name for each in DEFAULTS[node.operator] * D]
    given = attributes.get("activations", names)[: len(names)]
    activations = consume(given, attributes.get("activation_alpha", []), attributes.get("activation_beta", []))
    size, H = len(names) // D, arrays["R"].shape[-1]
    rows = len(GATES[node.operator]) * H
    shapes = {"W": (D, rows, arrays["W"].shape[-1]), "R": (D, rows, H), "B": (D, 2 * rows), "P": (D, 3 * H)}
    wrong = {word: list(arrays[word].shape) for word in shapes if word in arrays and arrays[word].shape != shapes[word]}
    if wrong or len(given) != len(names):
        raise ValueError(
            f"model: expected weights of {D} x {rows} rows and {len(names)} activations in {node.operator}, "
            f"got {wrong} and {given}. Check the file with onnx.checker"
        )
    words = "clip", "input_forget", "linear_before_reset"
    common = {word: attributes[word] for word in words if attributes.get(word)}
    part = lambda word, number: arrays[word][number] if word in arrays else None  # noqa: E731
    return [
        Direction(
            node.operator,
            tuple(activations[number * size : (number + 1) * size]),
            common,
            arrays["W"][number],
            arrays["R"][number],
            part("B", number),
            part("P", number),
        )
        for number in range(D)
    ]


def _state(node: Operator, cell: Any, number: int, batch_first: bool) -> Any:
    """The initial state that the file holds for one direction, arrays [B, H]; None if it holds none."""
    fields = dict(_initial(node, number, cell.hidden_size, batch_first))
    if not fields:
        return None
    like = np.broadcast_arrays(*fields.values())[0]
    rows = {name: np.broadcast_to(array, like.shape) for name, array in fields.items()}
    return cell.state_type(*(rows.get(name, np.zeros_like(like)) for name in cell.state_type._fields))


def _initial(node: Operator, number: int, units: int, batch_first: bool) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("h", "c"):
        value = node.inputs.get(f"initial_{name}")
        if isinstance(value, Constant) and value.array.any():
            array = value.array.swapaxes(0, 1) if batch_first else value.array
            if array.shape != (node.directions, array.shape[1], units):
                raise ValueError(
                    f"model: expected initial_{name} of {node.operator} as [D, B, H], got {list(value.array.shape)}. "
                    "Check the file with onnx.checker"
                )
            yield name, array[number]
        elif not isinstance(value, Constant | Given | Zeros | None):
            raise ValueError(
                f"model: expected initial_{name} of {node.operator} to be an input, a constant or none, got {value}. "
                "Convert the parts of the model one by one, and pass the state of one to the other"
            )


def _learned(cell: Any, state: Any) -> Any:
    """The cell, whose initial state is that of the file if it is one for all sequences."""
    if state is None or len(state.h) > 1:
        return cell
    rows = jax.tree.map(lambda rows: random.array(rows[0], rows.dtype), state)
    return eqx.tree_at(lambda cell: cell.initial_state, cell, rows, is_leaf=lambda leaf: leaf is None)
