"""Modules of torch with the weights of a network."""
# pyright: reportMissingImports=false

from typing import TYPE_CHECKING, Any, NamedTuple

from ..cell import AbstractCell, describe
from ..cells.elman import Elman
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.projected_lstm import ProjectedLSTM
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.merge import concatenate
from ..networks.stack import Stack
from .layout import Weight, absent, read
from .parts import activation_name, bias_for_each_product, check_plain, refuse, weights_of

if TYPE_CHECKING:
    import torch

TARGET = "torch"
MODULES = {Elman: "RNN", GRU: "GRU", LSTM: "LSTM", ProjectedLSTM: "LSTM"}

Arrays = dict[str, Weight]


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

    rows: list[list[Any]] = [
        _directions(layer) for layer in (network.layers if isinstance(network, Stack) else (network,))
    ]
    shared = _shared([_module(cell, len(row)) for row in rows for cell in row])
    options: dict[str, Any] = {} if shared.nonlinearity is None else {"nonlinearity": shared.nonlinearity}
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
    """The options of a module, which hold for all of its layers and directions."""

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


def _known(cell: Layer) -> Elman | GRU | LSTM | ProjectedLSTM:
    """The cell, if torch has it."""
    if not isinstance(cell, Elman | GRU | LSTM | ProjectedLSTM):
        raise refuse(cell, TARGET, "an Elman, LSTM, GRU or ProjectedLSTM in each layer and direction")
    check_plain(cell, TARGET)
    return cell


def _module(cell: Any, directions: int) -> Module:
    """The options of the module of this cell."""
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
    """The options that all cells share; raise if they differ."""
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
