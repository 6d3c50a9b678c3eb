"""ES-RNN: exponential smoothing of every series, and one network for all of them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ... import check
from ...arrays import AnyArray, IntegerLike, Length, look_up
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...marks import valid_steps
from ...named import as_module
from ...network import Layer
from ...runtime_error import error_where
from ...unroll import unroll
from .quantiles import Quantiles
from .smoothing import Seasons, Smoothed, initial_seasons, smooth
from .windows import check_head, past_windows


class Run(NamedTuple):
    """A smoothed series, its spread, the network's outputs, its length, and its values with ones after the length."""

    smoothed: Smoothed
    spread: Float[Array, ""]
    ys: Float[Array, "T O"]
    length: Length
    values: Float[Array, " T"]


class ESRNN(eqx.Module):
    """Smyl 2020, "A hybrid method of exponential smoothing and recurrent neural networks", the winner of the M4.

        z_t = (log(y_{t-W+1} .. y_t, each / s) - log l_t) / d      the levels l and factors s: see `smooth`
        y_{t+k} = l_t s_{t+k} exp(d q_k),  k = 1 .. horizon        q = head(network(z)_t)

    Every series has smoothing rates and first seasonal factors of its own, which are learned together with the network
    that all series share. q are quantiles, by the pinball loss; a factor s_{t+k} is the last known one of its phase.
    The spread d is the mean absolute change of log y over the shortest period, or over one step, so that the network
    reads and writes numbers of one size. (The paper has no spread: there d = 1.) It has no gradient, but weight decay
    would change it: let matrices alone decay. The network must read from the left: one that looks ahead, such as
    `Bidirectional`, would see in training what it is to forecast.

        network = Stack([Dilated(LSTM(24, 40, key=a), 1), Dilated(LSTM(40, 40, key=b), 24)])
        head = eqx.nn.Linear(40, 48 * 3, key=c)
        model = ESRNN(48, network, head, Quantiles((0.025, 0.5, 0.975)), series=series, periods=(24, 168))
        bands = model(number, values)                                                              [3, 48]

    All values must be positive. A constant or perfectly periodic series has a spread of 1.
    """

    level_rate: Float[Array, " N"]  # before the sigmoid
    season_rates: Seasons  # [N] for each period, before the sigmoid
    seasons: Seasons  # [N, period] for each period: logarithms of the first factors
    spread: Float[Array, " N"]  # without a gradient
    network: Layer
    head: Callable[[Array], Array] = eqx.field(converter=as_module)
    quantiles: Quantiles
    horizon: int = eqx.field(static=True)

    def __init__(
        self,
        horizon: int,
        network: Layer,
        head: Callable[[Array], Array],
        quantiles: Quantiles,
        *,
        series: Checked[Sequence[AnyArray]],
        periods: Checked[Sequence[int]] = (),
        level_rate: float = 0.5,
        season_rate: float = 0.1,
    ):
        """The parts as they are; rates and factors of these series, whose numbers are their places in the list.

        horizon                  steps that are forecast
        network                  any that reads vectors [W], the last W values; W is the window
        head                     from an output of the network to [horizon * len(quantiles.levels)]
        series                   the training series [T_n]; their first steps decide the first seasonal factors
        periods                  of the seasons in steps, increasing; () for none
        level_rate, season_rate  from which the smoothing rates start, 0 < rate < 1

        Raises ValueError for a series shorter than two seasons, and for one whose values are not all positive.
        """
        check.sizes(horizon=horizon)
        rates = {"level_rate": level_rate, "season_rate": season_rate}
        logits = {name: _logit(name, rate) for name, rate in rates.items()}
        shape = network.input_type().shape
        if len(shape) != 1:
            raise ValueError(
                f"network: expected one that reads vectors [W], got inputs {list(shape)}. Use LSTM(W, ...)"
            )
        check_head(network, head, horizon * quantiles.size)
        dtype = jnp.float32
        self.seasons = tuple(jnp.asarray(factors, dtype) for factors in initial_seasons(series, periods))
        self.level_rate = jnp.full(len(series), logits["level_rate"], dtype)
        self.season_rates = tuple(jnp.full(len(series), logits["season_rate"], dtype) for _ in periods)
        self.spread = jnp.asarray([_spread(values, min(periods, default=1)) for values in series], dtype)
        self.network = network
        self.head = head
        self.quantiles = quantiles
        self.horizon = int(horizon)

    def __call__(
        self,
        number: Int[Array, ""],
        values: Float[Array, " T"],
        *,
        length: Checked[IntegerLike | None] = None,
        engine: AbstractEngine = Auto(),
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "P horizon"]:
        """The quantiles of the `horizon` values after `values`, the series of this number, [levels, horizon].

        `values` begins where the series given at construction does, since the seasonal factors are those of its first
        steps; it may be longer or shorter. A length of 0 is an error.
        Map over a batch of numbers, series and lengths by `jax.vmap`. NaN for a number that is not from 0 to N - 1.
        """
        smoothed, spread, ys, end, _ = self.run(number, values, length, engine, key)
        if length is not None:
            ys = error_where(ys, end < 1, "length: expected at least 1, got 0. Leave out series without a value")
        ahead = jnp.arange(self.horizon)
        factors = [season[ahead % len(season)] for season in smoothed.last.seasons]
        scale = math.prod(factors, start=smoothed.last.level)
        outputs = self.outputs(ys[end - 1])
        return scale * jnp.exp(self.quantiles.values(outputs, spread))

    @property
    def periods(self) -> tuple[int, ...]:
        """The periods of the seasons in steps."""
        return tuple(season.shape[-1] for season in self.seasons)

    @property
    def window(self) -> int:
        """W, the values that the network reads at each step."""
        return self.network.input_type().shape[0]

    def run(
        self,
        number: Int[Array, ""],
        values: Float[Array, " T"],
        length: IntegerLike | None,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> Run:
        """The smoothing of a series, and what the network makes of it; arguments as in a call."""
        T = len(values)
        if T == 0:
            raise ValueError("values: expected at least one step, got none. Pass a longer series")
        valid = check.length(length, T)
        if valid is not None:
            values = jnp.where(valid_steps(valid, T), values, 1)
        message = (
            "values: expected positive, finite ones, got zero, a negative one, NaN or infinity. "
            "Add a constant, or use a Forecaster"
        )
        values = error_where(values, ~((values > 0) & jnp.isfinite(values)), message)
        row = lambda table: look_up(table, number)  # noqa: E731
        rates = tuple(sigmoid(row(rate)) for rate in self.season_rates)
        seasons = tuple(jnp.exp(row(season)) for season in self.seasons)
        smoothed = smooth(values, valid, sigmoid(row(self.level_rate)), rates, seasons)
        logs = jnp.log(values) - sum(map(jnp.log, smoothed.seasons), start=jnp.zeros_like(values))
        spread = jax.lax.stop_gradient(row(self.spread))
        inputs = past_windows(logs, jnp.log(smoothed.levels), self.window) / spread
        _, ys = unroll(self.network, None, inputs, length=valid, engine=engine, key=key)
        return Run(smoothed, spread, ys, jnp.asarray(T, int) if valid is None else valid, values)

    def outputs(self, y: Array) -> Float[Array, "horizon P"]:
        """The outputs for all steps of the horizon, of one output of the network."""
        return self.head(y).reshape(self.quantiles.size, self.horizon).T  # one level after the other: without strides


def _spread(series: AnyArray, period: int) -> float:
    """The mean absolute change of the logarithm over a period; 1 of a series whose changes float32 would not see."""
    logs = np.log(np.asarray(series, np.float64))
    change = float(np.abs(logs[period:] - logs[:-period]).mean()) if len(logs) > period else 0.0
    return change if change > 1e-6 else 1.0


def _logit(name: str, rate: float) -> float:
    """The logit of a rate. Raises unless it is between 0 and 1."""
    value = check.number(name, rate, "a rate of smoothing")
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a rate of smoothing, 0 < rate < 1, got {rate!r}. Pass 0.5 for a start")
    return math.log(value / (1 - value))
