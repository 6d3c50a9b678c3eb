"""Weights of torch's `nn.RNN`, `nn.LSTM` and `nn.GRU`: deep, in both directions, with a projection, without biases."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ..cell import AbstractCell, describe
from ..cells.elman import Elman
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.projected_lstm import ProjectedLSTM
from ..checked import Checked
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.merge import concatenate
from ..networks.stack import Stack
from .layout import Weight, absent, read
from .parts import (
    ACTIVATIONS,
    activation_name,
    add_biases,
    bias_for_each_product,
    check_plain,
    elman,
    gru,
    lstm,
    number_of_gates,
    projected_lstm,
    refuse,
    weights_of,
)

if TYPE_CHECKING:
    import torch

KEY = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")
KINDS = {1: "an RNN", 3: "a GRU", 4: "an LSTM"}
MODES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
TARGET = "torch"
MODULES = {Elman: "RNN", GRU: "GRU", LSTM: "LSTM", ProjectedLSTM: "LSTM"}

Arrays = dict[str, Weight]


def from_torch(
    source: Checked["torch.nn.Module | Mapping[str, Any]"],
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
    arrays = {name: _array(value) for name, value in source.state_dict().items()}
    return _network(arrays, ACTIVATIONS[MODES[mode]] if mode in MODES else None, source.dropout)


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
    """What the names of a state dict say."""

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
    both = None if first is None or second is None else (first, second)
    if gates == 3:
        return gru(W, R, *((None, None) if both is None else add_biases(*both)))
    b = None if both is None else both[0] + both[1]
    if gates == 1:
        return elman(W, R, b, activation)
    return lstm(W, R, b) if projection is None else projected_lstm(W, R, b, projection.T)


def to_torch(network: Layer) -> "torch.nn.RNNBase":
    """The module of torch with the weights of a network: what `from_torch` makes, or is like.

    An `Elman` of tanh or relu, an `LSTM`, a `GRU`, a `ProjectedLSTM`, a `Bidirectional` of two of them that
    concatenates, or a `Stack` of such layers, all of one kind and size. The bias is bias_ih, but for a GRU's inner one,
    and bias_hh is zero: -0.0, which changes no bit of a sum. So `from_torch(to_torch(network))` has the same bits.
    torch trains both biases, their sum twice as fast. A module takes [T, B, I]: set `batch_first` if you want.

    Raises a ValueError for what torch has not: other activations and cells, heads, peepholes, coupled gates, clipping,
    learned initial states, other merges, layers of different kinds and sizes.
    """
    import torch

    rows = [_directions(layer) for layer in (network.layers if isinstance(network, Stack) else (network,))]
    shared = _shared([_module(cell, len(row)) for row in rows for cell in row])
    options = {} if shared.nonlinearity is None else {"nonlinearity": shared.nonlinearity}
    if shared.proj_size:
        options["proj_size"] = shared.proj_size
    module = getattr(torch.nn, shared.kind)(
        rows[0][0].input_weight.shape[0],
        shared.hidden_size,
        num_layers=len(rows),
        bias=shared.bias,
        dropout=network.dropout if isinstance(network, Stack) and len(rows) > 1 else 0.0,
        bidirectional=shared.directions == 2,
        dtype=getattr(torch, shared.dtype),
        device="meta",  # where nothing is drawn
        **options,
    ).to_empty(device="cpu")
    state = {}
    for number, row in enumerate(rows):
        for cell, suffix in zip(row, (f"_l{number}", f"_l{number}_reverse"), strict=False):
            for name, weight in _weights(cell).items():
                wide = weight.astype("float32") if shared.dtype == "bfloat16" else weight
                state[name + suffix] = torch.tensor(wide).to(getattr(torch, shared.dtype))
    module.load_state_dict(state)
    return module


class Module(NamedTuple):
    """What all layers and directions of one module have in common."""

    kind: str
    nonlinearity: str | None
    hidden_size: int
    proj_size: int
    bias: bool
    dtype: str
    directions: int


def _directions(layer: Layer) -> list[AbstractCell]:
    """The cells of a layer, one for each direction."""
    if not isinstance(layer, Bidirectional):
        return [_known(layer)]
    if layer.merge != concatenate:
        raise ValueError(
            f"merge: expected concatenate for {TARGET}, got {describe(layer.merge)}. "
            "Give the two directions to to_torch one by one, and merge their outputs yourself"
        )
    return [_known(layer.forward), _known(layer.backward)]


def _known(cell: Layer) -> AbstractCell:
    """The cell, if torch has it."""
    if not isinstance(cell, Elman | GRU | LSTM | ProjectedLSTM):
        raise refuse(cell, TARGET, "an Elman, LSTM, GRU or ProjectedLSTM in each layer and direction")
    check_plain(cell, TARGET)
    return cell


def _module(cell: Any, directions: int) -> Module:
    """What the module of this cell has to be."""
    name = activation_name(cell, TARGET, ("tanh", "relu")) if isinstance(cell, Elman) else None
    projected = cell.projection.shape[-1] if isinstance(cell, ProjectedLSTM) else 0
    if projected >= cell.hidden_size:
        raise ValueError(
            f"projected_size: expected less than the {cell.hidden_size} hidden units for {TARGET}, got {projected}. "
            "Use rnnjax itself to run it"
        )
    bias = bool(_biases(cell))
    return Module(MODULES[type(cell)], name, cell.hidden_size, projected, bias, str(cell.dtype), directions)


def _shared(modules: list[Module]) -> Module:
    """What they all are."""
    if len(set(modules)) != 1:
        raise ValueError(
            f"network: expected layers and directions of one kind and size for {TARGET}, got "
            f"{', '.join(map(str, dict.fromkeys(modules)))}. Call to_torch for each layer"
        )
    return modules[0]


def _weights(cell: Any) -> Arrays:
    """The weights of a cell by the names of torch."""
    W, R, _ = weights_of(cell)
    projection = {"weight_hr": read(cell.projection).T} if isinstance(cell, ProjectedLSTM) else {}
    return {"weight_ih": W.T, "weight_hh": R.T, **projection, **_biases(cell)}


def _biases(cell: Any) -> Arrays:
    """Both biases, or none."""
    if not isinstance(cell, GRU):
        b = weights_of(cell).b
        return {} if b is None else {"bias_ih": b, "bias_hh": absent(b)}
    return dict(zip(("bias_ih", "bias_hh"), bias_for_each_product(cell) or (), strict=False))
