"""Nodes that merge two sequences, or the two directions of one node, as networks."""

from collections.abc import Callable
from typing import Any

from ...arrays import State
from ...network import Layer
from ...networks.bidirectional import Bidirectional, Reversed
from ...networks.connected import Connected
from ...networks.merge import Directions, add, average, concatenate
from ...networks.stack import Stack
from .values import Both, Steps


def sole(layers: tuple[Layer, ...], states: tuple[State | None, ...]) -> tuple[Layer, Any]:
    """Layers and their states as one layer and its state."""
    return (layers[0], states[0]) if len(layers) == 1 else (Stack(layers), states if any_state(states) else None)


def any_state(states: tuple[State | None, ...]) -> bool:
    """Whether the file holds the state of any layer."""
    return any(state is not None for state in states)


def directions_merged(steps: Steps, merge: Callable) -> Steps:
    """The layer of a node of both directions, its outputs merged."""
    pair = steps.layers[-1]
    return steps.last_layer(Bidirectional(pair.forward, pair.backward, merge=merge))._replace(
        features=doubled(steps.features) if merge is concatenate else steps.features
    )


def merged(first: Steps, second: Steps, merge: Callable) -> Steps | None:
    """Two sequences merged: both directions, or a layer and what it reads; None where they are neither."""
    if first.axes != second.axes or first.source != second.source:
        return None
    nodes = first.nodes | second.nodes
    features = (first.features or 0) + (second.features or 0) if merge is concatenate else second.features
    prefix = first._replace(layers=first.layers[:-1], states=first.states[:-1])
    if first.layers and len(first.layers) == len(second.layers) and second.extends(prefix):
        found = _opposite(first.layers[-1], second.layers[-1], merge)
        states = first.states[-1], second.states[-1]
        state = Directions(*states) if any_state(states) else None
        return None if found is None else prefix.then(found, state, features=features, time=first.time, nodes=nodes)
    if merge is add and first.extends(second):
        first, second = second, first
    if not second.extends(first) or len(second.layers) == len(first.layers):
        return None
    layer, state = sole(second.layers[len(first.layers) :], second.states[len(first.layers) :])
    return first.then(Connected(layer, merge), state, features=features, time=second.time, nodes=nodes)


def _opposite(first: Layer, second: Layer, merge: Callable) -> Layer | None:
    if isinstance(second, Reversed) and not isinstance(first, Reversed):
        return Bidirectional(first, second.layer, merge=merge)
    if isinstance(first, Reversed) and not isinstance(second, Reversed):
        return Reversed(Bidirectional(first.layer, second, merge=merge))
    return None


def halved(steps: Steps) -> Steps | None:
    """The mean, of two sequences that were added up last."""
    layer = steps.layers[-1] if steps.layers else None
    if isinstance(layer, Connected) and layer.combine is add:
        return steps.last_layer(Connected(layer.layer, average))
    if isinstance(layer, Bidirectional) and layer.merge is add:
        return steps.last_layer(Bidirectional(layer.forward, layer.backward, merge=average))
    if isinstance(layer, Reversed):
        inner = halved(steps.last_layer(layer.layer))
        return None if inner is None else steps.last_layer(Reversed(inner.layers[-1]))
    return None


def parts(steps: Steps) -> list[Steps]:
    """The directions of a node, each by itself."""
    pair: Both = steps.layers[-1]
    state = steps.states[-1] or Directions(None, None)
    before = steps._replace(layers=steps.layers[:-1], states=steps.states[:-1])
    return [before.then(pair.forward, state.forward), before.then(Reversed(pair.backward), state.backward)]


def doubled(features: int | None) -> int | None:
    """The features of both directions."""
    return None if features is None else 2 * features
