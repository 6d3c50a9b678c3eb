"""ES-RNN: exponential smoothing of every series, and one network for all of them."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ... import check
from ...arrays import AnyArray, IntegerLike, Length, PyTree, look_up
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...marks import valid_steps
from ...named import as_module
from ...network import Layer
from ...runtime_error import error_where
from ...unroll import unroll
from ..batches import batch_parts
from .quantiles import Quantiles
from .smoothing import Seasons, Smoothed, initial_seasons, smooth
from .windows import check_head, past_windows


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
        valid, _, smoothed, spread, ys = self._run(number, values, length, engine, key)
        if valid is not None:
            ys = error_where(ys, valid < 1, "length: expected at least 1, got 0. Leave out series without a value")
        ahead = jnp.arange(self.horizon)
        factors = [season[ahead % len(season)] for season in smoothed.last.seasons]
        scale = math.prod(factors, start=smoothed.last.level)
        outputs = self._head(ys[(len(values) if valid is None else valid) - 1])
        return scale * jnp.exp(self.quantiles.values(outputs, spread))

    def losses(
        self,
        number: Int[Array, ""],
        values: Float[Array, " T"],
        length: IntegerLike | None,
        stride: int,
        engine: AbstractEngine,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """The sum of the losses of the forecasts within a series, their number, its spread, and the level's wiggliness.

        Forecasts are made at every `stride`-th step, where there are a whole window up to it and a whole horizon after
        it. The wiggliness is the mean square of the second differences of log l_t.
        """
        valid, values, smoothed, spread, ys = self._run(number, values, length, engine, key)
        T = len(values)
        if not _forecasts(T, self.window, self.horizon, stride):
            least = self.window + self.horizon
            raise ValueError(
                f"values: expected at least window + horizon = {least} steps, and a multiple of stride = {stride} "
                f"among those that have both, got {T} steps. Pass longer series, or a smaller window or horizon"
            )
        end = T if valid is None else valid
        logs, levels = jnp.log(values), jnp.log(smoothed.levels)
        seasons = [jnp.log(season) for season in smoothed.seasons]

        def target(k: int) -> Float[Array, " steps"]:
            """log y_{t+k} at t, less the level and the factors that are known at t."""
            known = (_shift(season, 1 + (k - 1) % period) for season, period in zip(seasons, self.periods, strict=True))
            return (_shift(logs, k) - levels - sum(known, start=jnp.zeros_like(levels)))[::stride]

        steps = jnp.arange(0, T, stride)
        known = (steps >= self.window - 1) & (steps + self.horizon < end)
        targets = jnp.stack([target(k) for k in range(1, self.horizon + 1)], axis=1)
        targets = jnp.where(known[:, None], targets, 0)
        losses = self.quantiles.loss(jax.vmap(self._head)(ys[::stride]), spread, targets).mean(1)
        bends = levels[2:] - 2 * levels[1:-1] + levels[:-2]
        inside = jnp.arange(2, T) < end
        wiggliness, count = jnp.where(inside, bends, 0) ** 2, jnp.maximum(inside.sum(), 1)
        bent = wiggliness.sum() / count.astype(levels.dtype)
        return jnp.where(known, losses, 0).sum(), known.sum(), spread, bent

    @property
    def periods(self) -> tuple[int, ...]:
        """The periods of the seasons in steps."""
        return tuple(season.shape[-1] for season in self.seasons)

    @property
    def window(self) -> int:
        """W, the values that the network reads at each step."""
        return self.network.input_type().shape[0]

    def _run(self, number, values, length, engine, key) -> tuple[Length | None, Array, Smoothed, Array, Array]:
        """The length, the values with ones after it, their smoothing and spread, and the outputs of the network."""
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
        return valid, values, smoothed, spread, ys

    def _head(self, y: Array) -> Float[Array, "horizon P"]:
        """The outputs for all steps of the horizon, of one output of the network."""
        return self.head(y).reshape(self.quantiles.size, self.horizon).T  # one level after the other: without strides


def es_rnn_loss(
    model: ESRNN,
    carry: PyTree,
    batch: Checked[tuple[AnyArray, AnyArray, AnyArray | None]],
    key: PRNGKeyArray | None,
    *,
    stride: int = 1,
    spread_power: float = 0.0,
    level_penalty: float = 0.0,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], PyTree]:
    """The mean pinball loss of all forecasts within a batch of series, and the carry: a loss for `fit`.

    batch          `(numbers, values, lengths)`, [B], [B, T] and [B]; lengths may be None
    key            for dropout in the network, drawn anew for each series; None: nothing is dropped
    stride         the steps from one forecast to the next: a larger one takes less time. One that shares no factor with
                   a period sees all phases of it
    spread_power   0 measures errors in units of the spread, as the MASE does, 1 in the logarithm, as the sMAPE does;
                   numbers in between weigh both. Losses are multiplied by spread ** spread_power
    level_penalty  of the wiggliness of the levels: see `ESRNN.losses`
    """
    form = "(numbers, values, lengths), the places of the series in the model's list, and the series themselves"
    numbers, values, lengths = batch_parts(batch, form, numbers=1, values=2, lengths=None)
    check.sizes(stride=stride)
    power = check.nonnegative("spread_power", spread_power, "a power", "weights")
    penalty = check.nonnegative("level_penalty", level_penalty, "a weight", "penalty")
    keys = None if key is None else jax.random.split(key, len(numbers))
    one = lambda number, values, length, key: model.losses(number, values, length, stride, engine, key)  # noqa: E731
    sums, counts, spread, wiggliness = jax.vmap(one)(numbers, values, lengths, keys)
    message = "lengths: expected a series of at least window + horizon steps, got none. Pass longer series"
    counts = error_where(counts, counts.sum() == 0, message)
    total = (sums * spread**power).sum() / jnp.maximum(counts.sum(), 1).astype(sums.dtype)
    return total + penalty * wiggliness.mean(), carry


def _forecasts(T: int, window: int, horizon: int, stride: int) -> bool:
    """Whether a step that is a multiple of `stride` has a whole window up to it and a whole horizon after it."""
    first = -(-(window - 1) // stride) * stride
    return first + horizon < T


def _shift(values: Float[Array, " T"], steps: int) -> Float[Array, " T"]:
    """values[t + steps] at t; zeros after the end."""
    return jnp.concatenate([values[steps:], jnp.zeros(min(steps, len(values)), values.dtype)])


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
