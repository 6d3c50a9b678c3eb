"""Networks with the weights of Keras 3: SimpleRNN, LSTM, GRU, ConvLSTM1D to 3D, Bidirectional and StackedRNNCells."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array

from ..cell import AbstractCell
from ..cells.conv_lstm import ConvLSTM
from ..cells.geometry import Geometry
from ..cells.gru import GRU
from ..cells.reset_before_gru import ResetBeforeGRU
from ..checked import Checked
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.merge import add, average, concatenate, multiply, pair
from ..networks.stack import Stack
from .layout import Weight, read, reorder
from .parts import (
    ACTIVATIONS,
    add_biases,
    check_no_activation,
    conv_lstm,
    elman,
    gru,
    lstm,
    number_of_gates,
    reset_before_gru,
)

if TYPE_CHECKING:
    import keras

KINDS = {1: "a SimpleRNN", 3: "a GRU", 4: "an LSTM"}
MERGES = {"concat": concatenate, "sum": add, "ave": average, "mul": multiply, None: pair}


def from_keras(
    source: Checked["keras.layers.Layer | Mapping[str, object]"], *, activation: Callable[[Array], Array] | None = None
) -> Layer:
    """The network with the weights of a recurrent layer of Keras that is built, or of a cell.

    source       the layer; or the arrays of one cell, `{"kernel": ..., "recurrent_kernel": ..., "bias": ...}`, for
                 which Keras need not be installed
    activation   of a SimpleRNN whose arrays are given: by default tanh; a layer has its own

    SimpleRNN         an `Elman`: W is kernel, R is recurrent_kernel, b is bias
    LSTM              an `LSTM`; gates i, f, c, o, which are i, f, g, o here
    GRU               gates z, r, h, here r, z, n; a `GRU` with reset_after, whose two biases are added but for that of
                      h in the second one, which is `candidate_bias`; else a `ResetBeforeGRU`
    ConvLSTM1D...3D   a `ConvLSTM`, with its padding, strides and dilation; frames are [*space, channels] in Keras,
                      [channels, *space] here
    Bidirectional     a `Bidirectional`, with the merge of `merge_mode`
    RNN               its cell; `StackedRNNCells` are a `Stack`

    Inputs of Keras are [B, T, I]; ours are [T, I], under `jax.vmap`. The outputs are those of all steps
    (return_sequences=True). A mask of the first steps is `unroll(..., length=)`.

    Raises a ValueError for what changes the numbers and has no counterpart in a cell: other activations, dropout (wrap
    the result in `rnnjax.regularise.VariationalDropout`), go_backwards outside of a Bidirectional.
    """
    if isinstance(source, Mapping):
        return _from_arrays(source, activation)
    check_no_activation(activation, "layer", "arrays of a SimpleRNN")
    return _from_layer(source, backwards=False)


def _from_layer(layer: Any, backwards: bool) -> Layer:
    """The network of a layer, which runs `backwards` or not."""
    import keras

    if isinstance(layer, keras.layers.Bidirectional):
        forward = _from_layer(layer.forward_layer, backwards=False)
        return Bidirectional(forward, _from_layer(layer.backward_layer, backwards=True), merge=_merge(layer, forward))
    if not isinstance(layer, keras.layers.RNN):
        return _from_cell(layer)
    if layer.go_backwards != backwards:
        raise ValueError(
            f"go_backwards: expected {backwards}, got {layer.go_backwards}. "
            "Build the layer without it, copy the weights, and put the converted cell into Reversed, whose outputs are "
            "in the order of time"
        )
    if isinstance(layer, keras.layers.ConvLSTM1D | keras.layers.ConvLSTM2D | keras.layers.ConvLSTM3D):
        return _from_frames(layer.cell)
    return _from_cell(layer.cell)


def _merge(layer: Any, forward: Layer) -> Callable[..., Any]:
    if isinstance(forward, ConvLSTM) and layer.merge_mode == "concat":
        raise ValueError(
            "merge_mode: expected a sum, product or average of frames, got 'concat', along channels, which lead here. "
            "Build the layer with merge_mode='sum', or convert each direction by itself"
        )
    return MERGES[layer.merge_mode]


def _from_cell(cell: Any) -> Layer:
    """The network of a cell."""
    import keras

    layers = keras.layers
    if isinstance(cell, layers.StackedRNNCells):
        return Stack([_from_cell(each) for each in cell.cells])
    if not isinstance(cell, layers.SimpleRNNCell | layers.LSTMCell | layers.GRUCell):
        raise TypeError(
            f"source: expected a SimpleRNN, LSTM, GRU, ConvLSTM, Bidirectional or RNN, or one of their cells, "
            f"got {type(cell).__name__}. Pass the recurrent layers of a model one by one, and put them into a Stack"
        )
    arrays = _arrays(cell)
    if isinstance(cell, layers.SimpleRNNCell):
        name = getattr(cell.activation, "__name__", repr(cell.activation))
        if name not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected {', '.join(ACTIVATIONS)}, got {name}. "
                "Pass the arrays of the cell, and activation= as a function of JAX"
            )
        return _from_arrays(arrays, ACTIVATIONS[name])
    _check_gates(cell)
    if isinstance(cell, layers.GRUCell):
        return _gru(arrays, cell.reset_after)
    return lstm(arrays["kernel"], arrays["recurrent_kernel"], arrays.get("bias"))


def _from_frames(cell: Any) -> ConvLSTM:
    """The convolutional LSTM of its cell in Keras."""
    arrays = _arrays(cell)
    _check_gates(cell)
    ones = (1,) * cell.rank
    padding = None if cell.padding == "same" else (0,) * cell.rank
    geometry = Geometry(tuple(cell.spatial_dims), padding, cell.strides, cell.dilation_rate, ones)
    return conv_lstm(arrays["kernel"], arrays["recurrent_kernel"], arrays.get("bias"), geometry)


def _check_gates(cell: Any) -> None:
    """Raise unless the activations are those of the paper."""
    for name, expected in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        given = getattr(getattr(cell, name), "__name__", None)
        if given != expected:
            raise ValueError(
                f"{name}: expected {expected}, got {given}. "
                "Write the step as a cell of your own, as examples/new_cell.py does"
            )


def _arrays(cell: Any) -> dict[str, Weight]:
    """The weights of a cell by their names; raise where it is not built, or drops anything."""
    if not cell.built:
        raise ValueError(
            f"source: expected a layer that is built, got {cell.name} without weights. Call layer.build first"
        )
    for name in ("dropout", "recurrent_dropout"):
        if getattr(cell, name):
            raise ValueError(
                f"{name}: expected 0, since a cell drops nothing, got {getattr(cell, name)}. "
                f"Pass the layer with layer.cell.{name} = 0, and wrap the result in "
                "rnnjax.regularise.VariationalDropout"
            )
    names = ("kernel", "recurrent_kernel", "bias") if cell.use_bias else ("kernel", "recurrent_kernel")
    superfluous = [weight.path for weight in cell.weights if all(weight is not getattr(cell, name) for name in names)]
    if superfluous:
        raise ValueError(
            f"source: expected a cell with the weights {', '.join(names)} alone, got {superfluous}, too. "
            "Write its step as a cell of your own, as examples/new_cell.py does"
        )
    return {name: _value(getattr(cell, name)) for name in names}


def _value(variable: Any) -> Weight:
    """The array of a variable of Keras, whatever its backend."""
    import keras

    value = variable.value
    return read(value) if isinstance(value, jax.Array) else np.asarray(keras.ops.convert_to_numpy(value))


def _from_arrays(arrays: Mapping[str, Any], activation: Callable[[Array], Array] | None) -> AbstractCell:
    """The cell of these arrays, told by their shapes."""
    superfluous = sorted(set(arrays) - {"kernel", "recurrent_kernel", "bias"})
    if superfluous or not {"kernel", "recurrent_kernel"} <= set(arrays):
        raise ValueError(
            f"source: expected kernel, recurrent_kernel and perhaps bias, got {sorted(arrays)}. Pass those of one cell"
        )
    arrays = {name: read(value) for name, value in arrays.items() if value is not None}
    gates = number_of_gates(arrays["kernel"], arrays["recurrent_kernel"].shape[0], KINDS)
    W, R, bias = arrays["kernel"], arrays["recurrent_kernel"], arrays.get("bias")
    if gates == 1:
        return elman(W, R, bias, activation)
    if activation is not None:
        raise ValueError(f"activation: expected None for {KINDS[gates]}, got {activation!r}. Leave it out")
    if gates == 4:
        return lstm(W, R, bias)
    if bias is None:
        raise ValueError(
            "source: expected the layer itself, of a GRU without a bias, got its arrays, which do not say whether it "
            "resets before or after the product. Pass the layer"
        )
    return _gru(arrays, reset_after=bias.ndim == 2)


def _gru(arrays: Mapping[str, Weight], reset_after: bool) -> GRU | ResetBeforeGRU:
    """The GRU of either form; a bias for each product, [2, 3 H], if it is reset after, else one."""
    W, R = (reorder(arrays[name], "zrh", "rzh") for name in ("kernel", "recurrent_kernel"))
    bias = reorder(arrays["bias"], "zrh", "rzh") if "bias" in arrays else None
    if not reset_after:
        return reset_before_gru(W, R, bias)
    return gru(W, R, *((None, None) if bias is None else add_biases(*bias)))
