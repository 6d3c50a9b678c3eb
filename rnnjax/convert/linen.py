"""Weights of Flax linen's cells: SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from ..arrays import PyTree
from ..cells.elman import Elman
from ..cells.lstm import LSTM
from ..checked import Checked
from ..network import Layer
from ..networks.bidirectional import Bidirectional
from .flax_parameters import both_directions, dense, has_directions, inner, known, no_activation, placed
from .layout import absent, by_letter, join
from .parts import biases_of, elman, gru, lstm, weights_of

TARGET = "Flax linen"


def from_linen(params: Checked[Mapping[str, PyTree]], *, activation: Callable[[Array], Array] | None = None) -> Layer:
    """The cell with the parameters of one of linen, `cell.init(...)`, with or without the entry "params" around them.

    SimpleCell                     an `Elman`: W is i, R is h. `activation` is its `activation_fn`: by default tanh
    LSTMCell, OptimizedLSTMCell    an `LSTM`: W is [ii, if, ig, io], R is [hi, hf, hg, ho], whose biases are b
    GRUCell                        a `GRU`: W is [ir, iz, in], whose biases are b, R is [hr, hz, hn]; the bias of hn is
                                   `candidate_bias`

    `nn.RNN(cell)` is read as its cell, and an `nn.Bidirectional` of two of them as a `Bidirectional`. The carry of an
    LSTM is (c, h) there and (h, c) here. Parameters do not say other `gate_fn` and `activation_fn`, nor the `residual`
    of a SimpleCell (whose R lacks an identity then): such cells are not for this function.

    Raises a ValueError for the parameters of anything else.
    """
    params = inner(params)
    if has_directions(params):
        forward, backward = params["forward_rnn"], params["backward_rnn"]
        return Bidirectional(from_linen(forward, activation=activation), from_linen(backward, activation=activation))
    gates = {name[1:] for name in params if len(name) == 2}
    names = {prefix + gate for prefix in "ih" for gate in gates}
    if set(params) == {"i", "h"}:
        i, h = dense(params["i"]), dense(params["h"])
        return elman(i["kernel"], h["kernel"], i.get("bias"), activation)
    if set(params) != names or gates not in ({*"ifgo"}, {*"rzn"}):
        raise ValueError(
            "params: expected the parameters of a SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell, got the names "
            f"{sorted(params)}. Pass those of one cell"
        )
    no_activation(activation)
    order = "ifgo" if len(gates) == 4 else "rzn"
    inputs, hidden = ([dense(params[prefix + gate]) for gate in order] for prefix in "ih")
    W, R = join([each["kernel"] for each in inputs]), join([each["kernel"] for each in hidden])
    if order == "ifgo":
        return lstm(W, R, join([each["bias"] for each in hidden]))
    return gru(W, R, join([each["bias"] for each in inputs]), hidden[2]["bias"])


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
