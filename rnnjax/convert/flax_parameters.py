"""The common part of linen and nnx: names of parameters, kernels [in, out] and biases, both directions."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
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
Module: TypeAlias = Any  # of linen or nnx, which are not imported here


def from_module(module: Module, flax: ModuleType, from_cell: Callable[[Module], Layer]) -> Layer:
    """The cell of a module of `flax`, which is linen or nnx, by `from_cell`; `Bidirectional` and `RNN` around it."""
    if isinstance(module, flax.Bidirectional):
        check_merge(module.merge_fn)
        directions = module.forward_rnn, module.backward_rnn
        return Bidirectional(*(from_module(each, flax, from_cell) for each in directions))
    if isinstance(module, flax.RNN):
        check_forward(module.reverse)
        return from_module(module.cell, flax, from_cell)
    kinds = flax.SimpleCell, flax.LSTMCell, flax.OptimizedLSTMCell, flax.GRUCell
    if not isinstance(module, kinds):
        raise TypeError(
            f"source: expected a SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell, got {type(module).__name__}. "
            "Pass the cell alone"
        )
    if all(type(module).__call__ is not kind.__call__ for kind in kinds):
        raise TypeError(
            f"source: expected a cell with the step of Flax, got {type(module).__name__}, which has its own. "
            "Write it as a cell of your own, as examples/new_cell.py does"
        )
    return from_cell(module)


def inner(params: Parameters) -> Parameters:
    """The parameters of a cell, out of the entries of the `RNN` and of the variables that hold it."""
    while set(params) in ({"params"}, {"cell"}):
        (params,) = params.values()
    return params


def has_directions(params: Parameters) -> bool:
    """Whether they are those of a `Bidirectional`."""
    return set(params) == {"forward_rnn", "backward_rnn"}


def dense(params: Parameters, name: str, *, biased: bool, optional: bool = False) -> dict[str, Weight]:
    """The kernel of the dense layer `name`, and its bias if it is one that has one; nothing else may be there."""
    entry = params[name]
    expected = {"kernel", "bias"} if biased else {"kernel"}
    allowed = [expected, {"kernel"}] if optional else [expected]
    if not isinstance(entry, Mapping) or set(entry) not in allowed:
        words = " and bias" if biased and not optional else " and perhaps bias" if biased else " and no bias"
        got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(
            f"source: expected {name} with kernel{words}, as Flax has it, got {got}. "
            "Pass the parameters of the cell itself, or write its step as examples/new_cell.py does"
        )
    return {each: read(weight) for each, weight in entry.items()}


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


def check_functions(activation_fn: object, gate_fn: object) -> None:
    """Raise unless an LSTM or a GRU of Flax has the activations of the paper."""
    pairs = {"activation_fn": (activation_fn, jnp.tanh), "gate_fn": (gate_fn, jax.nn.sigmoid)}
    for name, (given, expected) in pairs.items():
        if given is not expected:
            raise ValueError(
                f"{name}: expected {expected.__name__}, got {describe(given)}. "
                "Write the step as a cell of your own, as examples/new_cell.py does"
            )


def check_forward(reverse: bool) -> None:
    """Raise where an `RNN` runs backward by itself."""
    if reverse:
        raise ValueError(
            "reverse: expected False, got True. Pass the cell, and unroll it with reverse=True, or within Reversed"
        )


def check_residual(residual: bool, hidden: str) -> None:
    """Raise where a SimpleCell adds its state, which it does beside the kernel `hidden`."""
    if residual:
        raise ValueError(
            f"residual: expected False, got True. Add the identity to the kernel of {hidden}, and set it to False"
        )


def check_merge(merge: Callable[..., object]) -> None:
    """Raise unless this function concatenates the features of two outputs."""
    zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    with jax.ensure_compile_time_eval():
        merged = np.asarray(merge(zero, one))
    if merged.shape != (1, 2) or merged.tolist() != [[0, 1]]:
        raise ValueError(
            f"merge_fn: expected the concatenation of the features, got {describe(merge)}. "
            "Pass the two directions one by one, and merge them by Bidirectional(..., merge=)"
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
