"""Layers of Keras 3 with the weights of a network."""
# pyright: reportMissingImports=false

from typing import TYPE_CHECKING, Any

import numpy as np

from ..cell import describe
from ..cells.conv_lstm import ConvLSTM
from ..cells.elman import Elman
from ..cells.geometry import Geometry
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.reset_before_gru import ResetBeforeGRU
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.stack import Stack
from .keras_import import MERGES
from .layout import Weight, join, read, reorder
from .parts import ACTIVATIONS, activation_name, bias_for_each_product, check_plain, refuse, weights_of

if TYPE_CHECKING:
    import keras

TARGET = "Keras"


def to_keras(network: Layer, *, return_state: bool = False) -> "keras.layers.Layer":
    """The layer of Keras with the weights of a network: what `from_keras` reads, built, with return_sequences=True.

    An `Elman` of tanh, relu, sigmoid or no activation, an `LSTM`, a `GRU` (the bias is the first one of its two; the
    second is zero but inside the reset: -0.0, which changes no bit of a sum), a `ResetBeforeGRU`, a `ConvLSTM`; a
    `Stack` of cells as `RNN(StackedRNNCells(...))`; a `Bidirectional` of any of these. `return_state` is that of the
    layer. Back again, the bits are the same.

    Raises a ValueError for other cells and merges, a Stack with dropout or with networks in it, heads, peepholes,
    coupled gates, clipping, a leak, and a learned initial state; of a `ConvLSTM` also for a padding other than that
    which keeps the size and none, a stride together with a dilation, and a recurrent dilation.
    """
    layer = _layer(network, return_sequences=True, return_state=return_state, dtype=_dtype(network))
    layer.build((None, None, *_input_shape(network)))
    _fill(layer, network)
    return layer


def _dtype(network: Layer) -> str:
    return str(network.input_type().dtype)


def _input_shape(network: Layer) -> tuple[int, ...]:
    """The shape of an input of one step; channels come last in Keras."""
    shape = network.input_type().shape
    return (*shape[1:], shape[0])


def _layer(network: Layer, **options: Any) -> Any:
    """The layer of a network, not built."""
    import keras

    if isinstance(network, Bidirectional):
        names = [name for name, merge in MERGES.items() if network.merge == merge]
        if not names or (isinstance(network.forward, ConvLSTM) and names == ["concat"]):
            raise ValueError(
                f"merge: expected {', '.join(map(describe, MERGES.values()))} for {TARGET}, of frames no concatenation"
                f", "
                f"got {describe(network.merge)}. Call to_keras for each direction, and merge their outputs yourself"
            )
        forward = _layer(network.forward, **options)
        backward = _layer(network.backward, go_backwards=True, **options)
        return keras.layers.Bidirectional(forward, merge_mode=names[0], backward_layer=backward, dtype=options["dtype"])
    if isinstance(network, ConvLSTM):
        return _frames(network, **options)
    return keras.layers.RNN(_cell(network, options["dtype"]), **options)


def _frames(cell: ConvLSTM, **options: Any) -> Any:
    """The layer of a convolutional cell, not built."""
    import keras

    check_plain(cell, TARGET)
    kinds = {1: keras.layers.ConvLSTM1D, 2: keras.layers.ConvLSTM2D, 3: keras.layers.ConvLSTM3D}
    rank, geometry = len(cell.space), cell.geometry
    if rank not in kinds:
        raise ValueError(f"space: expected up to 3 axes for {TARGET}, got {rank}. Use rnnjax itself to run it")
    if max(geometry.recurrent_dilation) > 1:
        raise ValueError(
            f"recurrent_dilation: expected 1 for {TARGET}, got {geometry.recurrent_dilation}. "
            "Use rnnjax itself to run it"
        )
    if max(geometry.stride) > 1 and max(geometry.dilation) > 1:
        raise ValueError(
            f"dilation: expected 1 for {TARGET} with stride={geometry.stride}, got {geometry.dilation}. "
            "Use rnnjax itself to run it"
        )
    *kernel, _, columns = cell.input_weight.shape
    return kinds[rank](
        columns // 4,
        tuple(kernel),
        strides=geometry.stride,
        padding=_padding(geometry, tuple(kernel)),
        data_format="channels_last",
        dilation_rate=geometry.dilation,
        use_bias=cell.bias is not None,
        **options,
    )


