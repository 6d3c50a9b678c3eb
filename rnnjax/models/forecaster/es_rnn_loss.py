"""The loss of ES-RNN: its forecasts within series, and how much the levels bend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ... import check
from ...arrays import AnyArray, IntegerLike, PyTree
from ...checked import Checked
from ...engine import AbstractEngine
from ...engines.auto import Auto
from ...runtime_error import error_where
from ..batches import batch_parts
from .es_rnn import ESRNN


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
    level_penalty  of the wiggliness: the mean square of the second differences of log l_t
    """
    form = "(numbers, values, lengths), the places of the series in the model's list, and the series themselves"
    numbers, values, lengths = batch_parts(batch, form, numbers=1, values=2, lengths=None)
    check.sizes(stride=stride)
    power = check.nonnegative("spread_power", spread_power, "a power", "weights")
    penalty = check.nonnegative("level_penalty", level_penalty, "a weight", "penalty")
    keys = None if key is None else jax.random.split(key, len(numbers))
    one = lambda number, values, length, key: _losses(model, number, values, length, stride, engine, key)  # noqa: E731
    sums, counts, spread, wiggliness = jax.vmap(one)(numbers, values, lengths, keys)
    message = "lengths: expected a series of at least window + horizon steps, got none. Pass longer series"
    counts = error_where(counts, counts.sum() == 0, message)
    total = (sums * spread**power).sum() / jnp.maximum(counts.sum(), 1).astype(sums.dtype)
    return total + penalty * wiggliness.mean(), carry


def _losses(
    model: ESRNN,
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
    smoothed, spread, ys, end, values = model.run(number, values, length, engine, key)
    T = len(values)
    if not _forecasts(T, model.window, model.horizon, stride):
        least = model.window + model.horizon
        raise ValueError(
            f"values: expected at least window + horizon = {least} steps, and a multiple of stride = {stride} "
            f"among those that have both, got {T} steps. Pass longer series, or a smaller window or horizon"
        )
    logs, levels = jnp.log(values), jnp.log(smoothed.levels)
    seasons = [jnp.log(season) for season in smoothed.seasons]

    def target(k: int) -> Float[Array, " steps"]:
        """log y_{t+k} at t, less the level and the factors that are known at t."""
        known = (_shift(season, 1 + (k - 1) % period) for season, period in zip(seasons, model.periods, strict=True))
        return (_shift(logs, k) - levels - sum(known, start=jnp.zeros_like(levels)))[::stride]

    steps = jnp.arange(0, T, stride)
    known = (steps >= model.window - 1) & (steps + model.horizon < end)
    targets = jnp.stack([target(k) for k in range(1, model.horizon + 1)], axis=1)
    targets = jnp.where(known[:, None], targets, 0)
    losses = model.quantiles.loss(jax.vmap(model.outputs)(ys[::stride]), spread, targets).mean(1)
    bends = levels[2:] - 2 * levels[1:-1] + levels[:-2]
    inside = jnp.arange(2, T) < end
    wiggliness, count = jnp.where(inside, bends, 0) ** 2, jnp.maximum(inside.sum(), 1)
    bent = wiggliness.sum() / count.astype(levels.dtype)
    return jnp.where(known, losses, 0).sum(), known.sum(), spread, bent


def _forecasts(T: int, window: int, horizon: int, stride: int) -> bool:
    """Whether a step that is a multiple of `stride` has a whole window up to it and a whole horizon after it."""
    first = -(-(window - 1) // stride) * stride
    return first + horizon < T


def _shift(values: Float[Array, " T"], steps: int) -> Float[Array, " T"]:
    """values[t + steps] at t; zeros after the end."""
    return jnp.concatenate([values[steps:], jnp.zeros(min(steps, len(values)), values.dtype)])
