"""Forecasts of monthly sunspots, airline passengers or a share price, by a recurrent network and by simple baselines.

    RNNJAX_DATA=folder python examples/forecasting.py --series sunspots --cell gru --picture runs/sunspots.png
    RNNJAX_DATA=folder python examples/forecasting.py --series airline --cell autoregression
    python examples/forecasting.py                                  on a share's price, which comes with matplotlib

The first two thirds of a series are for training; the last fifth of these is the validation set. The last third is
forecast, 1 to 12 steps ahead, from the steps before; scales are computed on the training set, too. The input is the
number of sunspots, or the change of the logarithm of passengers or prices; the output is the change to the next step.
The recurrent network is compared with a linear layer of the last step (`linear`) and of the last 24
(`autoregression`).

The baselines are the last value, and the value a year before. Often no network is better than these.

RNNJAX_DATA is a folder with sunspots_airline/monthly-sunspots.csv and sunspots_airline/airline-passengers.csv, from
https://github.com/jbrownlee/Datasets.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from common.command_line import SEED, choice, command_line, main, option, picture_option
from common.pictures import save
from common.series import SERIES, Levels, LogChanges, Series, naive, split
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

import rnnjax

B, UNITS, AHEAD, LAGS, LEARNING_RATE = 32, 32, 12, 24, 1e-3
EVERY, PATIENCE = 50, 10
PUBLISHED = {"airline-passengers": "47.53, of an LSTM, in nearly these months (Brownlee 2016)"}


def recurrent(cell: Callable[..., rnnjax.AbstractCell], key: PRNGKeyArray) -> rnnjax.AbstractNetwork:
    """A cell, and a linear layer on its outputs."""
    keys = jax.random.split(key)
    answer = rnnjax.TimeDistributed(eqx.nn.Linear(UNITS, 1, key=keys[1]), UNITS)
    return rnnjax.Stack([cell(1, UNITS, key=keys[0]), answer])


NETWORKS: dict[str, Callable[[PRNGKeyArray], rnnjax.AbstractNetwork]] = {
    "gru": partial(recurrent, rnnjax.GRU),
    "lstm": partial(recurrent, rnnjax.LSTM),
    "linear_rnn": partial(recurrent, rnnjax.LinearRNN),
    "autoregression": lambda key: rnnjax.networks.CausalConvolution(1, 1, window=LAGS, key=key),
    "linear": lambda key: rnnjax.TimeDistributed(eqx.nn.Linear(1, 1, key=key), 1),
}


parse = command_line(
    __doc__,
    choice("--series", SERIES, "sunspots"),
    choice("--cell", NETWORKS, "gru"),
    option("--steps", type=int, default=3000, help="updates of the weights, at most (%(default)s)"),
    SEED,
    picture_option("forecasts of the test part"),
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of a network, the best by the part to choose by."""
    series = SERIES[options.series]()
    _, test = split(len(series.values))
    model, scaling = train(series, NETWORKS[options.cell], options)
    said, rivals = predict(model, scaling, series, test, AHEAD), naive(series, test, AHEAD)
    errors = {name: error(series, test, forecast) for name, forecast in rivals.items()}
    gains = {name: compare(series, test, said, forecast) for name, forecast in rivals.items()}
    own = error(series, test, said)
    print(f"{series.name}, its last {len(test)} steps; root mean square errors 1 and {AHEAD} steps ahead:")
    for name, ahead in {options.cell: own, **errors}.items():
        beside = verdict(options.cell, gains[name]) if name in gains else ""
        print(f"  {name:22}{ahead[0]:9.2f}{ahead[-1]:9.2f}   {beside}".rstrip())
    if series.name in PUBLISHED:
        print(f"published, 1 step ahead: {PUBLISHED[series.name]}")
    if options.picture is not None:
        draw(series, test, said, options)
    record = {"task": series.name, "cell": options.cell, "seed": options.seed, "weights": rnnjax.diagnose.count(model)}
    yield record | {
        "test": own[0],
        "persistence": errors["the last value"][0],
        "ahead": own,
        "naive": errors,
        "gains": gains,
    }


