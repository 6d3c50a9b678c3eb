"""Forecasts of the M4 competition's hourly or weekly series by an ES-RNN (Smyl 2020), with bands.

    RNNJAX_DATA=folder python examples/m4.py --frequency hourly --picture runs/m4.png
    RNNJAX_DATA=folder python examples/m4.py --frequency weekly
    python examples/m4.py                                                   on series that are made up

All series are learned together: each has smoothing rates and seasonal factors of its own, and all share a stack of
dilated LSTMs, which forecasts quantiles of the whole horizon at every step. The `future` of each series, which comes
after those, is the test part. The errors are the competition's, sMAPE and MASE, beside those of Naive2 and the seasonal
naive forecast; and the coverage of the band of 95 %, and the CRPS over the mean of the test part.

RNNJAX_DATA is a folder with m4/hourly.npz and m4/weekly.npz, made of the files of
https://github.com/Mcompetitions/M4-methods: `values` of all training series one after the other, `offsets` [N + 1] of
where each begins, and `future` [N, horizon].
"""

import argparse
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from common import m4
from common.command_line import SEED, choice, command_line, main, option, picture_option
from common.pictures import save
from jaxtyping import PRNGKeyArray
from matplotlib.figure import Figure

import rnnjax
from rnnjax.networks import Dilated
from rnnjax.training import coverage, crps, mase, smape

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MEDIAN, LOWER, UPPER = 3, 0, 6
SPREAD_POWER = 0.5  # between the MASE and the sMAPE
STRIDE = 7  # a forecast at every seventh step is learned from: in time, all phases of a day
FINE = (np.arange(50) + 0.5) / 50  # levels of equally likely values, for the CRPS


class Setting(NamedTuple):
    """The settings of a frequency."""

    periods: tuple[int, ...]
    window: int
    longest: int  # the latest steps of each series that are learned from
    dilations: tuple[tuple[int, ...], ...]  # of the layers of each block; blocks after the first are residual
    units: int
    batch: int
    steps: int
    learning_rate: float
    level_rate: float  # of smoothing, to start from
    season_rate: float = 0.3


SETTINGS = {
    "hourly": Setting((24, 168), 24, 672, ((1, 4), (24, 168)), 32, 32, 250, 5e-3, 0.05),
    "weekly": Setting((), 65, 520, ((1, 4), (13, 52)), 32, 32, 200, 5e-3, 0.5),
}
PUBLISHED = {"hourly": "9.328, 0.893", "weekly": "7.817, 2.356"}

parse = command_line(
    __doc__,
    choice("--frequency", SETTINGS, "hourly"),
    option("--steps", type=int, help="updates of the weights (by the frequency)"),
    SEED,
    picture_option("some forecasts and their bands"),
)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The record of an ES-RNN, and of the forecasts that need no learning."""
    series, setting = m4.read(options.frequency), SETTINGS[options.frequency]
    model = train(series, setting, options)
    quantiles = predict(model, series, setting)  # [N, levels, horizon]
    errors = {"ES-RNN": judge(series, quantiles[:, MEDIAN])}
    for name, forecast in {"Naive2": m4.naive2, "seasonal naive": m4.seasonal_naive}.items():
        said = np.stack([forecast(past, series.season, series.future.shape[1]) for past in series.past])
        errors[name] = judge(series, said) | {"crps": crps(said[None], series.future) / series.future.mean()}
    covered = coverage(quantiles[:, LOWER], quantiles[:, UPPER], series.future)
    errors["ES-RNN"]["crps"] = crps(equally_likely(quantiles), series.future) / series.future.mean()
    print(f"{series.name}, {len(series.past)} of them, {series.future.shape[1]} steps ahead; sMAPE, MASE and CRPS:")
    for name, error in errors.items():
        print(f"  {name:16}{error['smape']:10.3f}{error['mase']:10.3f}{error['crps']:10.4f}")
    print(f"the band of 95 % holds {covered:.1%}")
    if series.name.startswith("M4"):
        print(f"sMAPE and MASE of the winner (Smyl 2020): {PUBLISHED[options.frequency]}")
    if options.picture is not None:
        draw(series, quantiles, options)
    record = {"task": series.name, "seed": options.seed, "weights": rnnjax.diagnose.count(model)}
    yield (
        record
        | errors["ES-RNN"]
        | {
            "test": errors["ES-RNN"]["smape"],
            "coverage": covered,
            "naive_crps": errors["seasonal naive"]["crps"],
            "naive": errors,
        }
    )


def build(series: m4.M4, setting: Setting, key: PRNGKeyArray) -> rnnjax.models.ESRNN:
    """An ES-RNN: blocks of dilated LSTMs, and a linear layer on their outputs."""
    inputs, blocks = setting.window, []
    for number, dilations in enumerate(setting.dilations):
        layers = []
        for dilation in dilations:
            key, own = jax.random.split(key)
            layers.append(Dilated(rnnjax.LSTM(inputs, setting.units, key=own), dilation))
            inputs = setting.units
        block = rnnjax.Stack(layers)
        blocks.append(rnnjax.residual(block) if number else block)
    horizon = series.future.shape[1]
    head = eqx.nn.Linear(setting.units, horizon * len(LEVELS), key=key)
    return rnnjax.models.ESRNN(
        horizon,
        rnnjax.Stack(blocks),
        head,
        rnnjax.models.Quantiles(LEVELS),
        series=cut(series, setting),
        periods=setting.periods,
        level_rate=setting.level_rate,
        season_rate=setting.season_rate,
    )


def cut(series: m4.M4, setting: Setting) -> list[np.ndarray]:
    """The latest steps of each series."""
    return [past[-setting.longest :] for past in series.past]


def batch_of_all(series: m4.M4, setting: Setting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, values and lengths of all series."""
    values, lengths = rnnjax.training.pad(cut(series, setting), value=1.0)
    return np.arange(len(values)), values.astype(np.float32), lengths