def _padding(geometry: Geometry, kernel: tuple[int, ...]) -> str:
    """The name of a padding in Keras."""
    if geometry.padding is None:
        return "same"
    if not any(geometry.padding):
        return "valid"
    keeping = tuple(dilation * (size // 2) for size, dilation in zip(kernel, geometry.dilation, strict=True))
    if geometry.padding == keeping and max(geometry.stride) == 1:
        return "same"
    raise ValueError(
        f"padding: expected None, 0, or {keeping} at a stride of 1, for {TARGET}, got {geometry.padding} at a stride "
        f"of {geometry.stride}. Pad the frames themselves, and build the cell with padding=0"
    )


def _cell(cell: Layer, dtype: str) -> Any:
    """The cell of Keras that this one is, not built."""
    import keras

    if isinstance(cell, Stack):
        if cell.dropout:
            raise ValueError(
                f"dropout: expected 0 for {TARGET}, whose StackedRNNCells drop nothing, got {cell.dropout}. "
                "Call to_keras for each layer, and put a keras.layers.Dropout between them"
            )
        return keras.layers.StackedRNNCells([_cell(layer, dtype) for layer in cell.layers], dtype=dtype)
    if not isinstance(cell, Elman | LSTM | GRU | ResetBeforeGRU):
        raise refuse(
            cell, TARGET, "Elman, LSTM, GRU, ResetBeforeGRU or ConvLSTM cells, in a Stack or a Bidirectional or alone"
        )
    check_plain(cell, TARGET)
    options = {"use_bias": _bias(cell) is not None, "dtype": dtype, "recurrent_initializer": "zeros"}
    if isinstance(cell, Elman):
        name = activation_name(cell, TARGET, tuple(ACTIVATIONS))
        return keras.layers.SimpleRNNCell(cell.hidden_size, activation=name, **options)
    if isinstance(cell, LSTM):
        return keras.layers.LSTMCell(cell.hidden_size, **options)
    return keras.layers.GRUCell(cell.hidden_size, reset_after=isinstance(cell, GRU), **options)


def _fill(layer: Any, network: Layer) -> None:
    """Assign the weights."""
    if isinstance(network, Bidirectional):
        _fill(layer.forward_layer, network.forward)
        _fill(layer.backward_layer, network.backward)
    elif isinstance(network, Stack):
        for cell, part in zip(layer.cell.cells, network.layers, strict=True):
            _fill_cell(cell, part)
    else:
        _fill_cell(layer.cell, network)


def _fill_cell(target: Any, cell: Any) -> None:
    """Assign the weights of one cell."""
    W, R, _ = weights_of(cell)
    if isinstance(cell, ResetBeforeGRU):
        R = join([R, read(cell.candidate_weight)])
    if isinstance(cell, GRU | ResetBeforeGRU):
        W, R = reorder(W, "rzh", "zrh"), reorder(R, "rzh", "zrh")
    target.kernel.assign(W)
    target.recurrent_kernel.assign(R)
    bias = _bias(cell)
    if bias is not None:
        target.bias.assign(bias)


def _bias(cell: Any) -> Weight | None:
    """The bias of a cell, as Keras has it."""
    if isinstance(cell, GRU):
        pair = bias_for_each_product(cell)
        return None if pair is None else reorder(np.stack(pair), "rzh", "zrh")
    b = weights_of(cell).b
    return reorder(b, "rzh", "zrh") if isinstance(cell, ResetBeforeGRU) and b is not None else b
