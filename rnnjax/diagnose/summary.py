"""What a model is made of: its arrays, and how each of its cells would run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax

from .. import check
from ..arrays import PyTree, Shaped, State
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..explain import explain, places
from ..network import Layer


@dataclass(frozen=True)
class ArraySummary:
    """One array of a model."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int  # the numbers that are trained: 0 for an array that is not floating
    bytes: int


@dataclass(frozen=True)
class CellSummary:
    """One cell of a model: its path, its name, the state of one sequence, and the engine that would run it."""

    path: str
    name: str
    state: State  # the forms of its arrays
    state_bytes: int
    engine: str


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` answers; its text is a table."""

    arrays: tuple[ArraySummary, ...]
    cells: tuple[CellSummary, ...]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(array.parameters for array in self.arrays)

    @property
    def bytes(self) -> int:
        """What all arrays take."""
        return sum(array.bytes for array in self.arrays)

    def __str__(self) -> str:
        heading = ("path", "shape", "dtype", "parameters", "bytes")
        rows = [
            (array.path, str(list(array.shape)), array.dtype, f"{array.parameters:,}", f"{array.bytes:,}")
            for array in self.arrays
        ]
        table = [heading, *rows, ("total", "", "", f"{self.parameters:,}", f"{self.bytes:,}")]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join([*(_line(row, widths) for row in table), "", *map(_describe_cell, self.cells)])

    def __repr__(self) -> str:
        return str(self)


def summary(model: Checked[PyTree], xs: Checked[PyTree[Shaped]], engine: Checked[AbstractEngine] = Auto()) -> Summary:
    """The arrays of `model` with their paths and sizes, and the state and the engine of each of its cells.

        >>> print(summary(Classifier(LSTM(3, 32, key=a), eqx.nn.Linear(32, 5, key=b)), jnp.zeros((40, 3))))
        path                      shape      dtype    parameters   bytes
        network.input_weight      [3, 128]   float32         384   1,536
        network.recurrent_weight  [32, 128]  float32       4,096  16,384
        network.bias              [128]      float32         128     512
        head.weight               [5, 32]    float32         160     640
        head.bias                 [5]        float32           5      20
        total                                              4,773  19,092
        <BLANKLINE>
        network, LSTM: state of 256 bytes; Fused: CPU kernel, a program of ...

    model    a cell, a network, or any model with some in it
    xs       one sequence, time first, or its `jax.ShapeDtypeStruct`: what the model is fed, such as tokens
    engine   as in `unroll`: what runs which cell is what `explain` says for T steps

    Nothing is computed.
    """
    arrays = tuple(_arrays(model))
    leaves = jax.tree.leaves(xs)
    if not leaves or any(not getattr(leaf, "shape", ()) for leaf in leaves):
        raise ValueError(f"xs: expected one sequence, [T, ...], got {check.show(xs)}. Pass an array with time first")
    if isinstance(model, Layer):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), xs)
        return Summary(arrays, tuple(_cells("", model, shapes, engine)))
    T = leaves[0].shape[0]
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_layer)[0]
    layers = [(jax.tree_util.keystr(keys).removeprefix("."), part) for keys, part in found if _is_layer(part)]
    cells = [cell for path, layer in layers for cell in _cells(path, layer, _sequence(layer, T), engine)]
    return Summary(arrays, tuple(cells))


def count(model: PyTree) -> int:
    """How many numbers of `model` are trained: those in its floating-point and complex arrays.

    >>> count(GRU(3, 16, key=key))
    976
    """
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def _arrays(model: PyTree) -> Iterator[ArraySummary]:
    for keys, leaf in jax.tree.leaves_with_path(eqx.filter(model, eqx.is_array)):
        parameters = leaf.size if eqx.is_inexact_array(leaf) else 0
        path = jax.tree_util.keystr(keys).removeprefix(".")
        yield ArraySummary(path, leaf.shape, str(leaf.dtype), parameters, leaf.nbytes)


def _cells(path: str, layer: Layer, xs: PyTree[Shaped], engine: AbstractEngine) -> Iterator[CellSummary]:
    """The cells of a layer that stands at `path` of the model."""
    parts = dict(reversed(list(places(layer))))  # of a network and what is in it at one path, the network
    for cell in explain(layer, xs, engine).cells:
        state = jax.eval_shape(parts[cell.path].initial)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        joint = "" if not path or not cell.path or cell.path.startswith("[") else "."
        yield CellSummary(path + joint + cell.path, cell.name, state, size, str(cell.plan))


def _is_layer(part: object) -> bool:
    return isinstance(part, Layer)


def _sequence(layer: Layer, T: int) -> PyTree[jax.ShapeDtypeStruct]:
    """The form of T steps of a layer's inputs."""
    return jax.tree.map(lambda step: jax.ShapeDtypeStruct((T, *step.shape), step.dtype), layer.input_type())


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    columns = enumerate(zip(row, widths, strict=True))
    cells = [cell.ljust(width) if place < 3 else cell.rjust(width) for place, (cell, width) in columns]
    return "  ".join(cells).rstrip()


def _describe_cell(cell: CellSummary) -> str:
    title = f"{cell.path}, {cell.name}" if cell.path else cell.name
    return f"{title}: state of {cell.state_bytes:,} bytes; {cell.engine}"
