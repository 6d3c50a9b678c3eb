"""Windows of series: what is read and what follows it; and their scale."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ... import check
from ...arrays import AnyArray, IntegerLike
from ...checked import Checked
from ...exporting import exportable
from ...network import Layer
from ...networks.layer import output_type


@exportable
class Windows(NamedTuple):
    """Windows of series for `forecaster_loss` and `deepar_loss`, and, without `future`, for forecasts."""

    past: Any  # [B, P], what is read, right-aligned: the last value of each row is the latest
    lengths: Any  # [B]: the values of `past` that count, which are its last ones
    future: Any = None  # [B, horizon], what follows
    features: Any = None  # [B, P + horizon, C], known in advance for all of these steps; None: there are none


def windows(
    series: Checked[Sequence[AnyArray]],
    past: int,
    horizon: int,
    *,
    stride: int = 1,
    features: Checked[Sequence[AnyArray] | None] = None,
) -> Windows:
    """All windows of these series: `past` values, and the `horizon` ones that follow.

    series     [T_n] each, of any lengths
    past       P: windows near the start of a series have fewer values, at least one, and zeros in front of them
    horizon    the values to be forecast
    stride     the steps from one window of a series to the next; the last one always ends with the series
    features   [T_n, C] for each series: calendar, prices, whatever is known in advance

    Raises ValueError for a series of no more than `horizon` steps, for values that are not finite, and for features
    that do not fit the series.
    """
    check.sizes(past=past, horizon=horizon, stride=stride)
    rows = [_Row(f"series[{number}]", values, horizon) for number, values in enumerate(series)]
    if not rows:
        raise ValueError("series: expected at least one, got none. Pass a list of arrays [T]")
    known = None if features is None else _features(features, [row.values for row in rows])
    pasts, futures, lengths, seen = [], [], [], []
    for number, row in enumerate(rows):
        for cut in range(len(row.values) - horizon, 0, -stride):  # the first step that is forecast
            part = slice(max(cut - past, 0), cut)
            missing = past - (cut - part.start)
            pasts.append(np.pad(row.values[part], (missing, 0)))
            futures.append(row.values[cut : cut + horizon])
            lengths.append(past - missing)
            if known is not None:
                seen.append(np.pad(known[number][part.start : cut + horizon], ((missing, 0), (0, 0))))
    stack = lambda arrays: np.stack(arrays).astype(np.float32)  # noqa: E731
    return Windows(stack(pasts), np.array(lengths), stack(futures), stack(seen) if seen else None)


class _Row:
    """One series that is longer than the horizon."""

    def __init__(self, name: str, series: Any, horizon: int):
        values = np.asarray(series, np.float64)
        if values.ndim != 1 or len(values) <= horizon:
            raise ValueError(
                f"{name}: expected a series of more than horizon={horizon} steps, got {list(values.shape)}. "
                "Leave it out, or pass a smaller horizon"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite values, got some that are not. Cut or fill what is missing")
        self.values = values


def _features(features: Sequence[AnyArray], series: list[np.ndarray]) -> list[np.ndarray]:
    arrays = [np.asarray(each, np.float64) for each in features]
    expected = [len(values) for values in series]
    sizes = {array.shape[1:] for array in arrays}
    if [len(array) for array in arrays] != expected or any(array.ndim != 2 for array in arrays) or len(sizes) != 1:
        raise ValueError(
            f"features: expected an array [T, C] for each of {len(series)} series, of its length and of one C, "
            f"got {[list(array.shape) for array in arrays[:4]]}. Pass one row of features for each step"
        )
    return arrays


def valid_past(length: IntegerLike | None, P: int) -> Bool[Array, " P"]:
    """Which values of a right-aligned past count: the last `length`, or all. Raises for a length above P."""
    known = check.length(length, P)
    return jnp.arange(P) >= (0 if known is None else P - known)


def mean_scale(past: Float[Array, " P"], valid: Bool[Array, " P"]) -> Float[Array, ""]:
    """The mean of |y| over the valid steps; 1 where that is zero. (DeepAR's paper takes 1 + the mean of y.)"""
    total = jnp.where(valid, jnp.abs(past), 0).sum()
    mean = total / jnp.maximum(valid.sum(), 1).astype(past.dtype)
    return jnp.where(mean > 0, mean, 1)


def past_windows(values: Float[Array, " T"], levels: Float[Array, " T"], window: int) -> Float[Array, "T W"]:
    """The last `window` values up to each step, the oldest first, less the level of that step; zeros before the start.

    The shifted copies of a series are slices: a gather would be transposed to a scatter, which is slow on CPUs.
    """
    T = len(values)
    padded = jnp.concatenate([jnp.zeros(window - 1, values.dtype), values])
    lags = jnp.stack([padded[start : start + T] for start in range(window)], axis=1)
    exists = jnp.arange(T)[:, None] + jnp.arange(window) >= window - 1
    return jnp.where(exists, lags - levels[:, None], 0)


def check_head(network: Layer, head: Callable[[Array], Array], size: int) -> None:
    """Raise unless the head makes `size` numbers of an output of the network."""
    made = eqx.filter_eval_shape(head, output_type(network))
    shape = jax.tree.map(lambda leaf: tuple(leaf.shape), made)
    if shape != (size,):
        raise ValueError(
            f"head: expected [{size}], the outputs of the distribution for all steps it forecasts, got {shape}. "
            f"Give its last layer {size} outputs"
        )
