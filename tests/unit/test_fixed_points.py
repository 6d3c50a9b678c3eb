"""Fixed points are those of the equations; what did not converge is said; linear maps are finite differences."""

from functools import lru_cache
from itertools import product
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from messages import instructs

import rnnjax
from rnnjax import flat
from rnnjax.cells import LSTMState
from rnnjax.diagnose import fixed_points, linearise, plot


@pytest.fixture(autouse=True)
def promotion():
    """As examples are run: optax relies on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


D = 2


def network(R: Any, b: Any = 0.0, activation: Any = jnp.tanh, dtype: str = "float64") -> rnnjax.Elman:
    """An Elman network of two units and one input, with these weights."""
    cell = rnnjax.Elman(1, D, key=grid.KEY, activation=activation, dtype=dtype)
    weights = (np.broadcast_to(value, shape).astype(dtype) for value, shape in ((R, (D, D)), (b, (D,))))
    where = lambda cell: (cell.recurrent_weight, cell.bias)  # noqa: E731
    return eqx.tree_at(where, cell, tuple(map(grid.place, weights)))


def starts(dtype: str = "float64", scale: float = 1.0, count: int = 60) -> rnnjax.Hidden:
    values = np.random.default_rng(5).uniform(-scale, scale, (count, D))
    return rnnjax.Hidden(grid.place(values.astype(dtype)))


X = np.zeros(1)


@lru_cache
def of_two_latches(dtype: str = "float64") -> rnnjax.diagnose.FixedPoints:
    """h = tanh(1.5 h), unit by unit: each is at one of three points."""
    return fixed_points(network(1.5 * np.eye(D), dtype=dtype), X.astype(dtype), starts(dtype))


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_two_latches_have_nine_points(dtype):
    found, latched = of_two_latches(dtype), 0.858558
    assert found.kinds == ("stable",) * 4 + ("saddle",) * 4 + ("unstable",)
    np.testing.assert_array_equal(found.unstable, [0] * 4 + [1] * 4 + [2])
    points = {tuple(point) for point in np.round(np.asarray(found.states.h) / latched, 4) + 0.0}
    assert points == set(product((-1.0, 0.0, 1.0), repeat=2))
    inner, outer = 1.5 * (1 - latched**2), 1.5
    expected = [[inner, inner]] * 4 + [[outer, inner]] * 4 + [[outer, outer]]
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-4)


def test_each_start_is_at_its_point():
    found = of_two_latches()
    assert len(found.unconverged) == 0
    assert set(found.reached) == set(range(9))
    np.testing.assert_array_equal(found.start_speeds < 1e-20, True)
    told = str(found).splitlines()
    assert told[0] == "Elman: 4 stable, 4 saddles, 1 unstable, from 60 starts"
    assert len(told) == 11
    assert sum(int(line.split()[-1]) for line in told[2:]) == 60
    stable = found.of_kind("stable").h
    assert stable.shape == (4, D)
    np.testing.assert_array_equal(np.abs(stable) > 0.8, True)


def test_starts_without_a_fixed_point_are_said():
    """h + 1 has none: q is a half everywhere."""
    found = fixed_points(network(np.eye(D), 1.0, rnnjax.cells.linear), X, starts())
    assert len(found) == 0
    np.testing.assert_array_equal(found.unconverged, np.arange(60))
    assert str(found) == (
        "Elman: no point, from 60 starts\n"
        "60 of 60 starts did not converge, q from 1.0e+00 to 1.0e+00: pass more steps, or other starts"
    )


def test_weights_of_nan_converge_nowhere():
    found = fixed_points(network(np.nan), X, starts())
    assert len(found.unconverged) == 60
    assert "q is NaN" in str(found)


def test_points_of_a_line_are_slow_and_stay_on_it():
    """h_1 stays as it is, h_2 fades: a line attractor, on which no two starts meet."""
    found = fixed_points(network(np.diag([1.0, 0.5]), activation=rnnjax.cells.linear), X, starts())
    assert set(found.kinds) == {"slow"}
    assert len(found) > 50
    np.testing.assert_allclose(found.states.h[:, 1], 0, atol=1e-6)
    assert np.ptp(found.states.h[:, 0]) > 1.5
    np.testing.assert_allclose(found.eigenvalues, [[1.0, 0.5]] * len(found))
    assert str(found).splitlines()[-1] == f"and {len(found) - 40} more"


def test_starts_that_are_slow_already_still_find_the_point():
    values = np.stack([np.array([0.01, 0.05, 0.08, 0.1, 0.12, 0.6, 0.9]), np.zeros(7)], 1)
    found = fixed_points(network(np.diag([0.99, 0.5])), X, rnnjax.Hidden(grid.place(values)))
    assert found.kinds == ("stable",)
    np.testing.assert_allclose(found.states.h, 0, atol=1e-10)


def test_a_ghost_of_a_fixed_point_is_slow():
    """Just beyond the fold in which a stable and an unstable point have met, q has a minimum above zero."""
    fold = np.sqrt(1 / 3)  # where h = tanh(1.5 h + b) has a slope of one
    b = np.arctanh(fold) - 1.5 * fold - 2e-4
    found = fixed_points(network(1.5 * np.eye(D), b), X, rnnjax.Hidden(np.full((60, D), fold + 0.01)))
    assert found.kinds == ("slow",)
    assert 1e-10 < found.speeds[0] < 1e-6


@lru_cache
def of_an_lstm() -> tuple[Any, ...]:
    """An LSTM in double precision, an input, and its fixed points from states it visits."""
    cell, x = grid.build("lstm"), grid.place(np.asarray(grid.inputs(1))[0])
    states = jax.jit(lambda cell: rnnjax.unroll(rnnjax.networks.AllStates(cell), None, grid.inputs(30))[1][1])(cell)
    return cell, x, fixed_points(cell, x, states)


def test_a_state_of_two_arrays_is_found_and_kept_so():
    cell, x, found = of_an_lstm()
    assert len(found) >= 1
    assert isinstance(found.states, LSTMState)
    step = jax.jit(jax.vmap(lambda state: cell.step(state, cell.project(x[None])[0])))
    jax.tree.map(lambda after, at: np.testing.assert_allclose(after, at, atol=1e-9), step(found.states), found.states)


def test_a_linearisation_is_finite_differences_and_its_eigenvalues_those_of_the_point():
    cell, x, found = of_an_lstm()
    state = jax.tree.map(lambda leaf: leaf[0], found.states)
    linear = jax.jit(lambda state: linearise(cell, x, state))(state)
    near = jax.jit(jax.vmap(lambda x, h, c: flat.pack(cell.step(LSTMState(h, c), cell.project(x[None])[0]))))
    center, step = np.concatenate([x, state.h, state.c]), 1e-6
    each = np.concatenate([center + step * np.eye(center.size), center - step * np.eye(center.size)])
    forth, back = np.split(np.asarray(near(*np.split(each, (x.size, x.size + state.h.size), 1))), 2)
    differences = ((forth - back) / (2 * step)).T
    np.testing.assert_allclose(linear.by_input, differences[:, : x.size], atol=1e-8)
    np.testing.assert_allclose(linear.by_state, differences[:, x.size :], atol=1e-8)
    np.testing.assert_allclose(linear.after, np.concatenate([state.h, state.c]), atol=1e-9)
    modes = linear.modes
    np.testing.assert_allclose(np.abs(modes.eigenvalues), np.abs(found.eigenvalues[0]), atol=1e-7)
    rebuilt = modes.right * modes.eigenvalues @ modes.left
    np.testing.assert_allclose(rebuilt, linear.by_state, atol=1e-8)


def test_points_are_drawn():
    states = np.random.default_rng(2).normal(size=(3, 7, D))
    for projection in (None, "3d"):
        axes = Figure().add_subplot(projection=projection)
        found, trajectories = (of_two_latches(), rnnjax.Hidden(states)) if projection is None else of_three()
        plot.draw_fixed_points(axes, found, trajectories)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == (["stable, 4", "saddle, 4", "unstable, 1"] if projection is None else ["stable, 1"])


def of_three() -> tuple[rnnjax.diagnose.FixedPoints, Any]:
    """One point of an LSTM, and trajectories."""
    found, generator = of_an_lstm()[2], np.random.default_rng(2)
    return found, LSTMState(*(generator.normal(size=(2, 5, leaf.shape[-1])) for leaf in found.states))


CELL, TRAJECTORIES = "network(np.eye(2))", rnnjax.Hidden(np.ones((3, 7, D)))
BAD = {
    "fixed_points(grid.build('stack'), X, starts())": "cell: expected a cell, whose step .* got Stack",
    f"fixed_points({CELL}, np.zeros((4, 1)), starts())": "x: expected the input of one step of Elman",
    f"fixed_points({CELL}, X, rnnjax.Hidden(np.zeros(2)))": "starts: expected states of Elman",
    f"fixed_points({CELL}, X, starts(count=0))": "starts: expected states of Elman",
    f"fixed_points({CELL}, X, rnnjax.Hidden(np.full((3, 2), np.nan)))": "starts: expected finite states, got 3 of 3",
    f"fixed_points({CELL}, X, starts(), steps=0)": "steps: expected 1 or more",
    f"fixed_points({CELL}, X, starts(), slow=-1.0)": "slow: expected a positive speed q, got -1.0",
    "of_two_latches().of_kind('saddles')": r"kind: expected one of \['stable', 'saddle', 'unstable', 'slow'\]",
    f"linearise({CELL}, np.zeros(2), None)": "x: expected the input of one step",
    "linearise(network([[0.0, 1.0], [0.0, 0.0]]), X, None).modes": "by_state: expected .* independent eigenvectors",
    "plot.draw_fixed_points(Figure().add_subplot(projection='3d'), of_two_latches(), TRAJECTORIES)": (
        "trajectories: expected at least 3 states of at least 3 numbers"
    ),
    "plot.draw_fixed_points(Figure().add_subplot(), of_two_latches(), rnnjax.Hidden(np.zeros((7, 2))))": "trajectories",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises((TypeError, ValueError), match=BAD[call]) as raised:
        eval(call)
    assert instructs(str(raised.value)) or "1 or more" in str(raised.value)
