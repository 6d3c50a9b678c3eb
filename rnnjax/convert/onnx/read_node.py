"""Nodes one by one: what each makes of values of which this much is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...networks.merge import add, concatenate, multiply
from .direction import GATES
from .read_function import ALONG_FEATURES, POINTWISE, embedding, function_node
from .read_merge import directions_merged, doubled, halved, merged, parts
from .read_operator import read_operator
from .read_padding import as_lengths, keeps_the_steps, read_padding
from .values import Attributes, Bookkeeping, Constant, Given, Last, Steps, Value, Zeros, as_steps

SAME = ("Identity", "Cast", "Dropout")
PLUMBING = (
    *SAME,
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Reshape",
    "Split",
    "Concat",
    "Slice",
    "Gather",
    "Expand",
)
MERGES = {"Add": add, "Mul": multiply, "Concat": concatenate}
READS = ("MatMul", "LayerNormalization", *POINTWISE, *ALONG_FEATURES)  # what turns an input into a sequence
FLOATING = (1, 10, 11, 16)  # by the numbers of ONNX: a Cast to any other dtype changes values


class Node:
    """A node with its attributes as Python has them, and its inputs as far as they are known.

    name      for messages: it may be that of several nodes
    number    its place in the graph
    """

    def __init__(
        self, name: str, number: int, operator: str, attributes: Attributes, inputs: list[Value | None], outputs: int
    ):
        self.name = name
        self.number = number
        self.operator = operator
        self.attributes = attributes
        self.inputs = inputs
        self.outputs = outputs

    def read(self) -> Sequence[Value] | None:
        """The outputs; None for a node that has no counterpart."""
        known = [value for value in self.inputs if value is not None]
        if self.operator in GATES:
            return read_operator(self.number, self.operator, self.attributes, self.inputs)
        padding = read_padding(self.operator, self.attributes, known, self.outputs)
        if padding is not None:
            return padding
        if self.operator == "Shape":
            return [Bookkeeping()]
        if self.operator == "Where":
            return self._where(known)
        if self.operator == "Gather" and isinstance(known[0], Constant) and isinstance(known[1], Given):
            return [embedding(known[0].array, known[1])] if len(known[1].axes or "") == 2 else None
        if any(isinstance(value, Steps) for value in known) or self._begins(known):
            return self._of_steps([as_steps(value) or value for value in known])
        if last := [value.nodes for value in known if isinstance(value, Last)]:
            return [Last(frozenset[int]().union(*last))] * self.outputs if self.operator in PLUMBING else None
        return self._of_inputs(known)

    def _where(self, known: list[Value]) -> Sequence[Value]:
        """Padding replaced by a constant, which no step reads, or by the zeros that `unroll` puts out."""
        if last := [value.nodes for value in known if isinstance(value, Last)]:
            return [Last(frozenset[int]().union(*last))]
        if not any(isinstance(value, Steps) or (isinstance(value, Given) and value.axes != "L") for value in known):
            return [Bookkeeping()]
        mask, values, otherwise = known
        number = otherwise.array if isinstance(otherwise, Constant) and otherwise.array.size == 1 else None
        if (
            number is None
            or not isinstance(values, Given | Steps)
            or not keeps_the_steps(mask, values)
            or (isinstance(values, Steps) and number.any())
        ):
            raise ValueError(
                f"model: expected Where to replace the steps from sequence_lens on by a constant, by zero behind a "
                f"recurrent node, got masks or values that are not known to do so in {self.name}. "
                "Drop that node from the model, and mask its values outside"
            )
        return [values]

    def _begins(self, known: list[Value]) -> bool:
        return self.operator in READS and as_steps(known[0]) is not None

    def _of_steps(self, known: list[Value]) -> Sequence[Value] | None:
        if self.operator in SAME:
            casts = self.operator == "Cast" and self.attributes["to"] not in FLOATING
            training = self.operator == "Dropout" and len(known) > 2 and known[2] != Constant(np.array(False))
            return None if casts or training else known[:1]
        if self.operator in ("Transpose", "Squeeze", "Reshape", "Split") and isinstance(known[0], Steps):
            return _rearranged(self.operator, self.attributes, known[0], known[1:])
        if len(known) == 2 and all(isinstance(value, Steps) for value in known):
            return self._of_two(known[0], known[1])
        if self.operator == "Div" and isinstance(known[0], Steps) and isinstance(known[1], Constant):
            half = halved(known[0]) if known[1].array.size == 1 and known[1].array.item() == 2 else None
            return None if half is None else [half]
        steps, *weights = known if isinstance(known[0], Steps) else known[::-1]
        if self.operator == "MatMul" and steps is not known[0]:
            return None
        found = function_node(self.operator, self.attributes, steps, weights) if isinstance(steps, Steps) else None
        return None if found is None else [found]

    def _of_two(self, first: Any, second: Any) -> Sequence[Value] | None:
        if self.operator not in MERGES or (self.operator == "Concat" and self.attributes.get("axis") not in (2, -1)):
            return None
        found = merged(first, second, MERGES[self.operator]) if first.axes[-1] == "F" else None
        return None if found is None else [found]

    def _of_inputs(self, known: list[Value]) -> Sequence[Value] | None:
        """Values beside the sequence: shapes, lengths, states, and inputs whose axes are moved."""
        if self.operator == "Transpose" and isinstance(known[0], Given) and known[0].axes is not None:
            return [known[0]._replace(axes="".join(known[0].axes[axis] for axis in self.attributes["perm"]))]
        if self.operator == "Cast" and as_lengths(known[0]) is not None:
            return [Bookkeeping()]  # to a dtype that may change them
        if self.operator in SAME and known:
            rounds = self.operator == "Cast" and self.attributes["to"] not in FLOATING
            features = isinstance(known[0], Given) and len(known[0].axes or "") == 3
            return None if rounds and features else known[:1]
        if self.operator == "ConstantOfShape":
            value = self.attributes.get("value")
            return [Zeros() if value is None or not np.any(value) else Bookkeeping()]
        if self.operator == "Expand" and isinstance(known[0], Constant):
            return known[:1]
        given = [value for value in known if isinstance(value, Given)]
        if self.operator == "Concat" and any(isinstance(value, Constant) and value.array.any() for value in known):
            return [Bookkeeping()]
        if self.operator in PLUMBING and given:
            return [given[0]._replace(axes=None)] * self.outputs
        if self.operator in PLUMBING and any(isinstance(value, Zeros) for value in known):
            return [Zeros()] * self.outputs
        return [Bookkeeping()] * self.outputs


def _rearranged(operator: str, attributes: Attributes, steps: Steps, rest: list[Value]) -> Sequence[Value] | None:
    if operator == "Transpose":
        return [steps._replace(axes="".join(steps.axes[axis] for axis in attributes["perm"]))]
    numbers = rest[0].array.tolist() if rest and isinstance(rest[0], Constant) else attributes.get("axes", [])
    D = steps.axes.find("D")
    pair = D >= 0 and len(steps.layers[-1:]) == 1 and isinstance(steps.layers[-1], tuple)
    if operator == "Squeeze":
        fits = D >= 0 and not pair and [number % len(steps.axes) for number in numbers] == [D]
        return [steps._replace(axes=steps.axes.replace("D", ""))] if fits else None
    if operator == "Split":
        return list(parts(steps)) if pair and attributes.get("axis", 0) % len(steps.axes) == D else None
    # Reshape: the last two axes, D and F, as one.
    if (
        D != 2
        or len(numbers) != 3
        or numbers[:2] != [0, 0]
        or numbers[2] not in (-1, doubled(steps.features))
        or not pair
    ):
        return None
    return [directions_merged(steps, concatenate)._replace(axes=steps.axes.replace("D", ""))]
