"""Cells and networks as nodes of a graph."""

from collections.abc import Callable
from typing import Any

from ...cell import AbstractCell, describe
from ...gated_cell import AbstractGatedCell
from ...network import Layer
from ...networks.bidirectional import AbstractBidirectional, Bidirectional, Reversed, SharedBidirectional
from ...networks.connected import Connected
from ...networks.layer import output_type
from ...networks.merge import Directions, add, average, concatenate, multiply
from ...networks.stack import Stack
from ...networks.time_distributed import TimeDistributed
from ...regularise.steps.noisy_states import NoisyStates
from ...regularise.steps.recurrent_dropout import RecurrentDropout
from ...regularise.steps.variational_dropout import VariationalDropout
from .context import Context, Names
from .direction import Direction
from .direction_of import direction_of
from .write_function import write_function
from .write_operator import write_operator
from .write_scan import write_scan


def write_layer(layer: Layer, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    """The last state and the outputs [T, B, features] of a layer."""
    direction = direction_of(layer) if isinstance(layer, AbstractCell) else None
    if direction is not None:
        (last,), ys = write_operator(context, [direction], [state], xs)
        return last, context.graph.node("Squeeze", ys, context.graph.integers(1))
    if isinstance(layer, AbstractGatedCell):
        return write_scan(layer, context, state, xs)
    if type(layer) in NETWORKS:
        return NETWORKS[type(layer)](layer, context, state, xs)
    raise ValueError(
        "network: expected layers that ONNX has, or whose step is one matrix product and elementwise operations, got "
        f"{describe(layer)}. Use Elman, LSTM, GRU, ResetBeforeGRU, another AbstractGatedCell, or networks of these, "
        "or export with jax.export"
    )


def _stack(layer: Stack, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    last = []
    for each, before in zip(layer.layers, state, strict=True):
        after, xs = write_layer(each, context, before, xs)
        last.append(after)
    return tuple(last), xs


def _reversed(layer: Reversed, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    return write_layer(layer.layer, context._replace(reverse=not context.reverse), state, xs)


def _bidirectional(layer: AbstractBidirectional, context: Context, state: Directions, xs: str) -> tuple[Names, str]:
    pair = _pair(layer)
    if pair is None:
        forward, forward_ys = write_layer(layer.forward, context, state.forward, xs)
        opposite = context._replace(reverse=not context.reverse)
        backward, backward_ys = write_layer(layer.backward, opposite, state.backward, xs)
        return Directions(forward, backward), _merge(layer, layer.merge, context, forward_ys, backward_ys)
    # The second direction of a node runs backward: where time is reversed, the pair is swapped.
    order = slice(None, None, -1 if context.reverse else 1)
    last, ys = write_operator(context, pair[order], [state.forward, state.backward][order], xs)
    forward_ys, backward_ys = context.graph.node("Split", ys, axis=1, outputs=(".first", ".second"))[order]
    squeezed = [context.graph.node("Squeeze", each, context.graph.integers(1)) for each in (forward_ys, backward_ys)]
    return Directions(*last[order]), _merge(layer, layer.merge, context, *squeezed)


def _pair(layer: AbstractBidirectional) -> list[Direction] | None:
    """Both directions, where one node can have them."""
    if not (isinstance(layer.forward, AbstractCell) and isinstance(layer.backward, AbstractCell)):
        return None
    forward, backward = direction_of(layer.forward), direction_of(layer.backward)
    if forward is None or backward is None or forward.common != backward.common:
        return None
    return [forward, backward]


def _connected(layer: Connected, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    last, ys = write_layer(layer.layer, context, state, xs)
    return last, _merge(layer, layer.combine, context, xs, ys)


def _merge(layer: Layer, merge: Any, context: Context, first: str, second: str) -> str:
    graph = context.graph
    if merge == concatenate:
        return graph.node("Concat", first, second, axis=2)
    if merge == add:
        return graph.node("Add", first, second)
    if merge == average:
        return graph.node("Div", graph.node("Add", first, second), graph.constant(2, context.dtype))
    if merge == multiply:
        return graph.node("Mul", first, second)
    raise ValueError(
        f"network: expected outputs merged by concatenate, add, average or multiply, got {describe(merge)} in "
        f"{describe(layer)}. Use one of these"
    )


def _time_distributed(layer: TimeDistributed, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    form, output = layer.input_type(), output_type(layer)
    if len(form.shape) > 1 or len(output.shape) != 1:
        raise ValueError(
            f"network: expected vectors, or an integer, at each step, got {list(form.shape)}, {list(output.shape)} in "
            f"{describe(layer)}. Use layers of vectors, or export with jax.export"
        )
    return state, write_function(layer.function, context, xs, form)


def _regularised(layer: Any, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    """Without a key they are the layer that they regularise."""
    return write_layer(layer.layer, context, state, xs)


NETWORKS: dict[type, Callable[[Any, Context, Any, str], tuple[Names, str]]] = {
    Stack: _stack,
    Reversed: _reversed,
    Bidirectional: _bidirectional,
    SharedBidirectional: _bidirectional,
    Connected: _connected,
    TimeDistributed: _time_distributed,
    VariationalDropout: _regularised,
    RecurrentDropout: _regularised,
    NoisyStates: _regularised,
}
