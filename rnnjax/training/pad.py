"""Ragged sequences as one padded batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from .. import check
from ..arrays import AnyArray
from ..check import show
from ..checked import Checked


def pad(
    sequences: Checked[Sequence[AnyArray | Sequence[float]]],
    *,
    length: Checked[int | None] = None,
    value: Checked[ArrayLike] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences [T_b, ...] of any lengths as one array [B, T, ...], and their lengths [B].

        >>> xs, lengths = pad([[3, 0, 4], [1, 2]])
        >>> xs.tolist(), lengths.tolist()
        ([[3, 0, 4], [1, 2, 0]], [3, 2])

    sequences   arrays that differ on their first axis alone, or lists of numbers; NumPy decides on a common dtype
    length      T; None: that of the longest
    value       what fills the rest of each row; by `unroll` and the losses it is never seen

    Raises ValueError for no sequences, for steps of different shapes, for a sequence longer than `length`, and
    for a value that their dtype does not hold.
    """
    arrays = list(map(_as_array, sequences))
    if not arrays:
        raise ValueError("sequences: expected at least one sequence, got none. Pass a list of arrays [T, ...]")
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) != 1 or any(array.ndim == 0 or array.dtype == object for array in arrays):
        raise ValueError(
            f"sequences: expected arrays [T, ...] whose steps have one shape, got {show(arrays[:8])}. "
            "Pass one array for each sequence, with time on its first axis"
        )
    lengths = np.array([len(array) for array in arrays])
    if length is not None:
        check.count("length", length, least=0)
    T = int(lengths.max()) if length is None else length
    if lengths.max() > T:
        raise ValueError(
            f"length: expected at least the longest sequence's {lengths.max()}, got {length}. "
            "Cut the sequences, or pass a larger length"
        )
    dtype = np.result_type(*arrays)
    fill = np.asarray(value).astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(fill, value):
        raise ValueError(
            f"value: expected a number of dtype {dtype}, as the sequences have, got {value!r}. "
            "Pass one that this dtype holds"
        )
    xs = np.full((len(arrays), T, *shapes.pop()), fill)
    for row, array in zip(xs, arrays, strict=True):
        row[: len(array)] = array
    return xs, lengths


def _as_array(sequence: Any) -> np.ndarray:
    """An empty list says nothing of the dtype: NumPy would take it for one of float64."""
    is_empty = isinstance(sequence, list | tuple) and not sequence
    return np.zeros(0, bool) if is_empty else np.asarray(sequence)
