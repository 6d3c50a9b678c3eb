"""The example of the M4 competition: its forecasts without learning by hand, its data, and a short training."""

import m4 as example
import numpy as np
import pytest
from common import m4

pytestmark = pytest.mark.usefixtures("as_it_comes")


def test_naive_forecasts_by_hand():
    past = np.arange(1.0, 11)
    np.testing.assert_array_equal(m4.seasonal_naive(past, 4, 6), [7, 8, 9, 10, 7, 8])
    np.testing.assert_array_equal(m4.naive2(past, 1, 3), [10, 10, 10])
    factors = np.array([0.5, 1.0, 1.5, 1.0])
    seasonal = 20 * np.tile(factors, 6)[:22]
    assert m4.is_seasonal(seasonal, 4)
    np.testing.assert_allclose(m4.naive2(seasonal, 4, 5), 20 * factors[[2, 3, 0, 1, 2]])
    assert not m4.is_seasonal(np.random.default_rng(0).normal(size=40), 4)
    assert not m4.is_seasonal(seasonal[:11], 4)  # less than three seasons


def test_a_file_is_read_series_by_series(monkeypatch, tmp_path):
    (tmp_path / "m4").mkdir()
    offsets, future = np.array([0, 2, 5]), np.ones((2, 48))
    np.savez(tmp_path / "m4" / "hourly.npz", values=np.arange(5.0), offsets=offsets, future=future)
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    series = m4.read("hourly")
    assert series.name == "M4 hourly"
    assert [past.tolist() for past in series.past] == [[0, 1], [2, 3, 4]]


def test_equally_likely_values_lie_between_the_quantiles():
    quantiles = np.array(example.LEVELS)[None, :, None] * [1.0, 10.0]  # of values that are uniform
    values = example.equally_likely(quantiles)
    assert values.shape == (len(example.FINE), 1, 2)
    np.testing.assert_allclose(values[:, 0], np.clip(example.FINE, 0.025, 0.975)[:, None] * [1, 10])


@pytest.mark.slow
@pytest.mark.parametrize("frequency", example.SETTINGS)
def test_it_learns(monkeypatch, capsys, tmp_path, frequency):
    setting = example.SETTINGS[frequency]._replace(units=8, dilations=((1,), (4,)), longest=360, learning_rate=1e-2)
    monkeypatch.setitem(example.SETTINGS, frequency, setting)
    picture = tmp_path / "m4.png"
    (record,) = example.run(example.parse(["--frequency", frequency, "--steps", "60", "--picture", str(picture)]))
    assert f"made-up {frequency} series, 24 of them" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    assert record["crps"] < record["naive_crps"]
    assert 0.5 < record["coverage"] <= 1  # 0.28 to 0.31 after one step
