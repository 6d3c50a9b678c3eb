"""One direction of an RNN, LSTM or GRU node: what it says of a cell, in ONNX's order of gates."""

from typing import Any, NamedTuple

import numpy as np

from .activations import Activation

# By the letters that cells here have for them: ONNX calls the candidate of the LSTM c, and that of the GRU h.
GATES = {"RNN": "n", "LSTM": "iofg", "GRU": "zrn"}
PEEPHOLES = "iof"
DEFAULTS = {
    "RNN": (Activation("Tanh"),),
    "LSTM": (Activation("Sigmoid"), Activation("Tanh"), Activation("Tanh")),
    "GRU": (Activation("Sigmoid"), Activation("Tanh")),
}


class Direction(NamedTuple):
    """The weights of one direction, and what both directions of a node have in common."""

    operator: str  # a key of `GATES`
    activations: tuple[Activation, ...]
    attributes: dict[str, Any]  # of clip, input_forget and linear_before_reset those that are not the default
    W: np.ndarray  # [G H, I]
    R: np.ndarray  # [G H, H]
    b: np.ndarray | None  # [2 G H]: the bias of the product with W, then that of the product with R
    P: np.ndarray | None  # [3 H]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.R.shape[1]

    @property
    def common(self) -> tuple[Any, ...]:
        """The options that two directions must share to be one node."""
        return self.operator, self.activations, self.attributes, self.hidden_size, self.b is None, self.P is None


def reorder(rows: np.ndarray, given: str, wanted: str) -> np.ndarray:
    """The blocks of gates along the first axis in another order; zeros for a gate that is not there."""
    blocks = dict(zip(given, np.split(rows, len(given)), strict=True))
    return np.concatenate([blocks.get(gate, np.zeros_like(blocks[given[0]])) for gate in wanted])
