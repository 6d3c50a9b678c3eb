"""Weights of Flax linen's cells: SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell."""
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Array

from ..arrays import PyTree
from ..cells.elman import Elman
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
    placed,
)
from .layout import absent, by_letter, join
from .parts import biases_of, check_no_activation, elman, gru, lstm, weights_of

if TYPE_CHECKING:
    from flax import linen as nn

TARGET = "Flax linen"


def from_linen(
    source: Checked["nn.Module | Mapping[str, PyTree]"], *, activation: Callable[[Array], Array] | None = None
) -> Layer:
    """The cell with the parameters of one of linen.

    source       its parameters, `cell.init(...)`, with or without the entry "params" around them; or the cell itself,
                 bound to them: `cell.bind({"params": ...})`
    activation   of a SimpleCell whose parameters are given: by default tanh; a module has its own

    SimpleCell                     an `Elman`: W is i, R is h
    LSTMCell, OptimizedLSTMCell    an `LSTM`: W is [ii, if, ig, io], R is [hi, hf, hg, ho], whose biases are b
    GRUCell                        a `GRU`: W is [ir, iz, in], whose biases are b, R is [hr, hz, hn]; the bias of hn is
                                   `candidate_bias`

    `nn.RNN(cell)` is read as its cell, and an `nn.Bidirectional` of two of them as a `Bidirectional` that concatenates.
    The carry of an LSTM is (c, h) there and (h, c) here. Parameters do not say other `gate_fn` and `activation_fn`, the
    `merge_fn` of a Bidirectional, nor the `residual` of a SimpleCell (whose R lacks an identity then). Such modules are
    refused if they are given themselves, and must not be given as parameters.

    Raises a ValueError for anything else, a bias or another parameter where these cells have none included.
    """
    if isinstance(source, Mapping):
        return _from_parameters(source, activation)
    check_no_activation(activation, "module", "parameters of a SimpleCell")
    from flax import linen as nn

    return from_module(source, nn, _from_cell)


def _from_cell(module: Any) -> Layer:
    from flax import linen as nn

    if module.scope is None:
        raise ValueError(
            "source: expected a module that is bound to its parameters, got one that is not. "
            "Pass module.bind(variables), or the parameters"
        )
    if isinstance(module, nn.SimpleCell):
        check_residual(module.residual, "h")
        return _from_parameters(module.variables, module.activation_fn)
    check_functions(module.activation_fn, module.gate_fn)
    return _from_parameters(module.variables, None)


def _from_parameters(params: Mapping[str, Any], activation: Callable[[Array], Array] | None) -> Layer:
    params = inner(params)
    if has_directions(params):
        return Bidirectional(*(_from_parameters(params[name], activation) for name in ("forward_rnn", "backward_rnn")))
    if set(params) == {"i", "h"}:
        i, h = dense(params, "i", biased=True, optional=True), dense(params, "h", biased=False)
        return elman(i["kernel"], h["kernel"], i.get("bias"), activation)
    order = next((gates for gates in ("ifgo", "rzn") if set(params) == _names(gates)), None)
    if order is None:
        raise ValueError(
            "source: expected the parameters of a SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell, got the names "
            f"{sorted(params)}. Pass those of one cell"
        )
    no_activation(activation)
    biased = {f"h{gate}" for gate in order} if order == "ifgo" else {"ir", "iz", "in", "hn"}
    entries = {name: dense(params, name, biased=name in biased) for name in params}
    inputs, hidden = ([entries[prefix + gate] for gate in order] for prefix in "ih")
    W, R = join([each["kernel"] for each in inputs]), join([each["kernel"] for each in hidden])
    if order == "ifgo":
        return lstm(W, R, join([each["bias"] for each in hidden]))
    return gru(W, R, join([each["bias"] for each in inputs]), hidden[2]["bias"])


def _names(gates: str) -> set[str]:
    """The dense layers of a cell with these gates."""
    return {prefix + gate for prefix in "ih" for gate in gates}


def to_linen(network: Layer) -> dict[str, Any]:
    """The parameters of the cell of linen that is this one: the inverse of `from_linen`, bit for bit.

    An `Elman` is a SimpleCell of the same activation, an `LSTM` an LSTMCell or OptimizedLSTMCell, which have the same
    parameters, and a `GRU` a GRUCell. All have biases: one that is absent becomes zero. A `Bidirectional` that
    concatenates is an `nn.Bidirectional(nn.RNN(cell), nn.RNN(cell))`. Write `{"params": to_linen(cell)}` for `apply`.

    Raises a ValueError for other cells, heads, peepholes, coupled gates, clipping, a leak, a learned initial state.
    """
    if isinstance(network, Bidirectional):
        forward, backward = both_directions(network, TARGET)
        return {"forward_rnn": {"cell": to_linen(forward)}, "backward_rnn": {"cell": to_linen(backward)}}
    cell = known(network, TARGET)
    W, R, b = weights_of(cell)
    if isinstance(cell, Elman):
        return {"i": placed(W, absent(W[0]) if b is None else b), "h": placed(R)}
    order = "ifgo" if isinstance(cell, LSTM) else "rzn"
    Ws, Rs = by_letter(W, order), by_letter(R, order)
    if isinstance(cell, LSTM):
        bs = by_letter(absent(W[0]) if b is None else b, order)
        inputs = {f"i{gate}": placed(Ws[gate]) for gate in order}
        return inputs | {f"h{gate}": placed(Rs[gate], bs[gate]) for gate in order}
    b, d = biases_of(cell) or (absent(W[0]), absent(R[:, 0]))
    bs = by_letter(b, order)
    inputs = {f"i{gate}": placed(Ws[gate], bs[gate]) for gate in order}
    return inputs | {f"h{gate}": placed(Rs[gate], d if gate == "n" else None) for gate in order}
