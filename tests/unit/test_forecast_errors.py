"""The errors of forecasts, by hand, and what has none."""

import numpy as np
import pytest

from rnnjax.training import coverage, crps, mase, smape

PAST = [np.array([1.0, 2, 4, 3]), np.array([10.0, 10, 30])]
FUTURE, SAID = np.array([[2.0, 4], [0, 20]]), np.array([[4.0, 4], [0, 10]])


def test_smape_by_hand():
    np.testing.assert_allclose(smape(SAID, FUTURE), (200 * 2 / 6 + 0 + 0 + 200 * 10 / 30) / 4)


def test_mase_by_hand():
    np.testing.assert_allclose(mase(SAID, FUTURE, PAST, 1), (1 / (4 / 3) + 5 / 10) / 2)
    np.testing.assert_allclose(mase(SAID, FUTURE, PAST, 2), (1 / 2 + 5 / 20) / 2)


def test_crps_is_the_integral_over_the_squared_difference_of_distributions():
    random = np.random.default_rng(0)
    samples, targets = random.normal(size=(5, 3)), random.normal(size=3)
    grid = np.linspace(-6, 6, 120_001)
    below = (samples[:, :, None] <= grid).mean(0)
    expected = ((below - (targets[:, None] <= grid)) ** 2).sum(1) * (grid[1] - grid[0])
    np.testing.assert_allclose(crps(samples, targets), expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(crps(samples[:1], targets), np.abs(samples[0] - targets).mean())


def test_coverage_counts_its_bounds():
    assert coverage(np.array([0.0, 0, 0, 0]), np.array([1.0, 1, 1, 1]), np.array([0, 1, 1.1, -0.1])) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smape(SAID[:, :1], FUTURE), r"forecasts: expected \[2, 2\], by the targets, got \[2, 1\]\. Pass one"),
        (lambda: smape(SAID * np.nan, FUTURE), r"forecasts: expected finite numbers, got nan\. Drop"),
        (lambda: smape(SAID, FUTURE + np.inf), r"targets: expected finite numbers, got inf\. Drop"),
        (lambda: mase(SAID, FUTURE, PAST, 3), r"past\[1\]: expected a series of more than season=3 steps, got \[3\]"),
        (lambda: mase(SAID, FUTURE, [PAST[0], np.ones(9)], 2), r"past\[1\]: .* which has no scale\. Leave it out"),
        (lambda: mase(SAID, FUTURE, PAST[:1], 1), r"past: expected a series for each row .* got 1\. Pass forecasts"),
        (lambda: crps(np.zeros((0, 2)), np.zeros(2)), r"samples: expected at least one for each target, got \[0, 2\]"),
        (lambda: coverage(FUTURE + 1, FUTURE, FUTURE), r"lower: expected no value above .* got some\. Swap the two"),
    ],
)
def test_what_has_no_error_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
