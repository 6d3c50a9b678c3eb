"""Newton: the same trajectory as step by step, whatever the Jacobian and the damping, or a word that it is none."""

from functools import partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import Dense, Diagonal, Newton, Scan, unroll
from rnnjax.engines.newton import blocks, trust

KEY = jax.random.key(3)
NEWTONS = {"dense": Newton(), "diagonal": Newton(Diagonal()), "damped": Newton(Diagonal(), damping=1.0)}


@eqx.filter_jit
def solve(newton, cell, xs):
    return newton.solve(cell, None, xs)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# What it is made of


@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocks(n):
    a, b, x = random(7, 4, n, n), random(7, 4, n, n, seed=1), random(7, 4, n, seed=2)
    np.testing.assert_allclose(blocks.multiply(jnp.asarray(a), jnp.asarray(b)), a @ b, atol=1e-13)
    np.testing.assert_allclose(blocks.apply(jnp.asarray(a), jnp.asarray(x)), (a @ x[..., None])[..., 0], atol=1e-13)
    np.testing.assert_allclose(blocks.inverse(jnp.asarray(a)) @ a, np.broadcast_to(np.eye(n), a.shape), atol=1e-11)


@pytest.mark.parametrize("damping", [1e-6, 0.1, 100.0])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_damped_step_is_the_mean_of_a_kalman_filter(n, damping):
    J, r = 1.5 * random(9, 2, n, n), random(9, 2, n, seed=1)
    d, variance, expected = np.zeros((2, n)), np.zeros((2, n, n)), []
    for jacobian, residual in zip(J, r, strict=True):
        predicted = np.eye(n) + jacobian @ variance @ np.swapaxes(jacobian, -1, -2)
        trusted = np.linalg.inv(np.eye(n) + damping * predicted)
        variance = trusted @ predicted
        d = np.einsum("kij,kj->ki", trusted, np.einsum("kij,kj->ki", jacobian, d) + residual)
        expected.append(d)
    got = trust.damped_step(jnp.asarray(J), jnp.asarray(r), jnp.asarray(damping), None)
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-10)


def test_damped_step_is_bounded_where_newtons_overflows():
    J, r = jnp.full((5000, 1, 1, 1), 3.0), jnp.ones((5000, 1, 1))
    assert np.isfinite(jax.jit(lambda J, r: trust.damped_step(J, r, jnp.asarray(1e-3), None))(J, r)).all()


# The same numbers


def both(cell, xs, engine, **options):
    """Values, and gradients by weights and inputs."""

    @eqx.filter_jit
    def run(cell, xs):
        weights, static = eqx.partition(cell, eqx.is_inexact_array)
        go = lambda weights, xs: unroll(eqx.combine(weights, static), None, xs, engine=engine, **options)  # noqa: E731
        return go(weights, xs), jax.grad(lambda *args: grid.contract(go(*args)), (0, 1))(weights, xs)

    return run(cell, xs)


@pytest.mark.parametrize("T", [1, 2, 3, 127, 1000])
@pytest.mark.parametrize(
    ("cell", "engine"),
    [("diagonal_lstm", "diagonal"), ("diagonal_gru", "damped"), ("gru", "dense"), ("lstm", "diagonal")],
)
def test_equals_scan_at_any_length(cell, engine, T):
    cell, xs = grid.build(cell), grid.inputs(T)
    options = {"length": max(T - 2, 1), "resets": jnp.arange(T) % 50 == 7}
    got, expected = (both(cell, xs, engine, **options) for engine in (NEWTONS[engine], Scan()))
    assert_within(got, expected, 1e-10)


@pytest.mark.parametrize(("cell", "engine"), [("diagonal_lstm", "diagonal"), ("gru", "dense"), ("ind_rnn", "damped")])
def test_equals_scan_in_float32(cell, engine):
    cell, xs = grid.build(cell, "float32"), grid.inputs(1000, dtype="float32")
    got, expected = (both(cell, xs, engine, resets=jnp.arange(1000) == 300) for engine in (NEWTONS[engine], Scan()))
    assert_within(got, expected, 1e-5)


def test_equals_scan_over_many_steps():
    cell, xs = grid.build("diagonal_gru"), grid.inputs(16323)
    assert_within(both(cell, xs, Newton(Diagonal())), both(cell, xs, Scan()), 1e-10)


