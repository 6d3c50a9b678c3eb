"""Checks of the layer that a regulariser wraps."""

from types import UnionType

from ...cell import describe


def check_kind(layer: object, expected: type | UnionType, means: str) -> None:
    """Raise unless `layer` is of a kind that the regulariser can change."""
    if not isinstance(layer, expected):
        raise TypeError(
            f"layer: expected {means}, got {describe(layer)}. Pass the layer to regularise, such as LSTM(...)"
        )


def check_inherits(layer: object, family: type, *methods: str) -> None:
    """Raise where the layer overrides a method that the regulariser replaces."""
    for method in methods:
        if getattr(type(layer), method) is not getattr(family, method):
            raise TypeError(
                f"layer: expected the {method} of {family.__name__}, which the regulariser replaces, got "
                f"{describe(layer)}, which overrides it. Regularise its inputs and outputs, or use Zoneout"
            )
