"""The M4 competition: its hourly and weekly series, series made up in their place, and forecasts without learning."""

from typing import NamedTuple

import numpy as np

from common import data


class M4(NamedTuple):
    """Series of one frequency."""

    name: str
    past: list[np.ndarray]  # [T_n] each
    future: np.ndarray  # [N, horizon], what came after them
    season: int  # by which the MASE and the naive forecasts go; 1 is none


SEASONS = {"hourly": 24, "weekly": 1}


def read(frequency: str) -> M4:
    """The series of the folder that RNNJAX_DATA names, or others like them."""
    path = data.find(f"m4/{frequency}.npz", "series that are made up stand in")
    if path is None:
        return make(frequency)
    with np.load(path) as arrays:
        past = np.split(arrays["values"].astype(np.float64), arrays["offsets"][1:-1])
        return M4(f"M4 {frequency}", past, arrays["future"].astype(np.float64), SEASONS[frequency])


def make(frequency: str, number: int = 24) -> M4:
    """Series with days and weeks, or without, whose level is a random walk in the logarithm."""
    season, random = SEASONS[frequency], np.random.default_rng(0)
    horizon, length = (48, 504) if season > 1 else (13, 160)
    series = []
    for _ in range(number):
        steps = np.arange(length + horizon)
        log = np.log(1000) + np.cumsum(random.normal(0, 0.005, len(steps))) + random.normal(0, 0.01, len(steps))
        if season > 1:
            day, week = random.normal(0, 0.2, season), random.normal(0, 0.05, 7)
            log += day[steps % season] + week[steps // season % 7]
        series.append(np.exp(log))
    cut = random.integers(0, length // 4, number)  # series of different lengths
    past = [values[first:length] for values, first in zip(series, cut, strict=True)]
    return M4(f"made-up {frequency} series", past, np.stack([values[length:] for values in series]), season)


def seasonal_naive(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The last season again and again."""
    return past[len(past) - season + np.arange(horizon) % season]


def naive2(past: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The last value, seasonally adjusted where the series is seasonal: the benchmark of the M4 competition."""
    if season == 1 or not is_seasonal(past, season):
        return np.repeat(past[-1], horizon)
    indices = seasonal_indices(past, season)
    last = past[-1] / indices[(len(past) - 1) % season]
    return last * indices[(len(past) + np.arange(horizon)) % season]


def is_seasonal(past: np.ndarray, season: int) -> bool:
    """Whether the autocorrelation at one season is significant at 90 %, by Bartlett's formula."""
    if len(past) < 3 * season:
        return False
    centred = past - past.mean()
    correlations = np.array([centred[lag:] @ centred[:-lag] for lag in range(1, season + 1)]) / (centred @ centred)
    limit = 1.645 * np.sqrt((1 + 2 * (correlations[:-1] ** 2).sum()) / len(past))
    return bool(abs(correlations[-1]) > limit)


def seasonal_indices(past: np.ndarray, season: int) -> np.ndarray:
    """The factor of each phase: the classical multiplicative decomposition by a centred moving average."""
    weights = np.ones(season) if season % 2 else np.concatenate([[0.5], np.ones(season - 1), [0.5]])
    trend = np.convolve(past, weights / season, "valid")
    first = (len(weights) - 1) // 2
    ratios = past[first : first + len(trend)] / trend
    phases = (first + np.arange(len(trend))) % season
    indices = np.array([ratios[phases == phase].mean() for phase in range(season)])
    return indices / indices.mean()
