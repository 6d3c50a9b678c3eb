"""Series over time: their files, the parts they are split into, their scales, and forecasts that need no learning."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from matplotlib.cbook import get_sample_data

import rnnjax
from common import data

YEAR = 12
LINE = re.compile(r'"?(\d{4})-(0[1-9]|1[0-2])"?,(.*)')  # "1949-01",112


class Levels(NamedTuple):
    """A code is (x - mean) / deviation; a network says by how much the next will differ from the last."""

    mean: float
    deviation: float

    @classmethod
    def fit(cls, values: np.ndarray) -> Self:
        return cls(*moments(values))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The codes of all values but the first."""
        return (values[1:] - self.mean) / self.deviation

    def decode(self, last: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The values [..., steps] of codes that follow the values `last`."""
        del last
        return codes * self.deviation + self.mean

    def connect(self, network: rnnjax.AbstractNetwork) -> rnnjax.AbstractNetwork:
        """What says the next code, of a network."""
        return rnnjax.residual(network)


class LogChanges(NamedTuple):
    """A code is (log x_t - log x_{t-1} - mean) / deviation, which a network says as it is."""

    mean: float
    deviation: float

    @classmethod
    def fit(cls, values: np.ndarray) -> Self:
        return cls(*moments(log_changes(values)))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The codes of all values but the first."""
        return (log_changes(values) - self.mean) / self.deviation

    def decode(self, last: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The values [..., steps] of codes that follow the values `last`."""
        return last[..., None] * np.exp(np.cumsum(codes * self.deviation + self.mean, axis=-1))

    def connect(self, network: rnnjax.AbstractNetwork) -> rnnjax.AbstractNetwork:
        """What says the next code, of a network."""
        return network


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation."""
    if values.min() == values.max():
        raise ValueError(f"values: expected some to learn from that differ, got {len(values)} of {values[0]}")
    return float(values.mean()), float(values.std())


def log_changes(values: np.ndarray) -> np.ndarray:
    """log x_t - log x_{t-1}."""
    if values.min() <= 0:
        raise ValueError(f"values: expected all above zero, to take logarithms of, got {values.min()} among them")
    return np.diff(np.log(values))


class Series(NamedTuple):
    """Values over time, and how they are read."""

    name: str
    values: np.ndarray
    scaling: type[Levels] | type[LogChanges]
    window: int  # steps that are read for a forecast
    yearly: bool = False  # whether a year is like the last


def split(count: int) -> tuple[range, range]:
    """The steps to choose by and those to test on, of so many; all before them are to learn from."""
    second = 2 * count // 3
    first = 4 * second // 5
    return range(first, second), range(second, count)


def naive(series: Series, part: range, ahead: int) -> dict[str, np.ndarray]:
    """Forecasts [len(part), ahead]: row n is of the step part[n] and those after it, from what came before part[n]."""
    values, last = series.values, np.asarray(part)[:, None] - 1
    said = {"the last value": np.repeat(values[last], ahead, axis=1)}
    if series.yearly:
        year_ago = last + 1 + np.arange(ahead) % YEAR - YEAR
        said["the value a year ago"] = values[year_ago]
        said["a year ago and growth"] = values[year_ago] * values[last] / values[last - YEAR]
    return said


def read_months(name: str, scaling: type[Levels] | type[LogChanges], window: int, yearly: bool = False) -> Series:
    """A monthly series of the folder that RNNJAX_DATA names."""
    path = data.find(f"sunspots_airline/{name}.csv", "the price of a share stands in")
    return read_share() if path is None else Series(name, read_file(path), scaling, window, yearly)


def read_file(path: Path) -> np.ndarray:
    """The values of a file with a heading, and below it a line for every month."""
    values, before = [], None
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        month, value = read_line(line)
        if not np.isfinite(value):
            raise ValueError(f'{path}, line {number}: expected a month and a number, as "1949-01",112, got {line!r}')
        if before is not None and month != before + 1:
            year, place = divmod(before + 1, YEAR)
            raise ValueError(f"{path}, line {number}: expected {year}-{place + 1:02}, the month after, got {line!r}")
        values.append(value)
        before = month
    return np.array(values)


def read_line(line: str) -> tuple[int, float]:
    """The months since the year 0, and the value; NaN where the line is not such a pair."""
    found = LINE.fullmatch(line.strip())
    try:
        return (12 * int(found[1]) + int(found[2]) - 1, float(found[3])) if found else (0, np.nan)
    except ValueError:
        return 0, np.nan


def read_share() -> Series:
    """Google's price, day by day from 2004 to 2008, which comes with matplotlib."""
    with np.load(get_sample_data("goog.npz", asfileobj=False)) as arrays:
        prices = arrays["price_data"]["adj_close"]
    return Series("a share of Google", prices.astype(np.float64), LogChanges, 60)


SERIES: dict[str, Callable[[], Series]] = {
    "sunspots": partial(read_months, "monthly-sunspots", Levels, 132),
    "airline": partial(read_months, "airline-passengers", LogChanges, 36, yearly=True),
    "stocks": read_share,
}