def assert_within(got, expected, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize(("cell", "engine"), [("gru", "dense"), ("diagonal_lstm", "diagonal")])
def test_second_derivatives(cell, engine):
    cell, xs = grid.build(cell), grid.inputs(5)
    loss = lambda engine, xs: grid.contract(unroll(cell, None, xs, engine=engine))  # noqa: E731
    twice = lambda engine: jax.jit(jax.jacfwd(jax.grad(partial(loss, engine))))(xs)  # noqa: E731
    np.testing.assert_allclose(twice(NEWTONS[engine]), twice(Scan()), atol=1e-11)


def test_a_linear_cell_takes_one_iteration():
    solution = solve(Newton(Diagonal()), grid.build("min_gru"), grid.inputs(50))
    assert (int(solution.iterations), bool(solution.converged)) == (1, True)


def test_a_plain_function_is_solved_too():
    step = lambda h, x: (jnp.tanh(0.5 * h + x), h * x)  # noqa: E731
    xs, h = grid.inputs(20), jnp.ones(3)
    run = jax.jit(lambda engine: unroll(step, h, xs, engine=engine), static_argnums=0)
    assert_within(run(Newton()), run(Scan()), 1e-12)


@pytest.mark.parametrize("engine", [Newton(), Scan()], ids=["newton", "scan"])
def test_a_function_may_close_over_its_weights(engine):
    xs, h = grid.inputs(20), jnp.ones(3)

    def loss(w):
        return grid.contract(unroll(lambda h, x: (jnp.tanh(w * h + x), h), h, xs, engine=engine))

    value = jax.jit(loss)
    slope = (value(0.5 + 1e-6) - value(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.5), slope, rtol=1e-7)
    ws = jnp.asarray([0.1, 0.5])
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(ws), [value(w) for w in ws], rtol=1e-12)


# Batches


def test_no_row_of_a_batch_iterates_more_than_it_would_alone():
    cell, newton = grid.build("gru"), Newton(Diagonal())
    xs = grid.inputs(6, 40) * jnp.asarray([0.0, 0.1, 0.5, 1.0, 3.0, 10.0])[:, None, None]
    alone = [int(solve(newton, cell, row).iterations) for row in xs]
    solution = jax.jit(jax.vmap(lambda xs: newton.solve(cell, None, xs)))(xs)
    np.testing.assert_array_equal(solution.iterations, alone)
    assert len(set(alone)) > 2
    assert_within(solution.states.h, jax.vmap(lambda xs: unroll(cell, None, xs, engine=Scan())[1])(xs), 1e-11)


# Where it does not converge

ROTATION = 3.0 * np.asarray([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])


def unstable():
    """A cell that turns by half a radian and stretches by three, and a push that sets it going."""
    cell = rnnjax.Elman(1, 2, key=KEY, dtype=jnp.float64)
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, jnp.asarray(ROTATION.T[None, :, None]))
    return cell, jnp.zeros((800, 1)).at[0].set(0.3)


def test_what_newtons_own_steps_cannot_solve_the_damped_ones_do():
    cell, xs = unstable()
    lost = solve(Newton(), cell, xs)
    assert not lost.converged
    assert np.isnan(lost.residual)
    solution = solve(Newton(damping=0.01, iterations=600), cell, xs)
    assert solution.converged
    assert_within(solution.states.h, unroll(cell, None, xs, engine=Scan())[1], 1e-10)


def test_not_converged_is_an_error_with_its_remedies():
    cell, xs = unstable()
    with pytest.raises(Exception, match="did not solve Elman within 100 iterations: pass damping"):
        eqx.filter_jit(unroll)(cell, None, xs, engine=Newton())


def test_fall_back_is_step_by_step_for_those_that_need_it():
    cell, push = unstable()
    xs = jnp.stack([push, jnp.zeros_like(push)])
    run = lambda engine: jax.jit(jax.vmap(lambda xs: unroll(cell, None, xs, engine=engine)))(xs)  # noqa: E731
    assert_within(run(Newton(fall_back=True)), run(Scan()), 1e-12)
    few = lambda engine: both(grid.build("gru"), grid.inputs(30), engine)  # noqa: E731
    assert_within(few(Newton(iterations=1, fall_back=True)), few(Scan()), 1e-12)


def test_nan_is_not_solved():
    solution = solve(Newton(damping=1.0), grid.build("gru"), grid.inputs(20).at[5].set(jnp.nan))
    assert not solution.converged
    assert np.isnan(solution.residual)
    assert solution.iterations == 0


def test_nan_in_the_inputs_is_nan_from_there_on():
    xs = grid.inputs(20).at[5].set(jnp.nan)
    last, ys = unroll(grid.build("gru"), None, xs, engine=Newton())
    expected_last, expected = unroll(grid.build("gru"), None, xs, engine=Scan())
    np.testing.assert_allclose(ys, expected, atol=1e-12)
    np.testing.assert_allclose(last.h, expected_last.h)
    assert np.isnan(ys[5:]).all()


def test_nan_in_the_inputs_is_nan_in_the_gradient():
    slope = jax.jit(jax.grad(lambda cell, xs: unroll(cell, None, xs, engine=Newton())[1].sum(), (0, 1)))
    slopes = slope(grid.build("gru"), grid.inputs(20).at[5].set(jnp.nan))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(slopes[0]))
    assert np.isnan(slopes[1][:5]).all()


def test_no_step_leaves_the_state_as_it_came():
    cell, state = grid.build("ind_rnn"), rnnjax.Hidden(jnp.arange(float(grid.H)).at[0].set(jnp.nan))
    last = lambda cell: unroll(cell, state, grid.inputs(4), length=0, engine=Newton())[0].h.sum()  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(last))(cell)
    assert np.isnan(value)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))


