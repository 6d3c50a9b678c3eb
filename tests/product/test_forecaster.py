"""Forecasters: distributions beside SciPy's, windows by hand, DeepAR step by step, exponential smoothing in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from grid import KEY, place

import rnnjax
from rnnjax import models

RANDOM = np.random.default_rng(0)
LEVELS = (0.1, 0.5, 0.75)


def softplus(x):
    return np.log1p(np.exp(x))


# Distributions


@eqx.filter_jit
def facts(distribution, outputs, scale, targets):
    """Losses, means, and the mean and deviation of draws, of values at three places."""
    draws = jax.vmap(lambda key: distribution.sample(outputs, scale, key))(jax.random.split(KEY, 40_000))
    return (
        distribution.loss(outputs, scale, targets),
        distribution.mean(outputs, scale),
        draws.mean(0),
        draws.std(0),
    )


def of_scipy(distribution, outputs, scale):
    """The distribution of each value, frozen."""
    a, b, *c = np.moveaxis(outputs, -1, 0)
    match distribution:
        case models.Normal():
            return scipy.stats.norm(scale * a, scale * softplus(b))
        case models.StudentT():
            return scipy.stats.t(2 + softplus(c[0]), scale * a, scale * softplus(b))
        case models.NegativeBinomial():
            mean, shape = scale * softplus(a), 1e-4 + softplus(b) / np.sqrt(scale)
            return scipy.stats.nbinom(1 / shape, 1 / (1 + shape * mean))


@pytest.mark.parametrize("distribution", [models.Normal(), models.StudentT(), models.NegativeBinomial()], ids=repr)
def test_distributions_are_those_of_scipy(distribution):
    outputs = RANDOM.normal(size=(3, distribution.size))
    outputs[:, -1] += 2  # enough degrees of freedom for a deviation that settles
    scale, targets = np.array([1.0, 3.0, 20.0]), np.array([0.0, 4.0, 31.0])
    losses, means, drawn, spread = facts(distribution, place(outputs), place(scale), place(targets))
    expected = of_scipy(distribution, outputs, scale)
    log = expected.logpmf if isinstance(distribution, models.NegativeBinomial) else expected.logpdf
    np.testing.assert_allclose(losses, -log(targets), rtol=1e-8)  # so exact is the beta function of JAX
    np.testing.assert_allclose(means, expected.mean(), rtol=1e-9)
    np.testing.assert_allclose((drawn - expected.mean()) / expected.std(), 0, atol=0.03)
    np.testing.assert_allclose(spread, expected.std(), rtol=0.1)


@pytest.mark.parametrize(
    ("distribution", "outputs", "scale", "target"),
    [
        (models.NegativeBinomial(), [-12.0, -5.0], 1.0, 0.0),  # zero almost surely
        (models.NegativeBinomial(), [-9.0, -8.0], 1.0, 1.0),
        (models.NegativeBinomial(), [0.54, -3.0], 1e6, 1e6),
        (models.StudentT(), [0.0, 0.5, 1e4], 1.0, 1.0),
        (models.StudentT(), [0.0, 0.5, 1e6], 1.0, 1.0),
    ],
    ids=str,
)
def test_losses_of_extreme_parameters_hold_in_float32(distribution, outputs, scale, target):
    value_and_slope = lambda outputs, *rest: jax.value_and_grad(distribution.loss)(outputs, *rest)  # noqa: E731
    of = {dtype: [jnp.asarray(each, dtype) for each in (outputs, scale, target)] for dtype in ("float32", "float64")}
    loss, slope = value_and_slope(*of["float32"])
    expected, expected_slope = value_and_slope(*of["float64"])
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=0.02, atol=1e-4)


def test_quantiles_by_hand():
    outputs, scale, targets = np.array([[0.0, 2, 1]]), np.array([10.0]), np.array([12.0])
    family = models.Quantiles(LEVELS)
    losses, means, drawn, _ = facts(family, place(outputs), place(scale), place(targets))
    np.testing.assert_allclose(losses, [(0.1 * 1.2 + 0.5 * 0.8 + 0.75 * 0.2) / 3])
    np.testing.assert_array_equal(family.values(place(outputs), place(scale))[:, 0], [0, 10, 20])  # sorted
    np.testing.assert_allclose(means, [0.4 * 5 + 0.25 * 15 + 0.25 * 20])
    np.testing.assert_allclose(drawn, means, rtol=0.02)


@pytest.mark.parametrize("target", [-1.0, 0.5, np.nan])
def test_a_value_that_is_no_count_is_an_error(target):
    family, one = models.NegativeBinomial(), jnp.ones(())
    message = "targets: expected counts, 0 or more, for NegativeBinomial, .* Use Normal or StudentT"
    with pytest.raises(ValueError, match=message):
        family.loss(jnp.zeros(2), one, jnp.asarray(target))
    with pytest.raises(RuntimeError, match=message):
        jax.block_until_ready(jax.jit(family.loss)(jnp.zeros(2), one, jnp.asarray(target)))


# Windows


def test_windows_by_hand():
    features = [np.arange(5.0)[:, None], np.arange(3.0)[:, None]]
    made = models.windows([np.arange(1.0, 6), np.array([7.0, 8, 9])], 3, 2, features=features)
    np.testing.assert_array_equal(made.past, [[1, 2, 3], [0, 1, 2], [0, 0, 1], [0, 0, 7]])
    np.testing.assert_array_equal(made.future, [[4, 5], [3, 4], [2, 3], [8, 9]])
    np.testing.assert_array_equal(made.lengths, [3, 2, 1, 1])
    np.testing.assert_array_equal(made.features[1, :, 0], [0, 0, 1, 2, 3])
    strided = models.windows([np.arange(1.0, 8)], 2, 1, stride=3)
    np.testing.assert_array_equal(strided.future[:, 0], [7, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.windows([[1.0, 2]], 3, 2), r"series\[0\]: expected a series of more than horizon=2 steps, got"),
        (lambda: models.windows([[1.0, np.nan, 2]], 3, 1), r"series\[0\]: expected finite values, got some that are"),
        (lambda: models.windows([], 3, 1), "series: expected at least one, got none"),
        (lambda: models.windows([[1.0, 2]], 1, 1, features=[np.ones((3, 1))]), r"features: expected an array \[T, C\]"),
        (lambda: models.Quantiles((0.5, 0.5)), "levels: expected at least one level, .* Write"),
        (lambda: models.Quantiles(()), "levels: expected at least one level, .* Write"),
        (
            lambda: direct(models.Normal(), size=5),
            r"head: expected \[6\], the outputs of .* got \(5,\)\. Give its last",
        ),
        (lambda: es_rnn([np.ones(7)]), r"series\[0\]: expected at least two seasons of 4 steps, got \[7\]\. Leave out"),
        (lambda: es_rnn([np.zeros(9)]), r"series\[0\]: expected positive values, .* got 0\.0\. Add a constant"),
        (
            lambda: es_rnn([np.ones(9)], periods=(4, 2)),
            r"periods: expected each longer than the one before, got \[4, 2",
        ),
        (lambda: es_rnn([np.ones(9)], level_rate=1.0), "level_rate: expected a rate of smoothing, 0 < rate < 1, got 1"),
    ],
)
def test_what_makes_no_sense_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Forecasts of all steps at once


def direct(distribution, horizon=3, inputs=1, size=None):
    size = horizon * distribution.size if size is None else size
    return models.Forecaster(
        horizon, rnnjax.GRU(inputs, 4, key=KEY), eqx.nn.Linear(4, size, key=KEY, dtype=jnp.float32), distribution
    )


def test_a_short_past_is_the_past_alone_and_sizes_do_not_matter():
    past, future = place(np.array([5.0, 1, 2, 4, 3], np.float32)), place(np.array([1.0, 2, 3], np.float32))
    model = direct(models.Normal(), inputs=3)
    features = RANDOM.normal(size=(8, 2)).astype(np.float32)
    padded = np.where(np.arange(5) < 2, np.nan, past).astype(np.float32)

    @eqx.filter_jit
    def outcomes(model, past, padded, features):
        alone = model(past[2:], features=features[2:])
        marked = model(padded, length=3, features=features)
        larger = model(100 * past[2:], features=features[2:])

        def loss(model):
            batch = models.Windows(padded[None], jnp.asarray([3]), future[None], features[None])
            return models.forecaster_loss(model, None, batch, None)[0]

        return alone, marked, larger, *eqx.filter_value_and_grad(loss)(model)

    alone, marked, larger, loss, gradient = outcomes(model, past, padded, features)
    for got in (marked[0], larger[0]):
        np.testing.assert_allclose(got, alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([alone[1], marked[1], larger[1]], [3, 3, 300])
    np.testing.assert_allclose(loss, model.distribution.loss(*alone, future).mean(), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match=r"batch: expected Windows with a future \[B, 3\], got"):
        models.forecaster_loss(model, None, models.Windows(past[None], np.array([5])), None)


# DeepAR


def test_a_path_is_drawn_one_value_after_the_other():
    """Of a distribution that is a single value, a path is each answer as the next input."""
    model = models.DeepAR(
        rnnjax.GRU(2, 4, key=KEY), eqx.nn.Linear(4, 1, key=KEY, dtype=jnp.float32), models.Quantiles((0.5,))
    )
    past, features = np.array([9.0, 3, 1, 2], np.float32), RANDOM.normal(size=(7, 1)).astype(np.float32)
    scale = jnp.asarray(2.0, jnp.float32)

    @eqx.filter_jit
    def both(model, past, features):
        paths = model.paths(past, 3, 2, key=KEY, length=3, features=features)
        values = past[1:]
        for step in range(3):
            longer = jnp.append(values, 0)  # the model is asked for this value
            _, outputs = model(longer, None, scale, features=features[1 : 5 + step])
            values = jnp.append(values, scale * outputs[-1, 0])
        batch = models.Windows(past[None], jnp.asarray([3]), values[None, 3:], features[None])
        _, outputs = model(values, None, scale, features=features[1:])
        losses = model.distribution.loss(outputs, scale, values)
        return paths, values[3:], models.deepar_loss(model, None, batch, None)[0], losses.mean()

    paths, expected, loss, mean = both(model, past, features)
    np.testing.assert_allclose(paths, [expected, expected], rtol=1e-5)
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
    with pytest.raises(ValueError, match="features: expected 7 rows, for the past and the horizon, got 4"):
        model.paths(place(past), 3, 2, key=KEY, features=place(features[:4]))


# ES-RNN

HORIZON, WINDOW, PERIODS = 5, 3, (2, 4)
SERIES = [np.exp(RANDOM.normal(size=T)).astype(np.float32) for T in (14, 11)]


def es_rnn(series, periods=PERIODS, **options):
    head = eqx.nn.Linear(4, HORIZON * len(LEVELS), key=KEY, dtype=jnp.float32)
    quantiles = models.Quantiles(LEVELS)
    return models.ESRNN(
        HORIZON, rnnjax.GRU(WINDOW, 4, key=KEY), head, quantiles, series=series, periods=periods, **options
    )


def smoothed_by_hand(model, number, values):
    """Levels, the factor of each step, and a function that gives the factors known after a step."""
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, float)))  # noqa: E731
    a, rates = sigmoid(model.level_rate[number]), [sigmoid(rate[number]) for rate in model.season_rates]
    rows = [list(np.exp(np.asarray(season[number], float))) for season in model.seasons]  # factors of every step
    level, levels = None, []
    for t, y in enumerate(values):
        s = np.prod([row[t] for row in rows])
        level = y / s if level is None else a * y / s + (1 - a) * level
        for rate, row in zip(rates, rows, strict=True):
            row.append(rate * y / (level * s / row[t]) + (1 - rate) * row[t])
        levels.append(level)

    def factor(step, known):
        """The factor of a step, by those known after the step `known`."""
        found = 1.0
        for row, m in zip(rows, PERIODS, strict=True):
            found *= row[step - m * max(0, -(-(step - known - m) // m))]  # of the same phase, known by then
        return found

    return np.array(levels), np.array([np.prod([row[t] for row in rows]) for t in range(len(values))]), factor


def expected_of(model, number, values):
    """The forecast and the mean loss within a series, by NumPy around the network itself."""
    levels, factors, factor = smoothed_by_hand(model, number, values)
    logs, spread = np.log(values / factors), np.abs(np.log(values[2:] / values[:-2])).mean()
    inputs = np.zeros((len(values), WINDOW), np.float32)
    for t in range(len(values)):
        for place_, at in enumerate(range(t - WINDOW + 1, t + 1)):
            inputs[t, place_] = (logs[at] - np.log(levels[t])) / spread if at >= 0 else 0
    _, ys = rnnjax.unroll(model.network, None, inputs)
    outputs = np.asarray(jax.vmap(model.head)(ys), float).reshape(len(values), len(LEVELS), HORIZON).swapaxes(1, 2)
    T = len(values)
    ahead = np.array([factor(T - 1 + k, T - 1) for k in range(1, HORIZON + 1)])
    forecast = levels[-1] * ahead * np.exp(spread * np.sort(outputs[-1], axis=-1)).T
    losses = []
    for t in range(0, T - HORIZON, 2):
        if t < WINDOW - 1:
            continue
        for k in range(1, HORIZON + 1):
            error = np.log(values[t + k] / factor(t + k, t) / levels[t]) / spread - outputs[t, k - 1]
            losses.append(spread**0.5 * np.mean([max(p * e, (p - 1) * e) for p, e in zip(LEVELS, error, strict=True)]))
    return forecast, losses, np.mean(np.diff(np.log(levels), 2) ** 2)


def test_es_rnn_is_exponential_smoothing_around_a_network():
    model = es_rnn(SERIES, level_rate=0.3, season_rate=0.2)
    values, lengths = rnnjax.training.pad(SERIES, value=np.nan)
    numbers = np.arange(2)

    @eqx.filter_jit
    def outcomes(model, values):
        forecasts = jax.vmap(lambda number, values, length: model(number, values, length=length))
        loss = lambda model: models.es_rnn_loss(  # noqa: E731
            model, None, (numbers, values, lengths), None, stride=2, spread_power=0.5, level_penalty=0.5
        )[0]
        return forecasts(numbers, values, lengths), *eqx.filter_value_and_grad(loss)(model)

    forecasts, loss, gradient = outcomes(model, values)
    expected = [expected_of(model, number, series) for number, series in enumerate(SERIES)]
    for got, (forecast, _, _) in zip(forecasts, expected, strict=True):
        np.testing.assert_allclose(got, forecast, rtol=1e-4)
    all_losses = np.concatenate([losses for _, losses, _ in expected])
    penalty = 0.5 * np.mean([bend for _, _, bend in expected])
    np.testing.assert_allclose(loss, all_losses.mean() + penalty, rtol=1e-4)
    np.testing.assert_array_equal(gradient.spread, 0)
    trained = jax.tree.leaves(eqx.tree_at(lambda tree: tree.spread, gradient, None))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in trained)


def test_a_value_that_is_not_positive_is_an_error():
    model = es_rnn(SERIES, periods=())
    values = np.where(np.arange(11) == 4, 0, SERIES[1]).astype(np.float32)
    with pytest.raises(RuntimeError, match=r"values: expected positive, finite ones, got zero, .*\s?Add a constant"):
        jax.block_until_ready(eqx.filter_jit(model)(jnp.asarray(1), values))


def test_series_without_a_forecast_or_a_change_are_told():
    wave = 100 + 50 * np.sin(2 * np.pi * np.arange(96) / 24)
    model = es_rnn([wave, np.exp(RANDOM.normal(size=96))], periods=(24,))
    assert model.spread[0] == 1  # rounding is no change
    assert model.spread[1] != 1
    short = np.ones((1, WINDOW + HORIZON - 1), np.float32)
    with pytest.raises(ValueError, match=r"values: expected at least window \+ horizon = 8 steps.* Pass longer series"):
        models.es_rnn_loss(model, None, (np.zeros(1, int), short, None), None)
    with pytest.raises(RuntimeError, match=r"length: expected at least 1, got 0\. Leave out"):
        jax.block_until_ready(eqx.filter_jit(model)(jnp.asarray(0), np.ones(4, np.float32), length=jnp.asarray(0)))
