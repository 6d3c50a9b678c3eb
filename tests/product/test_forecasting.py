"""Series are forecast from their past alone, beside forecasts that need no learning; digits are read row by row."""

import digit_rows
import equinox as eqx
import forecasting
import jax
import numpy as np
import pytest
from common import series

import rnnjax

pytestmark = pytest.mark.usefixtures("as_it_comes")


def run(example, *words):
    (record,) = example.run(example.parse(words))
    return record


def write(path, values):
    """A file of so many months, from 1949 on."""
    lines = [f'"{1949 + month // 12}-{month % 12 + 1:02}",{value}' for month, value in enumerate(values)]
    path.write_text("\n".join(['"Month","Value"', *lines]))
    return path


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Passengers that grow by one a month, and by ten every December; sunspots that come and go."""
    (tmp_path / "sunspots_airline").mkdir()
    months = np.arange(96)
    write(tmp_path / "sunspots_airline" / "airline-passengers.csv", 100 + months + 10 * (months % 12 == 11))
    months = np.arange(264)
    write(tmp_path / "sunspots_airline" / "monthly-sunspots.csv", np.round(50 - 50 * np.cos(months / 10), 3))
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))


def line_of(values, **options):
    return series.Series("a line", np.asarray(values, float), series.LogChanges, 12, **options)


# Files


def test_a_file_is_read_month_by_month(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('"Month","Sunspots"\n"1749-11",58.0\n"1749-12",0\n1750-01,7e1\n')
    np.testing.assert_array_equal(series.read_file(path), [58, 0, 70])


@pytest.mark.parametrize("bad", ["nan", "", "?", "inf", "1,2"])
def test_a_value_that_is_none_is_named(tmp_path, bad):
    with pytest.raises(ValueError, match=r"x\.csv, line 4: expected a month and a number, as .* got '\"1949-03\""):
        series.read_file(write(tmp_path / "x.csv", [1, 2, bad, 4]))


@pytest.mark.parametrize("line", ["", "a footer", '"1949-13",4', '"1949-00",4'])
def test_a_line_that_is_no_month_is_named(tmp_path, line):
    path = tmp_path / "x.csv"
    path.write_text(f'"Month","Value"\n"1949-12",1\n{line}\n"1950-01",2\n')
    with pytest.raises(ValueError, match=r"x\.csv, line 3: expected a month and a number"):
        series.read_file(path)


def test_a_gap_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('"Month","Value"\n"1949-11",1\n"1949-12",1\n"1950-02",2\n')
    with pytest.raises(ValueError, match=r"x\.csv, line 4: expected 1950-01, the month after, got '\"1950-02\",2'"):
        series.read_file(path)


def test_a_share_stands_in(capsys):
    share = series.SERIES["airline"]()
    assert share.name == "a share of Google"
    assert share.values.shape == (1047,)
    assert "RNNJAX_DATA is not set: the price of a share stands in; see --help" in capsys.readouterr().out


# Parts and scales


def test_parts_follow_one_another():
    for count in (96, 97, 98, 144, 2820):
        chosen_by, test = series.split(count)
        assert chosen_by.stop == test.start
        assert test.stop == count
        assert abs(len(test) - count / 3) <= 1
        assert abs(len(chosen_by) - count * 2 / 15) <= 1


@pytest.mark.parametrize("scaling", [series.Levels, series.LogChanges])
def test_codes_are_of_unit_scale_and_lead_back(scaling):
    values = np.random.default_rng(0).uniform(1, 3, 200)
    scale = scaling.fit(values)
    codes = scale.encode(values)
    assert len(codes) == 199
    np.testing.assert_allclose([codes.mean(), codes.std()], [0, 1], atol=0.02)
    np.testing.assert_allclose(scale.decode(values[:1], codes[None])[0], values[1:], rtol=1e-12)
    np.testing.assert_allclose(scale.decode(values[9:11], codes[[[9, 10], [10, 11]]])[:, 1], values[11:13], rtol=1e-12)


def test_what_has_no_scale_or_no_logarithm_is_said():
    with pytest.raises(ValueError, match=r"values: expected some to learn from that differ, got 3 of 2\.0"):
        series.Levels.fit(np.full(3, 2.0))
    with pytest.raises(
        ValueError, match=r"values: expected all above zero, to take logarithms of, got 0\.0 among them"
    ):
        series.LogChanges.fit(np.array([1.0, 0.0, 2.0]))


# What needs no learning


def test_naive_forecasts_are_those_by_hand():
    values = [100.0 + month for month in range(30)]
    said = series.naive(line_of(values, yearly=True), range(20, 30), 12)
    np.testing.assert_array_equal(said["the last value"][:2], [[119] * 12, [120] * 12])
    np.testing.assert_array_equal(said["the value a year ago"][1], range(109, 121))
    np.testing.assert_allclose(said["a year ago and growth"][1], np.arange(109, 121) * 120 / 108)
    assert list(series.naive(line_of(values), range(20, 30), 12)) == ["the last value"]


def test_errors_are_those_by_hand():
    """A line is missed by as many steps as it is forecast ahead, whatever lies beyond its end."""
    line, part = line_of(range(100, 130), yearly=True), range(20, 30)
    said = series.naive(line, part, 9)
    np.testing.assert_allclose(forecasting.error(line, part, said["the last value"]), range(1, 10))
    np.testing.assert_allclose(forecasting.error(line, part, said["the value a year ago"]), [12] * 9)


def test_a_gain_is_of_so_many_standard_errors():
    line, part = line_of([1.0, 1, 1, 1, 1, 1]), range(2, 6)
    said, rival = np.array([[1.0], [1], [2], [1]]), np.array([[2.0], [1], [1], [3]])  # squared: 0 0 1 0 and 1 0 0 4
    np.testing.assert_allclose(forecasting.compare(line, part, said, rival), 1 / (np.std([1, 0, -1, 4]) / 2))
    assert forecasting.compare(line, part, said, said) == 0
    assert "gru is better, one step ahead, by 3.2 standard errors" in forecasting.verdict("gru", 3.21)
    assert "gru is NO BETTER, one step ahead: +1.9" in forecasting.verdict("gru", 1.9)
    assert "gru is WORSE, one step ahead: -2.5" in forecasting.verdict("gru", -2.5)


# The network


@pytest.mark.parametrize("scaling", [series.Levels, series.LogChanges])
def test_a_network_that_says_nothing_is_the_last_value(scaling):
    """But for the mean growth, where it reads changes: codes, windows and forecasts are those of the right steps."""
    values = np.random.default_rng(0).uniform(1, 2, 60)
    some, part = series.Series("some", values, scaling, 12), range(40, 60)
    scale = scaling.fit(values[:30])
    silent = rnnjax.TimeDistributed(lambda x: 0 * x, 1)
    said = forecasting.predict(rnnjax.models.Tagger(scale.connect(silent), rnnjax.cells.linear), scale, some, part, 3)
    growth = np.exp(scale.mean * np.arange(1, 4)) if scaling is series.LogChanges else 1.0
    np.testing.assert_allclose(said, series.naive(some, part, 3)["the last value"] * growth, rtol=1e-6)


@pytest.mark.usefixtures("folder")
def test_the_future_changes_no_scale_no_weight_and_no_forecast():
    """All but the first step of the test part is tripled: forecasts from before that are what they were."""
    options = forecasting.parse(["--steps", "3"])
    airline = series.SERIES["airline"]()
    _, test = series.split(len(airline.values))
    tripled = airline._replace(values=np.where(np.arange(96) > test.start, 3 * airline.values, airline.values))
    fitted = [forecasting.train(some, forecasting.NETWORKS["autoregression"], options) for some in (airline, tripled)]
    said = [forecasting.predict(*pair, some, test, 12) for pair, some in zip(fitted, (airline, tripled), strict=True)]
    assert fitted[0][1] == fitted[1][1]
    np.testing.assert_array_equal(said[0][:2], said[1][:2])
    assert (said[0][3] != said[1][3]).all()


@pytest.mark.usefixtures("folder")
def test_passengers_are_forecast_beside_the_last_value_and_the_last_year(capsys):
    record = run(forecasting, "--series", "airline", "--cell", "autoregression", "--steps", "3")
    jumps = [11 if month % 12 == 11 else -9 if month % 12 == 0 else 1 for month in range(64, 96)]
    np.testing.assert_allclose(record["naive"]["the last value"][0], np.mean(np.square(jumps)) ** 0.5)
    np.testing.assert_allclose(record["naive"]["the value a year ago"], [12] * 12)
    assert record["test"] == record["ahead"][0]
    assert len(record["ahead"]) == 12
    out = capsys.readouterr().out
    assert "airline-passengers, its last 32 steps; root mean square errors 1 and 12 steps ahead:" in out
    assert "  the value a year ago      12.00    12.00   autoregression is " in out


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_sunspots_are_learned_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(forecasting, "LEARNING_RATE", 1e-2)
    picture = tmp_path / "pictures" / "sunspots.png"
    record = run(forecasting, "--cell", "autoregression", "--steps", "150", "--picture", str(picture))
    assert record["test"] < record["naive"]["the last value"][0] / 2
    assert picture.stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "autoregression is better, one step ahead, by" in out
    assert list(record["naive"]) == ["the last value"]


def test_a_series_that_is_too_short_is_said(monkeypatch, tmp_path):
    (tmp_path / "sunspots_airline").mkdir()
    write(tmp_path / "sunspots_airline" / "airline-passengers.csv", range(1, 61))
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="airline-passengers: expected at least 38 steps to learn from, got 32"):
        run(forecasting, "--series", "airline")


@pytest.mark.parametrize("cell", forecasting.NETWORKS)
def test_every_network_says_one_number_a_step(cell):
    def run(key, xs):
        return rnnjax.unroll(rnnjax.residual(forecasting.NETWORKS[cell](key)), None, xs)

    _, ys = jax.eval_shape(run, jax.random.key(0), np.zeros((5, 1), np.float32))
    assert ys.shape == (5, 1)


# Digits


def test_images_are_sequences_of_rows():
    sequences = digit_rows.rows(np.arange(32).reshape(2, 16, 1), np.array([3, 4]))
    np.testing.assert_array_equal(sequences.xs[1, 2], [24, 25, 26, 27])
    np.testing.assert_array_equal(sequences.targets, [3, 4])


@pytest.mark.parametrize("name", digit_rows.MODELS)
def test_the_linear_layer_knows_no_order_and_the_others_do(name):
    random = np.random.default_rng(1)
    form = eqx.filter_eval_shape(digit_rows.MODELS[name], 8, jax.random.key(0))
    model = jax.tree.map(
        lambda leaf: 0.2 * random.normal(size=leaf.shape).astype(np.float32) if hasattr(leaf, "shape") else leaf, form
    )
    xs = random.normal(size=(8, 8)).astype(np.float32)
    one, other = np.asarray(eqx.filter_jit(eqx.filter_vmap(model))(np.stack([xs, xs[::-1]])))
    assert one.shape == (10,)
    assert np.allclose(one, other, atol=1e-6) == (name == "linear")


def test_pixels_are_dropped_at_the_rate_of_the_recipe(monkeypatch):
    monkeypatch.setattr(rnnjax.models, "classifier_loss", lambda *of: of[2].xs)
    batch = rnnjax.models.Sequences(np.ones((10, 10, 10), np.float32), np.zeros(10, int))
    left = [digit_rows.loss(None, None, batch, jax.random.key(0), dropout=dropout) for dropout in (0.0, 0.2)]
    np.testing.assert_array_equal(left[0], 1)
    assert set(np.asarray(left[1]).ravel().tolist()) == {0, 1.25}
    assert np.mean(left[1]) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "least", "most"), [("linear", 0.15, 0.6), ("cnn_rnn_mlp", 0.7, 1)])
def test_digits_are_read_by_rows(capsys, model, least, most):
    record = run(digit_rows, "--model", model, "--epochs", "5")
    assert least < record["test"] < most
    assert record["task"] == "8 x 8 digits by rows"
    assert f"8 x 8 digits by rows, {model}: " in capsys.readouterr().out
