"""Cells built from weights of another library, and what a cell may not have on the way there."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..cell import AbstractCell, describe
from ..cells.conv_lstm import ConvLSTM
from ..cells.elman import Elman, linear
from ..cells.geometry import Geometry
from ..cells.gru import GRU
from ..cells.lstm import LSTM
from ..cells.projected_lstm import ProjectedLSTM
from ..cells.reset_before_gru import ResetBeforeGRU
from ..networks.bidirectional import SharedBidirectional
from ..weights import check_weights
from .layout import Weight, absent, join, one_dtype, place, read, reorder

Cell = TypeVar("Cell", bound=AbstractCell)
Convertible: TypeAlias = Elman | LSTM | ProjectedLSTM | GRU | ResetBeforeGRU | ConvLSTM

STANDARD = {"activation": jnp.tanh, "output_activation": jnp.tanh, "gate_activation": jax.nn.sigmoid}  # of gated cells
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "linear": linear,
}


def elman(W: Weight, R: Weight, b: Weight | None, activation: Callable[[Array], Array] | None) -> Elman:
    """The Elman cell of these weights; tanh, unless an activation is given."""
    make = partial(Elman, *_sizes(W, 1), activation=activation or jnp.tanh)
    return _with_fields(make, {"input_weight": W, "recurrent_weight": R, "bias": b})


def lstm(W: Weight, R: Weight, b: Weight | None) -> LSTM:
    """The LSTM of these weights."""
    return _with_fields(partial(LSTM, *_sizes(W, 4)), {"input_weight": W, "recurrent_weight": R, "bias": b})


def projected_lstm(W: Weight, R: Weight, b: Weight | None, projection: Weight) -> ProjectedLSTM:
    """The projected LSTM of these weights."""
    make = partial(ProjectedLSTM, *_sizes(W, 4), projected_size=projection.shape[-1])
    fields = {"input_weight": W, "recurrent_weight": R, "bias": b, "projection": projection}
    return _with_fields(make, fields)


def gru(W: Weight, R: Weight, b: Weight | None, candidate_bias: Weight | None) -> GRU:
    """The GRU of these weights, reset after the product."""
    fields = {"input_weight": W, "recurrent_weight": R, "bias": b, "candidate_bias": candidate_bias}
    return _with_fields(partial(GRU, *_sizes(W, 3)), fields)


def reset_before_gru(W: Weight, R: Weight, b: Weight | None) -> ResetBeforeGRU:
    """The GRU of these weights, reset before the product; R is that of r, z and n, [H, 3 H]."""
    columns = 2 * (R.shape[-1] // 3)
    fields = {
        "input_weight": W,
        "recurrent_weight": R[:, :columns],
        "candidate_weight": R[:, columns:],
        "bias": b,
    }
    return _with_fields(partial(ResetBeforeGRU, *_sizes(W, 3)), fields)


def conv_lstm(W: Weight, R: Weight, b: Weight | None, geometry: Geometry) -> ConvLSTM:
    """The convolutional LSTM of these kernels, over frames of this geometry."""
    options = {field.name: getattr(geometry, field.name) for field in fields(geometry)}
    make = partial(ConvLSTM, *_sizes(W, 4), kernel_size=W.shape[:-2], **options)
    return _with_fields(make, {"input_weight": W, "recurrent_weight": R, "bias": b})


def number_of_gates(W: Weight, hidden_size: int, kinds: Mapping[int, str]) -> int:
    """How many gates stand side by side in W; raise unless it is a number of `kinds`."""
    gates, rest = divmod(W.shape[-1], hidden_size)
    if rest or gates not in kinds:
        expected = ", or ".join(f"{gates * hidden_size} for {name}" for gates, name in kinds.items())
        raise ValueError(
            f"weights: expected {expected}, with {hidden_size} hidden units, got {W.shape[-1]} columns of gates. "
            "Pass all the weights of one layer, and nothing else"
        )
    return gates


def _sizes(W: Weight, gates: int) -> tuple[int, int]:
    """Input size and hidden size."""
    return W.shape[-2], max(1, W.shape[-1] // gates)


def _with_fields(make: Callable[..., Cell], weights: dict[str, Weight | None]) -> Cell:
    """The cell that `make` would draw, with these weights in place of those drawn: nothing is drawn."""
    given = {name: weight for name, weight in weights.items() if weight is not None}
    make = partial(make, dtype=one_dtype(given))
    placed = [None if weight is None else place(name, weight) for name, weight in weights.items()]
    cell = eqx.filter_eval_shape(lambda key: make(key=key), jax.eval_shape(jax.random.key, 0))
    cell = eqx.tree_at(lambda cell: [getattr(cell, name) for name in weights], cell, placed)
    check_weights(cell)
    return cell


class Weights(NamedTuple):
    """The weights that every cell has, read."""

    W: Weight
    R: Weight
    b: Weight | None


def weights_of(cell: Convertible) -> Weights:
    """The weights of one of our cells."""
    return Weights(read(cell.input_weight), read(cell.recurrent_weight), None if cell.bias is None else read(cell.bias))


def biases_of(cell: GRU) -> tuple[Weight, Weight] | None:
    """b and the candidate's bias, None if it has neither; zeros stand for one that is absent."""
    W, R, b = weights_of(cell)
    if b is None and cell.candidate_bias is None:
        return None
    d = absent(R[:, 0]) if cell.candidate_bias is None else read(cell.candidate_bias)
    return absent(W[0]) if b is None else b, d


