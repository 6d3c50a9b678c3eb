"""How far forecasts are from what came: sMAPE, MASE, CRPS, and the coverage of a band."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import check
from ..arrays import AnyArray
from ..checked import Checked


def smape(forecasts: Checked[AnyArray], targets: Checked[AnyArray]) -> float:
    """The symmetric mean absolute percentage error, mean of 200 |y - f| / (|y| + |f|), in percent.

    forecasts, targets   [..., H], of any shape, which is the same; a pair of zeros is no error, 0

    As in the M4 competition (Makridakis et al. 2020). Raises ValueError for shapes that differ and for NaN.
    """
    forecasts, targets = _pair("forecasts", forecasts, targets)
    sums = np.abs(forecasts) + np.abs(targets)
    return float(np.mean(200 * np.abs(targets - forecasts) / np.where(sums == 0, 1, sums)))


def mase(
    forecasts: Checked[AnyArray], targets: Checked[AnyArray], past: Checked[Sequence[AnyArray]], season: int
) -> float:
    """The mean absolute scaled error, mean over series of mean |y - f| / mean |x_t - x_{t - season}|.

    forecasts, targets   [N, H], of N series
    past                 the N series x before them, [T_n] each: their own seasonal differences are the scale
    season               the period in steps, 1 for none

    Raises ValueError for a series of no more than `season` steps, and for one without any seasonal change, such as a
    constant one, which has no scale (Hyndman & Koehler 2006); for shapes that differ, and for NaN.
    """
    check.sizes(season=season)
    forecasts, targets = _pair("forecasts", forecasts, targets)
    if forecasts.ndim != 2 or len(past) != len(forecasts):
        raise ValueError(
            f"past: expected a series for each row of the forecasts {list(forecasts.shape)}, got {len(past)}. "
            "Pass forecasts [N, H] and a list of N series"
        )
    scales = np.array([_seasonal_change(number, series, season) for number, series in enumerate(past)])
    return float(np.mean(np.abs(targets - forecasts).mean(1) / scales))


def crps(samples: Checked[AnyArray], targets: Checked[AnyArray]) -> float:
    """The continuous ranked probability score, mean of E|s - y| - E|s - s'| / 2, in the unit of the targets.

    samples   [S, ...]: S equally likely values for each target, such as draws, or quantiles at levels
              (1/2, 3/2, ...) / S; a single one is a point forecast, whose score is its absolute error
    targets   [...]

    Smaller is better (Gneiting & Raftery 2007). Raises ValueError for shapes that do not fit, and for NaN.
    """
    samples = np.sort(np.asarray(samples, np.float64), axis=0)
    if samples.ndim == 0 or not len(samples):
        raise ValueError(f"samples: expected at least one for each target, got {list(samples.shape)}. Pass [S, ...]")
    _, targets = _pair("samples", samples[0], targets)
    _check_numbers("samples", samples)
    S = len(samples)
    # Of sorted values, the sum of |s_i - s_j| over all pairs is 2 sum_i (2 i - S - 1) s_i, with i from 1.
    ranks = (2 * np.arange(1, S + 1) - S - 1).reshape(-1, *(1,) * targets.ndim)
    spread = (ranks * samples).sum(0) / S**2
    return float(np.mean(np.abs(samples - targets).mean(0) - spread))


def coverage(lower: Checked[AnyArray], upper: Checked[AnyArray], targets: Checked[AnyArray]) -> float:
    """The share of targets from `lower` to `upper`; a band of 95 % should cover a share of 0.95.

    Raises ValueError for shapes that differ, for NaN, and for a bound that is above the other.
    """
    lower, targets = _pair("lower", lower, targets)
    upper, _ = _pair("upper", upper, targets)
    if (lower > upper).any():
        raise ValueError("lower: expected no value above that of `upper`, got some. Swap the two, or sort quantiles")
    return float(np.mean((lower <= targets) & (targets <= upper)))


def _pair(name: str, values: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64. Raises unless they have one shape and are numbers: broadcasting would compare each with all."""
    values, targets = np.asarray(values, np.float64), np.asarray(targets, np.float64)
    if values.shape != targets.shape or not values.size:
        raise ValueError(
            f"{name}: expected {list(targets.shape)}, by the targets, got {list(values.shape)}. "
            "Pass one for each of at least one target"
        )
    _check_numbers(name, values)
    _check_numbers("targets", targets)
    return values, targets


def _check_numbers(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name}: expected finite numbers, got {values[~np.isfinite(values)][0]}. Drop what is missing"
        )


def _seasonal_change(number: int, series: Any, season: int) -> float:
    """mean |x_t - x_{t - season}| of one series."""
    values = np.asarray(series, np.float64)
    if values.ndim != 1 or len(values) <= season:
        raise ValueError(
            f"past[{number}]: expected a series of more than season={season} steps, got {list(values.shape)}. "
            "Pass a longer one, or a smaller season"
        )
    _check_numbers(f"past[{number}]", values)
    change = float(np.abs(values[season:] - values[:-season]).mean())
    if change == 0:
        raise ValueError(
            f"past[{number}]: expected a series that changes from one season of {season} steps to the next, got one "
            "that does not, which has no scale. Leave it out of the MASE, or use smape"
        )
    return change
