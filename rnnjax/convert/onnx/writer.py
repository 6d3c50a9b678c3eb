"""`to_onnx`: a network as a file of ONNX."""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ... import check
from ...arrays import AnyArray, PyTree
from ...cell import describe
from ...checked import Checked
from ...models.classifier import Classifier
from ...models.language import LanguageModel
from ...models.tagger import Tagger
from ...network import Layer
from ...training.checkpoint import write_atomically
from .builder import Builder
from .context import Context, Lengths, Names
from .package import onnx_package
from .write_model import model_of


def to_onnx(
    network: Checked[Layer | Classifier | Tagger | LanguageModel],
    path: str | Path,
    *,
    lengths: bool = True,
    states: bool = True,
) -> None:
    """Write a network to a file of ONNX, opset 17, which has passed ONNX's checker. Needs the package `onnx`.

    The file runs a batch of any size, of any number of steps from one on. What it takes and puts out leads with the
    batch, as `jax.vmap(lambda state, xs, length: unroll(network, state, xs, length=length))` does:

        inputs     xs            [B, T, I], or tokens [B, T]
                   lengths       [B], int32, as the `length` of `unroll`
                   state.PATH    [B, H], each array of the state
        outputs    ys            [B, T, O]
                   last.PATH     [B, H], each array of the last state

    Feeding the last state back as the state continues the sequence. Outputs from `lengths` on are zero, and padding may
    hold anything. Names of states are those of their fields and layers: `state.h`, `state.1.forward.c`. The initial
    state of the network is not in a file that takes states: `network.initial()` gives it.

    network   `Elman`, `LSTM`, `GRU` and `ResetBeforeGRU`, which become the nodes RNN, LSTM and GRU; any other gated
              cell whose `pointwise` is made of operations that ONNX has, which becomes a node Scan; `Stack`,
              `Bidirectional`, `SharedBidirectional`, `Reversed`, `residual`, `skip`, regularised layers as they are
              without a key, and `TimeDistributed` of `eqx.nn.Linear`, `LayerNorm`, `Embedding`, `MLP`, `Sequential`
              and elementwise functions. A `Tagger` or a `LanguageModel` of these puts out its answers or logits; a
              `Classifier` with `last`, `ends`, `mean` or `maximum` its answer `y` [B, O], and has no states. Files have
              no dropout: `eqx.nn.Dropout` is written as `eqx.nn.inference_mode` leaves it.
    lengths   False leaves them out: all steps count
    states    False leaves them out: every sequence begins in the network's initial state

    Weights are float32 or float64; `onnxruntime` has no recurrent node of float64. Raises a ValueError that names what
    ONNX cannot say, and an ImportError where `onnx` is missing; then no file is written, and one that was there stays.
    """
    check.flags(lengths=lengths, states=states)
    onnx, dtype = onnx_package(), _dtype(network)
    model = model_of(eqx.nn.inference_mode(network))
    graph = Builder(onnx)
    xs = graph.input("xs", model.form.dtype, ("batch", "time", *model.form.shape))
    batch, steps = graph.node("Split", graph.node("Shape", xs, end=2), axis=0, outputs=(".batch", ".time"))
    states = states and not model.is_whole
    context = Context(graph, dtype, batch, _lengths(graph, steps) if lengths else None, states)
    like = jax.eval_shape(model.network.initial)
    before = _inputs(graph, like, dtype) if states else _constants(context, model.network.initial())
    last, ys = model.write(context, before, _swap(graph, xs, len(model.form.shape)))
    if model.is_whole:
        graph.output("y", ys, dtype, ("batch", *model.output.shape))
    else:
        graph.output("ys", _swap(graph, context.valid(ys), 1), dtype, ("batch", "time", *model.output.shape))
    if states:
        _outputs(graph, like, last, dtype)
    made = graph.model(describe(network))
    onnx.checker.check_model(made, full_check=True)
    write_atomically(path, made.SerializeToString())


def _dtype(network: Any) -> np.dtype[Any]:
    """That of all weights."""
    found = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))}
    if len(found) > 1 or not found <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise ValueError(
            f"network: expected weights of one dtype, float32 or float64, got {sorted(map(str, found))}. "
            "Cast them: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)"
        )
    return found.pop() if found else np.dtype(np.float32)


def _lengths(graph: Builder, steps: str) -> Lengths:
    """The input `lengths`, kept from 0 to T as `unroll` keeps one that is traced."""
    cast = partial(graph.node, "Cast", to=graph.onnx.TensorProto.INT32)
    known = graph.constant(0, np.int32), graph.constant(1, np.int32)
    zero, one = known
    T = cast(graph.node("Squeeze", steps, graph.integers(0)))
    within = graph.node("Min", graph.node("Max", graph.input("lengths", np.int32, ("batch",)), zero), T)
    times = graph.node("Unsqueeze", graph.node("Range", zero, T, one), graph.integers(1, 2))
    valid = graph.node("Less", times, graph.node("Unsqueeze", within, graph.integers(0, 2)))
    final = graph.node("Equal", graph.node("Add", times, one), graph.node("Unsqueeze", within, graph.integers(0, 2)))
    empty = graph.node("Unsqueeze", graph.node("Equal", within, zero), graph.integers(1))
    return Lengths(graph.node("Max", within, one), valid, final, empty)


def _inputs(graph: Builder, like: PyTree[jax.ShapeDtypeStruct], dtype: np.dtype[Any]) -> Names:
    named = lambda path, leaf: graph.input(_name("state", path), dtype, ("batch", *leaf.shape))  # noqa: E731
    return jax.tree_util.tree_map_with_path(named, like)


def _constants(context: Context, initial: PyTree[AnyArray]) -> Names:
    """The initial state as constants, without a name where it is zero."""
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], initial)
    return jax.tree.map(lambda row: context.spread(row) if row.any() else "", rows)


def _outputs(graph: Builder, like: PyTree[jax.ShapeDtypeStruct], last: Names, dtype: np.dtype[Any]) -> None:
    def put_out(path: Any, leaf: jax.ShapeDtypeStruct, value: str) -> None:
        graph.output(_name("last", path), value, dtype, ("batch", *leaf.shape))

    jax.tree_util.tree_map_with_path(put_out, like, last)


def _name(name: str, path: Any) -> str:
    """`state.0.h`."""
    return ".".join(filter(None, (name, jax.tree_util.keystr(path, simple=True, separator="."))))


def _swap(graph: Builder, xs: str, rank: int) -> str:
    """[B, T, ...] as [T, B, ...], and back; `rank` is that of one step."""
    return graph.node("Transpose", xs, perm=[1, 0, *range(2, 2 + rank)])
