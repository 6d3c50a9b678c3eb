"""`from_onnx`: a network from a file of ONNX."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...arrays import State
from ...checked import Checked
from ...network import Layer
from ...networks.bidirectional import Bidirectional, Reversed
from ...networks.connected import Connected
from ...networks.merge import Directions, concatenate
from ...networks.stack import Stack
from .direction import GATES
from .package import onnx_package
from .read_merge import directions_merged, sole
from .read_node import Node
from .read_padding import as_lengths
from .values import Constant, Given, Last, Lengths, Mask, Steps, Value


class Serialised(Protocol):
    """An `onnx.ModelProto`, by what it can do: the package need not be there."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


class Imported(NamedTuple):
    """A network from a file, and what the file says of one batch.

    state      the initial states, a leading axis B on each leaf, where the file holds one for each sequence; else None
    lengths    [B], where the file holds them; else None
    """

    network: Layer
    state: State | None
    lengths: Array | None


def from_onnx(model: Checked[str | Path | Serialised]) -> Imported:
    """The network of an ONNX model, given as a path or as an `onnx.ModelProto`. Needs the package `onnx`.

    The nodes RNN, LSTM and GRU become cells, in one or both directions (`Reversed`, `Bidirectional`), with all of their
    attributes: `activations`, `clip` (see `rnnjax.cells.clipped`), `input_forget`, `linear_before_reset` (1 is `GRU`, 0
    is `ResetBeforeGRU`), `layout`, and peepholes. Several in a chain become a `Stack`; so do the layers between them:
    MatMul and Add, LayerNormalization, Gather of an embedding, elementwise functions, and connections around a layer.
    The outputs of a node of both directions are concatenated. The two biases are added up, but for the inner one of the
    GRU.

        network, state, lengths = from_onnx("model.onnx")
        last, ys = jax.vmap(lambda xs: unroll(network, None, xs))(xs)                          # xs: [B, T, I]

    A constant initial state of one row becomes the `initial_state` of its cell. Initial states and lengths that are
    inputs of the model are what `unroll` takes: `state` and `length`. Outputs from `length` on are zero, and no step
    leaves the state as it was; `onnxruntime` puts out zero states then.

    Raises a ValueError that names the node that cannot be represented, such as a recurrence written as Loop or Scan, or
    a decoder that begins in the last state of an encoder; and an ImportError where `onnx` is missing.
    """
    onnx = onnx_package()
    if isinstance(model, str | Path) and not Path(model).is_file():
        raise FileNotFoundError(f"model: expected a file at {model}, found none. Pass the path of an ONNX file")
    proto: Any = onnx.load(str(model)) if isinstance(model, str | Path) else model
    if not isinstance(proto, onnx.ModelProto):
        raise TypeError(f"model: expected a path or an onnx.ModelProto, got {model!r}. Pass the path of the file")
    opset = max(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    graph = _Graph(onnx, proto.graph, opset)
    steps = graph.network()
    lengths = graph.lengths(steps.time)
    network, state = sole(steps.layers, steps.states)
    rows = {len(leaf) for leaf in jax.tree.leaves(state)}
    if len(rows) > 1:
        raise ValueError(
            f"model: expected initial states of one batch, got batches of {sorted(rows)}. Give all nodes the same"
        )
    filled = None if state is None else _filled(network, state, rows.pop())
    return Imported(network, filled, None if lengths is None else jnp.asarray(lengths))


class _Graph:
    """A graph that is read from its inputs to its outputs."""

    def __init__(self, onnx: ModuleType, graph: Any, opset: int):
        self.onnx = onnx
        self.opset = opset
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.lengths_of: list[tuple[str, Value | None]] = []  # the name of each recurrent node, and its sequence_lens
        self.masks: list[Mask] = []
        self.deepest: list[Steps] = []  # what the last recurrent node puts out
        for tensor in graph.initializer:
            self.values[tensor.name] = Constant(onnx.numpy_helper.to_array(tensor))
        for given in graph.input:
            if given.name not in self.values:
                sizes = [size.dim_value or None for size in given.type.tensor_type.shape.dim]
                axes = {1: "L", 2: "ab", 3: "abF"}.get(len(sizes))
                self.values[given.name] = Given(given.name, axes, sizes[-1] if sizes else None)
        for number, node in enumerate(graph.node):
            self._read(number, node)

    def network(self) -> Steps:
        """The sequence that the graph puts out."""
        if not self.lengths_of:
            raise ValueError(
                f"model: expected RNN, LSTM or GRU nodes, got {sorted({node.op_type for node in self.graph.node})}. "
                "Pass a model that has some, outside of Loop, Scan and If"
            )
        found = [self.values[output.name] for output in self.graph.output]
        wrong = [value for value in found if not isinstance(value, Steps | Last)]
        steps = [value for value in found if isinstance(value, Steps)] or self.deepest
        same = all(each.extends(steps[0]) and steps[0].extends(each) for each in steps)
        if wrong or not same or not all(value.nodes <= steps[0].nodes for value in found if isinstance(value, Last)):
            raise ValueError(
                "model: expected the outputs of one network of RNN, LSTM or GRU nodes, and its last states, got "
                f"{[output.name for output in self.graph.output]}. Export the model with these outputs alone"
            )
        (whole, *_) = steps
        return directions_merged(whole, concatenate) if isinstance(whole.layers[-1], tuple) else whole

    def lengths(self, time: str | None) -> np.ndarray | None:
        """The lengths that the file holds, once all nodes are seen to have the same, and masks to follow from them.

        time   the axis of time in the sequence
        """
        values = [value.array.tolist() if isinstance(value, Constant) else value for _, value in self.lengths_of]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"model: expected one and the same sequence_lens for all recurrent nodes, got others in "
                f"{[name for name, _ in self.lengths_of]}. Give them all, or none of them, these lengths"
            )
        (_, value), *_ = self.lengths_of
        lengths = as_lengths(value)
        bounded = lengths is None or lengths.bound in (None, time)
        if not isinstance(value, Constant | Given | Lengths | None) or not bounded:
            raise ValueError(
                "model: expected sequence_lens to be an input, a constant or none, got one that is computed from "
                "others. Make the lengths themselves an input of the model"
            )
        if any(lengths is None or mask.source != lengths.source or mask.time != time for mask in self.masks):
            raise ValueError(
                "model: expected masks that follow from sequence_lens, got others. Drop the nodes Where from the model"
            )
        return value.array if isinstance(value, Constant) else None

    def _read(self, number: int, proto: Any) -> None:
        inputs = [self.values[name] if name else None for name in proto.input]
        attributes = {each.name: self._attribute(each) for each in proto.attribute}
        if self.opset < 13 and proto.op_type in ("Softmax", "LogSoftmax"):
            attributes.setdefault("axis", 1)
        known = [value for value in inputs if value is not None]
        name = proto.name or next(filter(None, proto.output), proto.op_type)
        if proto.op_type != "Expand" and all(isinstance(value, Constant) for value in known):
            found = self._computed(proto, [value.array for value in known if isinstance(value, Constant)])
        else:
            found = Node(name, number, proto.op_type, attributes, inputs, len(proto.output)).read()
        if found is None:
            raise ValueError(
                f"model: expected nodes of a network of RNN, LSTM and GRU, got {proto.op_type} {proto.name} "
                f"of {', '.join(proto.input)}. Cut it off, or rebuild that part with rnnjax"
            )
        twice = [output for output in proto.output if output in self.values and output]
        if twice:
            raise ValueError(
                f"model: expected a name of its own for each value, got {twice} once more from {proto.op_type} {name}. "
                "Check the file with onnx.checker"
            )
        self.values |= {name: value for name, value in zip(proto.output, found, strict=False) if name}
        if proto.op_type in GATES:
            self.lengths_of.append((name, inputs[4] if len(inputs) > 4 else None))
            self.deepest = [value for value in found if isinstance(value, Steps)]
        if proto.op_type == "Where" and isinstance(found[0], Steps | Given) and isinstance(inputs[0], Mask):
            self.masks.append(inputs[0])

    def _attribute(self, proto: Any) -> Any:
        value = self.onnx.helper.get_attribute_value(proto)
        if isinstance(value, self.onnx.TensorProto):
            return self.onnx.numpy_helper.to_array(value)
        return [*map(_plain, value)] if isinstance(value, list | tuple) else _plain(value)

    def _computed(self, proto: Any, arrays: list[np.ndarray]) -> list[Value]:
        names = [name for name in proto.input if name]
        evaluator = import_module("onnx.reference").ReferenceEvaluator(proto)
        return [Constant(array) for array in evaluator.run(None, dict(zip(names, arrays, strict=True)))]


def _plain(value: Any) -> Any:
    """A text; or a number, of the fewest digits that say which of float32 it is."""
    if isinstance(value, bytes):
        return value.decode()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _filled(layer: Layer, state: Any, rows: int) -> State:
    """A state for each of `rows` sequences, the layer's own where the file holds none."""
    if state is None:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), layer.initial())
    if isinstance(layer, Stack):
        return tuple(_filled(each, part, rows) for each, part in zip(layer.layers, state, strict=True))
    if isinstance(layer, Bidirectional):
        return Directions(_filled(layer.forward, state.forward, rows), _filled(layer.backward, state.backward, rows))
    if isinstance(layer, Reversed | Connected):
        return _filled(layer.layer, state, rows)
    return jax.tree.map(jnp.asarray, state)
