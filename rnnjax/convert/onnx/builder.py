"""A graph of ONNX that grows node by node, each value known by its name."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jax.typing import ArrayLike, DTypeLike

OPSET, FORMAT = 17, 8  # the oldest operators with a layer normalisation, and the version of files that goes with them


class Builder:
    """Nodes, constants, inputs and outputs. Names start with `prefix`, so that a graph within another has its own."""

    def __init__(self, onnx: ModuleType, prefix: str = ""):
        self.onnx = onnx
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[Any, Any] = {}
        self._count = 0

    def node(self, operator: str, *inputs: str, outputs: tuple[str, ...] = ("",), **attributes: object) -> Any:
        """The name of what the operator makes of the inputs, or their names, a word of `outputs` in each.

        An output `None` is left out.
        """
        self._count += 1
        names = [None if word is None else f"{self.prefix}{operator}_{self._count}{word}" for word in outputs]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        node = self.onnx.helper.make_node(operator, given, [name or "" for name in names], **attributes)
        node.name = f"{self.prefix}{operator}_{self._count}"
        self.nodes.append(node)
        return names[0] if len(names) == 1 else names

    def constant(self, value: ArrayLike | Sequence[int], dtype: DTypeLike | None = None) -> str:
        """The name of an array, one for all that are equal."""
        array = np.array(value, dtype, order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            name = f"{self.prefix}constant_{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(array, name)
        return self.constants[key].name

    def integers(self, *values: int) -> str:
        """The name of a vector of axes, sizes or repeats."""
        return self.constant(values, np.int64)

    def input(self, name: str, dtype: DTypeLike, shape: tuple[int | str, ...]) -> str:
        """An input of the graph, an axis of unknown size by a word."""
        self.inputs.append(self._described(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: DTypeLike, shape: tuple[int | str, ...]) -> None:
        """Give a value out under a name."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(self._described(name, dtype, shape))

    def graph(self, name: str) -> Any:
        """All of it."""
        return self.onnx.helper.make_graph(self.nodes, name, self.inputs, self.outputs, [*self.constants.values()])

    def model(self, name: str) -> Any:
        """The graph as a file has it."""
        opset = self.onnx.helper.make_opsetid("", OPSET)
        return self.onnx.helper.make_model(
            self.graph(name), opset_imports=[opset], ir_version=FORMAT, producer_name="rnnjax"
        )

    def _described(self, name: str, dtype: DTypeLike, shape: tuple[int | str, ...]) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, list(shape))
