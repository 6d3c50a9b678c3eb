"""Nodes that compute lengths, and the masks of padding that follow from them."""

from typing import Any

import numpy as np

from .values import Attributes, Constant, Given, Lengths, Mask, Sizes, Steps, Times, Value, as_steps

NUMBERS = (1, 6, 7, 11)  # float32, int32, int64 and float64, by the numbers of ONNX
BOOLEAN = 9


def read_padding(operator: str, attributes: Attributes, known: list[Value], outputs: int) -> list[Value] | None:
    """Sizes of axes, numbers of steps, lengths and masks; None for any other node."""
    if operator == "Shape":
        steps = as_steps(known[0])
        axes = known[0].axes if isinstance(known[0], Given) else None if steps is None else steps.axes
        return None if not axes else [Sizes(axes[slice(attributes.get("start", 0), attributes.get("end"))])]
    values: list[Any] = [as_lengths(value) or value for value in known]
    if operator == "Split" and isinstance(values[0], Sizes) and outputs == len(values[0].axes):
        return [Sizes(axis) for axis in values[0].axes]
    function = READ.get(operator)
    found = None if function is None else function(attributes, *values)
    return None if found is None else [found]


def as_lengths(value: Value | None) -> Lengths | None:
    """The lengths of the sequences; None for anything else."""
    if isinstance(value, Given) and value.axes == "L":
        return Lengths(value.source)
    return value if isinstance(value, Lengths) else None


def keeps_the_steps(mask: Value, values: Given | Steps) -> bool:
    """Whether the mask is that of the steps before the length, for a sequence of these axes."""
    if not isinstance(mask, Mask) or values.axes is None or mask.time not in values.axes:
        return False
    named = {mask.time: mask.time, "F": "1", "D": "1"}
    return mask.axes.rjust(len(values.axes), "1") == "".join(named.get(axis, "L") for axis in values.axes)


def _numbers(value: Any) -> list[int] | None:
    return [*map(int, np.ravel(value.array))] if isinstance(value, Constant) else None


def _same(attributes: Attributes, value: Any, *_: Any) -> Any:
    del attributes
    return value if isinstance(value, Sizes | Times | Lengths | Mask) else None


def _cast(attributes: Attributes, value: Any) -> Any:
    kept = attributes["to"] == BOOLEAN if isinstance(value, Mask) else attributes["to"] in NUMBERS
    return _same(attributes, value) if kept else None


def _gather(attributes: Attributes, sizes: Any, places: Any) -> Any:
    if not isinstance(sizes, Sizes) or not isinstance(places, Constant) or attributes.get("axis", 0):
        return None
    return Sizes("".join(sizes.axes[place] for place in np.ravel(places.array)), places.array.ndim)


def _squeeze(attributes: Attributes, value: Any, axes: Any = None) -> Any:
    numbers = attributes.get("axes") if axes is None else _numbers(axes)
    if isinstance(value, Sizes):
        return value._replace(rank=0) if value.rank and len(value.axes) == 1 else None
    if not isinstance(value, Times | Lengths | Mask) or numbers is None:
        return None
    dropped = {number % len(value.axes) for number in numbers}
    ones = all(value.axes[number] == "1" for number in dropped)
    kept = "".join(axis for number, axis in enumerate(value.axes) if number not in dropped)
    return value._replace(axes=kept) if ones else None


def _unsqueeze(attributes: Attributes, value: Any, axes: Any = None) -> Any:
    numbers = attributes.get("axes") if axes is None else _numbers(axes)
    if isinstance(value, Sizes):
        return value._replace(rank=1) if not value.rank else None
    if not isinstance(value, Times | Lengths | Mask) or numbers is None:
        return None
    rank = len(value.axes) + len(numbers)
    ones, rest = {number % rank for number in numbers}, iter(value.axes)
    return value._replace(axes="".join("1" if number in ones else next(rest) for number in range(rank)))


def _transpose(attributes: Attributes, value: Any) -> Any:
    perm = attributes.get("perm")
    if not isinstance(value, Mask) or perm is None:
        return None
    return value._replace(axes="".join(value.axes[axis] for axis in perm))


def _range(attributes: Attributes, start: Any, end: Any, step: Any) -> Any:
    del attributes
    whole = isinstance(end, Sizes) and not end.rank and _numbers(start) == [0] and _numbers(step) == [1]
    return Times(end.axes) if whole else None


def _maximum(attributes: Attributes, *values: Any) -> Any:
    """With 0 no mask changes; with 1 one of no step does."""
    del attributes
    lengths, bound = _with_lengths(values)
    number = _numbers(bound)
    if lengths is None or number not in ([0], [1]) or bound.array.ndim > len(lengths.axes):
        return None
    return lengths if number == [0] else lengths._replace(exact=False)


def _minimum(attributes: Attributes, *values: Any) -> Any:
    """With the number of steps."""
    del attributes
    lengths, bound = _with_lengths(values)
    if lengths is None or not isinstance(bound, Sizes) or len(bound.axes) != 1:
        return None
    return lengths._replace(bound=bound.axes) if lengths.bound in (None, bound.axes) else None


def _with_lengths(values: tuple[Any, ...]) -> tuple[Lengths | None, Any]:
    """The lengths and the other one of two values."""
    if len(values) != 2:
        return None, None
    first, second = values
    lengths, other = (first, second) if isinstance(first, Lengths) else (second, first)
    return (lengths, other) if isinstance(lengths, Lengths) else (None, None)


def _less(attributes: Attributes, times: Any, lengths: Any) -> Any:
    """time < length."""
    del attributes
    if not isinstance(times, Times) or not isinstance(lengths, Lengths) or not lengths.exact:
        return None
    time = times.axes.strip("1")
    rank = max(len(times.axes), len(lengths.axes))
    pairs = [*zip(times.axes.rjust(rank, "1"), lengths.axes.rjust(rank, "1"), strict=True)]
    if lengths.bound not in (None, time) or any("1" not in pair for pair in pairs):
        return None
    return Mask(lengths.source, "".join(max(pair, key=str.isalpha) for pair in pairs), time)


def _greater(attributes: Attributes, lengths: Any, times: Any) -> Any:
    return _less(attributes, times, lengths)


READ = {
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Range": _range,
    "Max": _maximum,
    "Min": _minimum,
    "Less": _less,
    "Greater": _greater,
}