def train(
    series: Series, network: Callable[[PRNGKeyArray], rnnjax.AbstractNetwork], options: argparse.Namespace
) -> tuple[rnnjax.models.Tagger, Levels | LogChanges]:
    """The network that is best by the part to choose by, and the scale of what it reads."""
    chosen_by, _ = split(len(series.values))
    past, window = series.values[: chosen_by.start], series.window
    if len(past) < window + 2:
        raise ValueError(f"{series.name}: expected at least {window + 2} steps to learn from, got {len(past)}")
    scaling = series.scaling.fit(past)
    codes = scaling.encode(past).astype(np.float32)[:, None]
    windows = np.stack([codes[at : at + window + 1] for at in range(len(codes) - window)])
    examples = rnnjax.models.Sequences(windows[:, :-1], windows[:, 1:])
    keys = jax.random.split(jax.random.key(options.seed))
    fitted = rnnjax.training.fit(
        rnnjax.models.Tagger(scaling.connect(network(keys[0])), jax.nn.identity),
        partial(rnnjax.models.tagger_loss, objective=rnnjax.models.squared_error),
        rnnjax.training.minibatches(examples, min(B, len(windows)), seed=options.seed),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)),
        steps=options.steps,
        key=keys[1],
        validate=lambda model: error(series, chosen_by, predict(model, scaling, series, chosen_by, 1))[0],
        every=EVERY,
        patience=PATIENCE,
    )
    return fitted.model, scaling


def predict(
    model: rnnjax.models.Tagger, scaling: Levels | LogChanges, series: Series, part: range, ahead: int
) -> np.ndarray:
    """Forecasts [len(part), ahead]: row n is of the step part[n] and those after it, by the window before part[n]."""
    steps, codes = np.asarray(part), scaling.encode(series.values)
    windows = codes[steps[:, None] - 1 + np.arange(-series.window, 0)]  # codes[t - 1] is of the value of step t
    said = forecast(model, windows[:, :, None].astype(np.float32), ahead)
    return scaling.decode(series.values[steps - 1], np.asarray(said[:, :, 0], np.float64))


@eqx.filter_jit
def forecast(model: rnnjax.models.Tagger, windows: Any, ahead: int) -> Array:
    """The codes [windows, ahead, 1] that follow each window."""
    return jax.vmap(lambda window: rnnjax.models.forecast(model, window, ahead))(windows)


def misses(series: Series, part: range, said: np.ndarray, step: int) -> np.ndarray:
    """The errors of the forecasts: column 0 for the next step, column 1 for the one after, and so on."""
    return said[: len(part) - step, step] - series.values[part.start + step : part.stop]


def error(series: Series, part: range, said: np.ndarray) -> list[float]:
    """The root of the mean square of these, column by column."""
    return [float(np.mean(misses(series, part, said, step) ** 2) ** 0.5) for step in range(said.shape[1])]


def compare(series: Series, part: range, said: np.ndarray, rival: np.ndarray) -> float:
    """The difference of the squared errors one step ahead, in standard errors (Diebold & Mariano 1995)."""
    gains = misses(series, part, rival, 0) ** 2 - misses(series, part, said, 0) ** 2
    return float(gains.mean()) / max(float(gains.std()) / len(gains) ** 0.5, np.finfo(float).tiny)


def verdict(cell: str, gain: float) -> str:
    """The difference in words."""
    if gain > 2:
        return f"{cell} is better, one step ahead, by {gain:.1f} standard errors"
    return f"{cell} is {'WORSE' if gain < -2 else 'NO BETTER'}, one step ahead: {gain:+.1f} standard errors"


def draw(series: Series, test: range, said: np.ndarray, options: argparse.Namespace) -> None:
    """The test part, forecasts of one step, and forecasts of all twelve from every twelfth step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(test, series.values[test.start :], color="black", label="what came")
    axes.plot(test, said[:, 0], color="tab:blue", label=f"{options.cell}, 1 step ahead")
    for row in range(0, len(test) - AHEAD + 1, AHEAD):
        label = f"{options.cell}, up to {AHEAD} steps ahead" if row == 0 else None
        axes.plot(test[row : row + AHEAD], said[row], color="tab:orange", label=label)
    axes.set(title=series.name, xlabel="step")
    axes.legend()
    save(figure, options.picture)


if __name__ == "__main__":
    main(parse, run)
