"""The check that the weights of a cell have the shapes that it gives for them."""

from collections.abc import Callable
from operator import attrgetter
from typing import TypeVar

import jax

from .cell import AbstractCell, describe
from .network import Layer

R = TypeVar("R")


def check_weights(cell: AbstractCell) -> None:
    """Raise unless every weight has the shape that the cell gives for it."""
    for name, expected in cell.weight_shapes.items():
        field = attrgetter(name)(cell)
        for leaf in (field,) if hasattr(field, "shape") else jax.tree.leaves(field):
            if leaf.shape != expected:
                raise ValueError(_other_shape(cell, name, expected, leaf.shape))


def _other_shape(cell: AbstractCell, name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    source = next(iter(cell.weight_shapes))
    given = "" if name == source else f" with {source} {list(getattr(cell, source).shape)}"
    return (
        f"{name}: expected {list(expected)} for {describe(cell)}{given}, got {list(got)}. "
        "Reshape it to the layout in the cell's docstring, or use rnnjax.convert for the weights of another library"
    )


def or_name_weight(cell: Layer, compute: Callable[..., R], *arguments: object) -> R:
    """`compute(*arguments)`; where that fails because of a weight of another shape, the error names the weight.

    The shapes of inputs and states come from the weights.
    """
    try:
        return compute(*arguments)
    except (TypeError, ValueError):
        _check_all_weights(cell)
        raise


def _check_all_weights(cell: Layer) -> None:
    """Raise unless all weights of a cell, or of those of a network, have the shapes that their cells give for them."""
    is_cell = lambda node: isinstance(node, AbstractCell)  # noqa: E731
    for layer in filter(is_cell, jax.tree.leaves(cell, is_leaf=is_cell)):
        check_weights(layer)