def test_solve_honours_what_unroll_does():
    """Resets in the padding are none; and what is returned is what was solved, even where `unroll` would fall back."""
    cell, xs = grid.build("gru"), grid.inputs(12)
    state, options = grid.random_state(cell), {"length": 6, "resets": jnp.arange(12) % 7 == 2}
    solved = eqx.filter_jit(lambda newton: newton.solve(cell, state, xs, **options))
    last, ys = unroll(cell, state, xs, **options)
    states = solved(Newton()).states.h
    assert_within((states[-1], states[:6]), (last.h, ys[:6]), 1e-11)
    early = solved(Newton(iterations=1, fall_back=True))
    assert not early.converged
    assert np.abs(early.states.h[5] - ys[5]).max() > 1e-6


@pytest.mark.parametrize("jacobian", [Dense(), Diagonal()], ids=["dense", "blocks"])
def test_what_would_stretch_beyond_all_bounds_but_is_zero_stays_zero(jacobian):
    """A loss on the first steps alone, of a cell at rest, where products of Jacobians grow by three or more a step."""
    blocks_of_two = rnnjax.DiagonalLSTM(1, 2, key=KEY, bias=False, dtype=jnp.float64)
    cells = {Dense(): unstable()[0], Diagonal(): jax.tree.map(lambda leaf: jnp.full_like(leaf, 12.0), blocks_of_two)}
    xs = jnp.zeros((5000, 1))
    loss = lambda engine, xs: jnp.sum(unroll(cells[jacobian], None, xs, engine=engine)[1][:20])  # noqa: E731
    got, expected = (jax.jit(jax.grad(partial(loss, engine)))(xs) for engine in (Newton(jacobian), Scan()))
    assert_within(got, expected, 1e-10)


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jacobian": Dense}, TypeError, "jacobian"),
        ({"iterations": 0}, ValueError, "iterations: expected a positive integer, got 0"),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a positive number or None, got 0.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance: expected a positive number or None, got nan"),
        ({"tolerance": "a"}, (TypeError, ValueError), "tolerance"),
        ({"damping": -1.0}, ValueError, "damping: expected a positive number or None, got -1.0"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        Newton(**options)


def test_jacobians_that_do_not_fit_into_memory_are_refused_with_their_size(monkeypatch):
    cell, xs = rnnjax.GRU(1, 1024, key=KEY), jnp.zeros((100_000, 1))
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: int(80e9))
    message = Newton().refusal(cell, xs)
    assert "100000 of 1024 x 1024, and the scan of them take 1681 GB, and there are 80 GB" in message
    assert "Use Newton(Diagonal()), fewer or shorter sequences, or Scan()" in message
    assert Newton(Diagonal()).refusal(cell, xs) is None
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: int(4e9))
    message = Newton(Diagonal()).refusal(cell, xs)
    assert "100000 x 1024 of 1 x 1, and the scan of them take 4.9 GB, and there are 4 GB. Use fewer" in message


def test_a_batch_that_does_not_fit_is_refused_though_one_sequence_would(monkeypatch):
    cell, newton = grid.build("gru"), Newton()
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: 2 * 10**5)
    assert newton.refusal(cell, grid.inputs(40)) is None
    with pytest.raises(ValueError, match="cannot run GRU: its Jacobians, 64 x 40 x 1 of 8 x 8"):
        jax.vmap(lambda xs: unroll(cell, None, xs, engine=newton))(grid.inputs(64, 40))


def test_states_that_are_no_numbers_or_no_units_are_refused():
    count = lambda state, x: (state + 1, x)  # noqa: E731
    with pytest.raises(ValueError, match="one floating dtype, and the state is float64 and int64"):
        unroll(count, jnp.asarray(0), grid.inputs(4), engine=Newton())
    with pytest.raises(ValueError, match=r"not made of vectors of the same units, \[\(4,\), \(8,\)\]"):
        unroll(grid.build("projected_lstm"), None, grid.inputs(4), engine=Newton(Diagonal()))


def test_a_complex_state_is_taken_of_linear_cells_alone():
    turn = lambda h, x: (0.9j * jnp.conj(h) + x.astype(complex), h)  # noqa: E731
    with pytest.raises(ValueError, match="its state is complex and it is not linear"):
        unroll(turn, jnp.zeros(3, complex), grid.inputs(4), engine=Newton())
    lru, xs = grid.build("lru"), grid.inputs(30)
    assert_within(both(lru, xs, Newton()), both(lru, xs, Scan()), 1e-11)


def test_solve_takes_cells():
    with pytest.raises(TypeError, match=r"cell: expected a cell, got Stack\. Solve for each cell"):
        Newton().solve(grid.build("stack"), None, grid.inputs(3))


def test_solve_wants_a_step():
    with pytest.raises(ValueError, match="xs: expected at least one step, got T=0"):
        Newton().solve(grid.build("gru"), None, grid.inputs(0))
