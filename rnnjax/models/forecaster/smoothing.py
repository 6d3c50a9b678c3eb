"""Exponential smoothing of a level and of seasonal factors, as Holt and Winters have it, for any number of periods."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...arrays import AnyArray, Length
from ...check import sizes
from ...checked import Checked
from ...engines.scan import Scan
from ...exporting import exportable
from ...marks import valid_steps
from ...unroll import unroll

Scalar: TypeAlias = Float[Array, ""]
Seasons: TypeAlias = tuple[Array, ...]


@exportable
class Components(NamedTuple):
    """The level, and for each period the factors [period] of the steps that come next, the nearest first."""

    level: Scalar
    seasons: Seasons


class Smoothed(NamedTuple):
    """Levels l_t [T] after each step; the factors by which each step was divided, [T] for each period; the last state.

    After the length all of them are 1.
    """

    levels: Float[Array, " T"]
    seasons: Seasons
    last: Components


def smooth(
    values: Float[Array, " T"], length: Length | None, level_rate: Scalar, season_rates: Seasons, seasons: Seasons
) -> Smoothed:
    """Smooth one positive series by these rates, each from 0 to 1, from these factors of its first steps on.

        l_t = a y_t / s_t + (1 - a) l_{t-1}                             l_0 = y_0 / s_0
        s_{t+m} = g y_t / l_t + (1 - g) s_t

    Of several periods, s_t is the product of their factors, and y_t is divided by those of the other periods where one
    of them is updated (Taylor 2003). Without a period, y_t = l_t is all that is smoothed.
    """

    def step(state: Components, y: Scalar) -> tuple[Components, tuple[Scalar, Seasons]]:
        now = tuple(season[0] for season in state.seasons)
        product = math.prod(now, start=jnp.ones_like(y))
        level = level_rate * y / product + (1 - level_rate) * state.level
        new = [g * y * s / (level * product) + (1 - g) * s for g, s in zip(season_rates, now, strict=True)]
        rolled = tuple(jnp.append(each[1:], s) for each, s in zip(state.seasons, new, strict=True))
        return Components(level, rolled), (level, now)

    first = math.prod((season[0] for season in seasons), start=jnp.ones_like(values[0]))
    last, (levels, factors) = unroll(step, Components(values[0] / first, seasons), values, length=length, engine=Scan())
    if length is not None:  # `unroll` makes ignored outputs zero, and they have no logarithm
        valid = valid_steps(length, len(values))
        levels, factors = jax.tree.map(lambda leaf: jnp.where(valid, leaf, 1), (levels, factors))
    return Smoothed(levels, factors, last)


def initial_seasons(
    series: Checked[Sequence[AnyArray]], periods: Checked[Sequence[int]]
) -> tuple[Float[np.ndarray, "N m"], ...]:
    """The logarithms of the factors of the first steps of N series, [N, period] for each of the periods.

    They are means of the logarithm over its moving average. Raises ValueError unless all values are positive, and for a
    series that is shorter than two of the longest periods.
    """
    periods = tuple(periods)
    sizes(**{f"periods[{place}]": period for place, period in enumerate(periods)})
    if sorted(set(periods)) != list(periods):
        raise ValueError(
            f"periods: expected each longer than the one before, got {list(periods)}. Sort them, the shortest first"
        )
    rows = [_initial_seasons(f"series[{number}]", values, periods) for number, values in enumerate(series)]
    return tuple(np.stack(factors) for factors in zip(*rows, strict=True)) if periods else ()


def _initial_seasons(name: str, series: Any, periods: tuple[int, ...]) -> list[np.ndarray]:
    """The same for one series."""
    values = np.asarray(series, np.float64)
    longest = max(periods, default=1)
    if values.ndim != 1 or len(values) < max(2 * longest, 1):
        raise ValueError(
            f"{name}: expected at least two seasons of {longest} steps, got {list(values.shape)}. "
            "Leave out that period, or that series"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(
            f"{name}: expected positive values, to be divided by a level and factors, got {values.min()}. "
            "Add a constant to the series, or use a Forecaster"
        )
    sums = np.cumsum(np.concatenate([[0.0], np.log(values)]))
    trend = (sums[longest:] - sums[:-longest]) / longest
    middle = longest // 2
    rest = np.log(values)[middle : middle + len(trend)] - trend
    factors = []
    for period in periods:
        phases = (middle + np.arange(len(rest))) % period
        means = np.bincount(phases, rest, period) / np.bincount(phases, minlength=period)
        rest = rest - means[phases]
        factors.append(means)
    return factors
