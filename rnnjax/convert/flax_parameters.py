"""The common part of linen and nnx: names of parameters, kernels [in, out] and biases, both directions."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from ..cell import describe
from ..cells.elman import Elman
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from ..networks.merge import concatenate
from .layout import Weight, place, read
from .parts import check_plain, refuse

Parameters = Mapping[str, Any]


def inner(params: Parameters) -> Parameters:
    """The parameters of a cell, out of the entries of the `RNN` and of the variables that hold it."""
    while set(params) in ({"params"}, {"cell"}):
        (params,) = params.values()
    return params


def has_directions(params: Parameters) -> bool:
    """Whether they are those of a `Bidirectional`."""
    return set(params) == {"forward_rnn", "backward_rnn"}


def dense(entry: Parameters) -> dict[str, Weight]:
    """The kernel and the bias of one dense layer."""
    return {name: read(weight) for name, weight in entry.items()}


def placed(kernel: Weight, bias: Weight | None = None) -> dict[str, Array]:
    """The parameters of one dense layer."""
    weights = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    return {name: place(name, weight) for name, weight in weights.items()}


def no_activation(activation: Callable[[Array], Array] | None) -> None:
    """Raise where an activation is given for a cell whose own are fixed."""
    if activation is not None:
        raise ValueError(
            f"activation: expected None for an LSTM or a GRU, got {describe(activation)}. "
            "Pass it for a SimpleCell alone"
        )


def known(cell: object, target: str) -> Elman | LSTM | GRU:
    """The cell, if Flax has it."""
    if not isinstance(cell, Elman | LSTM | GRU):
        raise refuse(cell, target, "an Elman, LSTM or GRU, or a Bidirectional of two of them")
    check_plain(cell, target)
    return cell


def both_directions(network: Bidirectional, target: str) -> tuple[Layer, Layer]:
    """The two layers, if their outputs are merged as in Flax."""
    if network.merge != concatenate:
        raise ValueError(
            f"merge: expected concatenate for {target}, got {describe(network.merge)}. "
            "Build the Bidirectional without merge="
        )
    return network.forward, network.backward
