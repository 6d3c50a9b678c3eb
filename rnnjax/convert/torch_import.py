"""Networks with the weights of torch's `nn.RNN`, `nn.LSTM` and `nn.GRU`."""
# pyright: reportMissingImports=false

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ..cell import AbstractCell
from ..checked import Checked
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.stack import Stack
from .layout import Weight, read
from .parts import (
    ACTIVATIONS,
    add_biases,
    elman,
    gru,
    lstm,
    number_of_gates,
    projected_lstm,
)

if TYPE_CHECKING:
    import torch

KEY = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")
KINDS = {1: "an RNN", 3: "a GRU", 4: "an LSTM"}
MODES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}

Arrays = dict[str, Weight]


def from_torch(
    source: Checked["torch.nn.Module | Mapping[str, object]"],
    *,
    activation: Callable[[Array], Array] | None = None,
    dropout: float | None = None,
) -> Layer:
    """The network with the weights of an `nn.RNN`, `nn.LSTM` or `nn.GRU`, in their dtype.

    source       the module, or its state dict: of tensors or of arrays, for which torch need not be installed
    activation   of an RNN whose state dict is given: `jnp.tanh`, the default, or `jax.nn.relu`
    dropout      between the layers of a state dict; a module has its own

    A layer in one direction is an `Elman`, `LSTM`, `GRU` or `ProjectedLSTM`, one in both directions a `Bidirectional`,
    several layers a `Stack`. For layer k, and k_reverse in `Bidirectional.backward`:

        input_weight      weight_ih_l{k}^T      [G H, I] there; gates i, f, g, o and r, z, n as here
        recurrent_weight  weight_hh_l{k}^T
        bias              bias_ih_l{k} + bias_hh_l{k}; of a GRU's n, bias_ih_l{k} alone
        candidate_bias    the last H of bias_hh_l{k}, of a GRU
        projection        weight_hr_l{k}^T      with proj_size

    Inputs of torch are [T, B, I], or [B, T, I] with `batch_first`; ours are [T, I], under `jax.vmap`. The lengths of a
    packed sequence are `unroll(..., length=)`. The state [layers * directions, B, H] is a tuple of states here.

    Raises a ValueError that names what is missing or superfluous, or does not fit.
    """
    if isinstance(source, Mapping):
        arrays = {name: _array(value) for name, value in source.items()}
        return _network(arrays, activation, 0.0 if dropout is None else dropout)
    mode = getattr(source, "mode", None)
    if mode not in ("LSTM", "GRU", *MODES):
        raise TypeError(
            f"source: expected an nn.RNN, nn.LSTM or nn.GRU, or a state dict, got {type(source).__name__}. "
            "Pass the recurrent module alone"
        )
    if activation is not None or dropout is not None:
        raise TypeError(
            f"activation, dropout: expected None with a module, which has its own, got {activation!r} and {dropout!r}. "
            "Pass them with a state dict alone"
        )
    module: Any = source
    arrays = {name: _array(value) for name, value in module.state_dict().items()}
    return _network(arrays, ACTIVATIONS[MODES[mode]] if mode in MODES else None, float(module.dropout))


def _array(value: Any) -> Weight:
    """A tensor or an array as an array; NumPy has no bfloat16 of its own, to which float32 is exact."""
    if not hasattr(value, "detach"):
        return read(value)
    tensor = value.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def _network(arrays: Arrays, activation: Callable[[Array], Array] | None, dropout: float) -> Layer:
    """The network of a state dict."""
    form = _form(arrays)
    layers = []
    for number in range(form.layers):
        cells = [_cell(arrays, f"_l{number}{suffix}", activation) for suffix in form.suffixes]
        layers.append(cells[0] if len(cells) == 1 else Bidirectional(*cells))
    return layers[0] if len(layers) == 1 else Stack(layers, dropout=dropout)


class Form(NamedTuple):
    """The layers and directions in the names of a state dict."""

    layers: int
    suffixes: tuple[str, ...]


def _form(arrays: Arrays) -> Form:
    """The layers and directions; raise unless the names are those of one module."""
    found = [KEY.fullmatch(name) for name in arrays]
    unknown = [name for name, match in zip(arrays, found, strict=True) if match is None]
    if unknown or not found:
        raise ValueError(
            f"source: expected the names weight_ih_l0, weight_hh_l0, ..., got {unknown or 'none'}. "
            "Pass the entries of the recurrent layer alone, without the prefix that a larger model puts before them"
        )
    matches = [match for match in found if match is not None]
    layers = 1 + max(int(match[2]) for match in matches)
    suffixes = ("", "_reverse") if any(match[3] for match in matches) else ("",)
    kinds = {"weight_ih", "weight_hh"} | {match[1] for match in matches}
    kinds |= {"bias_ih", "bias_hh"} if any(kind.startswith("bias") for kind in kinds) else set()
    expected = {f"{kind}_l{number}{suffix}" for kind in kinds for number in range(layers) for suffix in suffixes}
    missing = sorted(expected - set(arrays))
    if missing:
        raise ValueError(f"source: expected all weights of {layers} layers, got none named {missing}. Add them")
    return Form(layers, suffixes)


def _cell(arrays: Arrays, suffix: str, activation: Callable[[Array], Array] | None) -> AbstractCell:
    """The cell of one layer and direction."""
    W, R = arrays["weight_ih" + suffix].T, arrays["weight_hh" + suffix].T
    first, second = arrays.get("bias_ih" + suffix), arrays.get("bias_hh" + suffix)
    projection = arrays.get("weight_hr" + suffix)
    gates = number_of_gates(W, R.shape[0] if projection is None else projection.shape[-1], KINDS)
    if activation is not None and gates != 1:
        raise ValueError(f"activation: expected None for {KINDS[gates]}, got {activation!r}. Leave it out")
    if projection is not None and gates != 4:
        raise ValueError(
            f"source: expected weight_hr{suffix} in an LSTM alone, got {KINDS[gates]} with it. "
            "Pass the entries of one recurrent layer, and nothing else"
        )
    both = None if first is None or second is None else (first, second)
    if gates == 3:
        return gru(W, R, *((None, None) if both is None else add_biases(*both)))
    b = None if both is None else both[0] + both[1]
    if gates == 1:
        return elman(W, R, b, activation)
    return lstm(W, R, b) if projection is None else projected_lstm(W, R, b, projection.T)