def bias_for_each_product(cell: GRU) -> tuple[Weight, Weight] | None:
    """The biases of both products, gates r, z, n; all that can be is in the first one."""
    both = biases_of(cell)
    if both is None:
        return None
    b, d = both
    return b, join([absent(reorder(b, "rzn", "rz")), d])


def add_biases(first: Weight, second: Weight) -> tuple[Weight, Weight]:
    """b and the candidate's bias, of a GRU with a bias for each product, gates r, z, n."""
    outside = reorder(first, "rzn", "rz") + reorder(second, "rzn", "rz")
    return join([outside, reorder(first, "rzn", "n")]), reorder(second, "rzn", "n")


def check_no_activation(activation: object, layer: str, arrays: str) -> None:
    """Raise where an activation is given beside a layer, which has its own."""
    if activation is not None:
        raise TypeError(
            f"activation: expected None with a {layer}, which has its own, got {activation!r}. "
            f"Pass it with the {arrays} alone"
        )


def refuse(cell: object, target: str, expected: str) -> ValueError:
    """The error that a cell or network has no counterpart."""
    remedy = "Use rnnjax itself to run it"
    if isinstance(cell, SharedBidirectional):
        remedy = "Pass Bidirectional(layer, layer), which gives the same outputs"
    return ValueError(f"network: expected {expected} for {target}, got {describe(cell)}. {remedy}")


def check_plain(cell: Convertible, target: str) -> None:
    """Raise where a cell has an option that no other library has, or other equations, as a user's subclass may."""
    if type(cell) not in get_args(Convertible):
        raise refuse(cell, target, "a cell of rnnjax itself, and no subclass of one,")
    if cell.recurrent_weight.ndim == 3 and not isinstance(cell, ConvLSTM):
        heads, *_ = cell.recurrent_weight.shape
        raise ValueError(
            f"recurrent_weight: expected one dense matrix [H, G H] for {target}, got {heads} heads. "
            "Build the cell with heads=1"
        )
    if cell.initial_state is not None:
        raise ValueError(
            f"initial_state: expected None for {target}, which does not learn it, got one. "
            "Pass it to the converted module as its first state, and convert the cell with initial_state=None"
        )
    for option in ("peepholes", "clip", "leak"):
        if getattr(cell, option, None) is not None:
            raise ValueError(f"{option}: expected None for {target}, which has none. Build the cell without {option}")
    if not isinstance(cell, Elman):
        _check_activations(cell, target)
    if getattr(cell, "coupled", False):
        raise ValueError(f"coupled: expected False for {target}, got True. Build the cell with a forget gate")


def _check_activations(cell: Convertible, target: str) -> None:
    for name, standard in STANDARD.items():
        activation = getattr(cell, name, standard)
        if activation != standard:
            raise ValueError(
                f"{name}: expected {describe(standard)} for {target}, got {describe(activation)}. "
                f"Build the cell without {name}"
            )


def activation_name(cell: Elman, target: str, names: tuple[str, ...]) -> str:
    """The name of its activation, one of `names`."""
    for name in names:
        if cell.activation == ACTIVATIONS[name]:
            return name
    raise ValueError(
        f"activation: expected {' or '.join(names)} for {target}, got {describe(cell.activation)}. "
        "Build the cell with one of these"
    )