def train(series: m4.M4, setting: Setting, options: argparse.Namespace) -> rnnjax.models.ESRNN:
    """The model after all steps. Its learning rate falls to zero; that of smoothing rates is ten times as high."""
    keys = jax.random.split(jax.random.key(options.seed))
    steps = setting.steps if options.steps is None else options.steps
    model, examples = build(series, setting, keys[0]), batch_of_all(series, setting)
    labels = jax.tree.map(lambda _: "others", eqx.filter(model, eqx.is_inexact_array))
    rates = "rates", ("rates",) * len(setting.periods)
    labels = eqx.tree_at(lambda model: (model.level_rate, model.season_rates), labels, rates)
    rate = partial(optax.cosine_decay_schedule, decay_steps=steps)
    optimisers: dict[Hashable, optax.GradientTransformation] = {
        "others": optax.adam(rate(setting.learning_rate)),
        "rates": optax.adam(rate(10 * setting.learning_rate)),
    }
    fitted = rnnjax.training.fit(
        model,
        partial(rnnjax.models.es_rnn_loss, stride=STRIDE, spread_power=SPREAD_POWER),
        rnnjax.training.minibatches(examples, min(setting.batch, len(series.past)), seed=options.seed),
        optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(optimisers, lambda _: labels)),
        steps=steps,
        key=keys[1],
    )
    return fitted.model


def predict(model: rnnjax.models.ESRNN, series: m4.M4, setting: Setting) -> np.ndarray:
    """The quantiles [N, levels, horizon] of the test part."""
    said = eqx.filter_jit(eqx.filter_vmap(lambda number, values, length: model(number, values, length=length)))
    return np.asarray(said(*batch_of_all(series, setting)), np.float64)


def judge(series: m4.M4, forecasts: np.ndarray) -> dict[str, float]:
    """The errors of the competition."""
    return {
        "smape": smape(forecasts, series.future),
        "mase": mase(forecasts, series.future, series.past, series.season),
    }


def equally_likely(quantiles: np.ndarray) -> np.ndarray:
    """Values [S, N, horizon] between the quantiles."""
    return np.apply_along_axis(lambda values: np.interp(FINE, LEVELS, values), 1, quantiles).swapaxes(0, 1)


def draw(series: m4.M4, quantiles: np.ndarray, options: argparse.Namespace) -> None:
    """The end of six series, what came, and the median with its band."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    horizon = series.future.shape[1]
    shown = np.linspace(0, len(series.past) - 1, 6).astype(int)
    for axes, number in zip(figure.subplots(2, 3).flat, shown, strict=True):
        past, ahead = series.past[number][-3 * horizon :], np.arange(horizon)
        axes.plot(np.arange(-len(past), 0), past, color="black", linewidth=0.8)
        axes.plot(ahead, series.future[number], color="black", linewidth=0.8, linestyle="--", label="what came")
        axes.plot(ahead, quantiles[number, MEDIAN], color="tab:blue", label="median")
        axes.fill_between(ahead, quantiles[number, LOWER], quantiles[number, UPPER], alpha=0.3, label="95 %")
        axes.set(title=f"series {number + 1}", xlabel="step")
    figure.axes[0].legend()
    save(figure, options.picture)


if __name__ == "__main__":
    main(parse, run)
