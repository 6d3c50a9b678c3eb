"""Weights of Flax nnx's cells: SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Array

from ..arrays import PyTree
from ..cells.elman import Elman
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..checked import Checked
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from .flax_parameters import (
    both_directions,
    check_functions,
    check_residual,
    dense,
    from_module,
    has_directions,
    inner,
    known,
    no_activation,
)
from .layout import Weight, absent, place
from .linen import from_linen
from .parts import check_no_activation, elman, gru, lstm, number_of_gates, weights_of

if TYPE_CHECKING:
    from flax import nnx

TARGET = "Flax nnx"
KINDS = {1: "a SimpleCell", 3: "a GRUCell", 4: "an OptimizedLSTMCell"}


def from_nnx(
    source: Checked["nnx.Module | Mapping[str, PyTree]"], *, activation: Callable[[Array], Array] | None = None
) -> Layer:
    """The cell with the parameters of one of nnx.

    source       the cell, or its parameters, `nnx.to_pure_dict(nnx.state(cell, nnx.Param))`
    activation   of a SimpleCell whose parameters are given: by default tanh; a module has its own

    SimpleCell           an `Elman`: W and b are dense_i, R is dense_h
    OptimizedLSTMCell    an `LSTM`: W is dense_i, R and b are dense_h; gates i, f, g, o as here
    LSTMCell             an `LSTM`, as `from_linen` reads it
    GRUCell              a `GRU` without a bias inside the reset: W and b are dense_i, R is dense_h; gates r, z, n

    `nnx.RNN(cell)` is read as its cell, and an `nnx.Bidirectional` of two of them as a `Bidirectional`. The carry of an
    LSTM is (c, h) there and (h, c) here.

    Raises a ValueError for anything else, a bias or another parameter where these have none included, and for a module
    with other activations, a residual, or a `merge_fn` that does not concatenate, which parameters do not say.
    """
    if isinstance(source, Mapping):
        return _from_parameters(source, activation)
    check_no_activation(activation, "module", "parameters of a SimpleCell")
    from flax import nnx

    return from_module(source, nnx, _from_cell)


def _from_cell(module: Any) -> Layer:
    from flax import nnx

    params = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    if isinstance(module, nnx.SimpleCell):
        check_residual(module.residual, "dense_h")
        return _from_parameters(params, module.activation_fn)
    check_functions(module.activation_fn, module.gate_fn)
    return _from_parameters(params, None)


def _from_parameters(params: Mapping[str, Any], activation: Callable[[Array], Array] | None) -> Layer:
    params = inner(params)
    if has_directions(params):
        directions = (_from_parameters(params[name], activation) for name in ("forward_rnn", "backward_rnn"))
        return Bidirectional(*directions)
    if set(params) != {"dense_i", "dense_h"}:
        renamed = {"if_": "if"}  # a keyword of Python
        return from_linen({renamed.get(name, name): entry for name, entry in params.items()}, activation=activation)
    gates = number_of_gates(_kernel(params, "dense_i"), _kernel(params, "dense_h").shape[0], KINDS)
    biased = "dense_h" if gates == 4 else "dense_i"
    i, h = (dense(params, name, biased=name == biased, optional=True) for name in ("dense_i", "dense_h"))
    if gates == 1:
        return elman(i["kernel"], h["kernel"], i.get("bias"), activation)
    no_activation(activation)
    if gates == 4:
        return lstm(i["kernel"], h["kernel"], h.get("bias"))
    return gru(i["kernel"], h["kernel"], i.get("bias"), None)


def _kernel(params: Mapping[str, Any], name: str) -> Weight:
    """The kernel of a dense layer that may have a bias."""
    biased = isinstance(params[name], Mapping) and "bias" in params[name]
    return dense(params, name, biased=biased)["kernel"]


def to_nnx(network: Layer) -> "nnx.Module":
    """The module of nnx with the weights of a network: the inverse of `from_nnx`, bit for bit.

    An `Elman` is an nnx.SimpleCell of the same activation, an `LSTM` an nnx.OptimizedLSTMCell, a `GRU` an nnx.GRUCell,
    and a `Bidirectional` that concatenates an nnx.Bidirectional. All have a bias: one that is absent becomes zero.

    Raises a ValueError for a GRU with a bias inside the reset, which nnx.GRUCell has not (linen's has it), for other
    cells, heads, peepholes, coupled gates, clipping, a leak, and a learned initial state.
    """
    from flax import nnx

    if isinstance(network, Bidirectional):
        cells: list[Any] = [to_nnx(layer) for layer in both_directions(network, TARGET)]
        return nnx.Bidirectional(*map(nnx.RNN, cells))
    cell = known(network, TARGET)
    if isinstance(cell, GRU) and cell.candidate_bias is not None:
        raise ValueError(
            f"candidate_bias: expected None for {TARGET}, whose GRUCell has no bias inside the reset, got one. "
            "Use to_linen, or set it to None if it is zero"
        )
    W, R, b = weights_of(cell)
    b = absent(W[0]) if b is None else b
    sizes, dtype = (W.shape[0], R.shape[0]), cell.dtype
    options = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    if isinstance(cell, Elman):
        return _filled(nnx.SimpleCell(*sizes, activation_fn=cell.activation, **options), W, R, "dense_i", b)
    if isinstance(cell, LSTM):
        return _filled(nnx.OptimizedLSTMCell(*sizes, **options), W, R, "dense_h", b)
    return _filled(nnx.GRUCell(*sizes, **options), W, R, "dense_i", b)


def _filled(module: Any, W: Weight, R: Weight, biased: str, b: Weight) -> "nnx.Module":
    """A cell of nnx with these weights; the bias is in the dense layer `biased`."""
    module.dense_i.kernel.set_value(place("kernel", W))
    module.dense_h.kernel.set_value(place("kernel", R))
    getattr(module, biased).bias.set_value(place("bias", b))
    return module
