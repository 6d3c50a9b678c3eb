"""Weights of Haiku's `hk.VanillaRNN`, `hk.LSTM` and `hk.GRU`."""

from collections.abc import Mapping

from jaxtyping import Array

from ..cell import AbstractCell
from ..cells.elman import Elman
from ..cells.lstm import LSTM
from ..cells.reset_before_gru import ResetBeforeGRU
from ..checked import Checked
from .layout import Weight, absent, by_letter, join, place, read, reorder
from .parts import ACTIVATIONS, activation_name, check_plain, elman, lstm, refuse, reset_before_gru, weights_of

TARGET = "Haiku"
Parameters = dict[str, dict[str, Array]]


def from_haiku(params: Checked[Mapping[str, Mapping[str, object]]]) -> Elman | LSTM | ResetBeforeGRU:
    """The cell with the parameters of one module of Haiku, `{"lstm/linear": {"w": ..., "b": ...}}`.

    hk.VanillaRNN   an `Elman` of relu; its two biases are added
    hk.LSTM         one matrix [I + H, 4 H] of gates i, g, f, o, and a 1 that is added to f: here it is in the bias
    hk.GRU          a `ResetBeforeGRU`; gates z, r, a, where z is the share of what is new, 1 - z here, so that its
                    weights and its bias change their signs

    Only names and shapes tell the modules apart, and the prefix of a name does not matter. Take the entries of one
    module from the parameters of a larger model: `{name: w for name, w in params.items() if "lstm_1/" in name}`.
    Raises a ValueError for any others.
    """
    entries = {name: {each: read(w) for each, w in entry.items()} for name, entry in params.items()}
    form = sorted((name.rpartition("/")[2], *sorted(entry)) for name, entry in entries.items())
    modules = {name.rpartition("/")[2]: entry for name, entry in entries.items()}
    match form:
        case [(_, "b", "w_h", "w_i")]:
            (entry,) = modules.values()
            return _gru(entry["w_i"], entry["w_h"], entry["b"])
        case [("linear", "b", "w")]:
            return _lstm(**modules["linear"])
        case [("linear", "b", "w"), ("linear_1", "w") | ("linear_1", "b", "w")] if _of_one_module(entries):
            return _vanilla(modules["linear"], modules["linear_1"])
    raise ValueError(
        "params: expected the parameters of one hk.VanillaRNN, hk.LSTM or hk.GRU, got "
        f"{ {name: sorted(entry) for name, entry in params.items()} }. Pass those of one module at a time"
    )


def _of_one_module(entries: Mapping[str, object]) -> bool:
    """Whether the names differ in their last part alone."""
    return len({name.rpartition("/")[0] for name in entries}) == 1


def _vanilla(inputs: dict[str, Weight], hidden: dict[str, Weight]) -> Elman:
    bias = inputs["b"] + hidden["b"] if "b" in hidden else inputs["b"]
    return elman(inputs["w"], hidden["w"], bias, ACTIVATIONS["relu"])


def _lstm(w: Weight, b: Weight) -> LSTM:
    w, b = reorder(w, "igfo", "ifgo"), _add_to_forget(reorder(b, "igfo", "ifgo"), 1)
    inputs = w.shape[0] - w.shape[1] // 4
    return lstm(w[:inputs], w[inputs:], b)


def _gru(w_i: Weight, w_h: Weight, b: Weight) -> ResetBeforeGRU:
    W, R, b = (reorder(_negate_z(each, "zrn"), "zrn", "rzn") for each in (w_i, w_h, b))
    return reset_before_gru(W, R, b)


def to_haiku(cell: AbstractCell) -> Parameters:
    """The parameters of the module of Haiku that is this cell, under the module's default name.

    An `Elman` of relu is an hk.VanillaRNN, whose second bias is zero (-0.0, which changes no bit of a sum); an `LSTM`
    an hk.LSTM, and a `ResetBeforeGRU` an hk.GRU. All have biases: one that is absent becomes zero. Back again, the bits
    are the same, but for a forget bias below 1/2 or above 2: less 1, it is rounded.

    Raises a ValueError for any other cell (`GRU` resets after the product, which hk.GRU does not), and for heads,
    peepholes, coupled gates, clipping, a leak, and a learned initial state.
    """
    if not isinstance(cell, Elman | LSTM | ResetBeforeGRU):
        raise refuse(cell, TARGET, "an Elman of relu, an LSTM, or a ResetBeforeGRU")
    check_plain(cell, TARGET)
    W, R, b = weights_of(cell)
    b = absent(W[0]) if b is None else b
    if isinstance(cell, Elman):
        activation_name(cell, TARGET, ("relu",))
        return _placed({"vanilla_rnn/linear": {"w": W, "b": b}, "vanilla_rnn/linear_1": {"w": R, "b": absent(b)}})
    if isinstance(cell, LSTM):
        w, b = _stack(W, R), reorder(_add_to_forget(b, -1), "ifgo", "igfo")
        return _placed({"lstm/linear": {"w": reorder(w, "ifgo", "igfo"), "b": b}})
    R = join([R, read(cell.candidate_weight)])
    W, R, b = (_negate_z(reorder(each, "rzn", "zrn"), "zrn") for each in (W, R, b))
    return _placed({"gru": {"w_i": W, "w_h": R, "b": b}})


def _stack(above: Weight, below: Weight) -> Weight:
    """One matrix above the other."""
    return join([above.T, below.T]).T


def _add_to_forget(bias: Weight, number: int) -> Weight:
    """A bias of gates i, f, g, o with `number` added to that of f."""
    blocks = by_letter(bias, "ifgo")
    return join([blocks["i"], blocks["f"] + bias.dtype.type(number), blocks["g"], blocks["o"]])


def _negate_z(weight: Weight, gates: str) -> Weight:
    """A weight or bias with the block of z negated."""
    return join([-block if gate == "z" else block for gate, block in by_letter(weight, gates).items()])


def _placed(params: dict[str, dict[str, Weight]]) -> Parameters:
    return {module: {name: place(name, w) for name, w in entry.items()} for module, entry in params.items()}
