"""Newton: the same trajectory as step by step, whatever the Jacobian and the damping, or a word that it is none."""

import re
from functools import lru_cache, partial

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import rnnjax
from rnnjax import Newton, Scan, unroll
from rnnjax.engines import Dense, Diagonal
from rnnjax.engines.newton import blocks, trust

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
    product, applied, inverse = jax.jit(lambda a, b, x: (blocks.multiply(a, b), blocks.apply(a, x), blocks.inverse(a)))(
        a, b, x
    )
    np.testing.assert_allclose(product, a @ b, atol=1e-13)
    np.testing.assert_allclose(applied, (a @ x[..., None])[..., 0], atol=1e-13)
    np.testing.assert_allclose(inverse @ a, np.broadcast_to(np.eye(n), a.shape), atol=1e-11)


@jax.jit
def damped_step(jacobians, residuals, damping):
    return trust.damped_step(jacobians, residuals, damping, None)


@pytest.mark.parametrize("damping", [1e-6, 0.1, 100.0])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_damped_step_is_the_mean_of_a_kalman_filter(n, damping):
    J, r = 1.5 * random(5, 2, n, n), random(5, 2, n, seed=1)
    d, variance, expected = np.zeros((2, n)), np.zeros((2, n, n)), []
    for jacobian, residual in zip(J, r, strict=True):
        predicted = np.eye(n) + jacobian @ variance @ np.swapaxes(jacobian, -1, -2)
        trusted = np.linalg.inv(np.eye(n) + damping * predicted)
        variance = trusted @ predicted
        d = np.einsum("kij,kj->ki", trusted, np.einsum("kij,kj->ki", jacobian, d) + residual)
        expected.append(d)
    np.testing.assert_allclose(damped_step(J, r, np.asarray(damping)), np.stack(expected), atol=1e-10)


def test_damped_step_is_bounded_where_newtons_overflows():
    made = damped_step(np.full((128, 1, 1, 1), 1e3), np.ones((128, 1, 1)), np.asarray(1e-3))
    assert np.isfinite(made).all()


# The same numbers


@eqx.filter_jit
def values_and_gradients(engine, cell, xs, **options):
    """Values, and gradients by weights and inputs."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)

    def loss(weights, xs):
        values = unroll(eqx.combine(weights, static), None, xs, engine=engine, **options)
        return grid.contract(values), values

    gradients, values = jax.grad(loss, (0, 1), has_aux=True)(weights, xs)
    return values, gradients


def assert_within(got, expected, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max())))


LONGEST = 1000
QUICK_LENGTHS = {"diagonal_lstm": (3,), "diagonal_gru": (127,), "gru": (1,), "lstm": (2,)}


def options(T, steps):
    """Of a sequence of T steps, or of so many with padding."""
    return {"length": np.asarray(max(T - 2, 1)), "resets": np.arange(steps) % 50 == 7}


@lru_cache
def by_scan(cell, T):
    """By a program that serves every T: what is padded to the longest is ignored."""
    xs = np.zeros((LONGEST, grid.I))
    xs[:T] = grid.inputs(T)
    made = values_and_gradients(Scan(), grid.build(cell), xs, **options(T, LONGEST))
    (last, ys), (dweights, dxs) = jax.tree.map(np.asarray, made)
    return (last, ys[:T]), (dweights, dxs[:T])


@pytest.mark.parametrize(
    ("cell", "engine", "T"),
    [
        pytest.param(cell, engine, T, marks=[] if T in QUICK_LENGTHS[cell] else pytest.mark.slow)
        for cell, engine in [
            *(("diagonal_lstm", "diagonal"), ("diagonal_gru", "damped"), ("gru", "dense"), ("lstm", "diagonal"))
        ]
        for T in (1, 2, 3, 127, LONGEST)
    ],
)
def test_equals_scan_at_any_length(cell, engine, T):
    got = values_and_gradients(NEWTONS[engine], grid.build(cell), grid.inputs(T), **options(T, T))
    assert_within(got, by_scan(cell, T), 1e-10)


@pytest.mark.parametrize(
    ("cell", "engine", "T"),
    [
        ("ind_rnn", "diagonal", 127),
        *(
            pytest.param(cell, engine, 1000, marks=pytest.mark.slow)
            for cell, engine in [("diagonal_lstm", "diagonal"), ("gru", "dense"), ("ind_rnn", "damped")]
        ),
    ],
)
def test_equals_scan_in_float32(cell, engine, T):
    cell, xs, resets = grid.build(cell, "float32"), grid.inputs(T, dtype="float32"), np.arange(T) == 3 * T // 10
    run = lambda engine: values_and_gradients(engine, cell, xs, resets=resets)  # noqa: E731
    assert_within(run(NEWTONS[engine]), run(Scan()), 1e-5)


@pytest.mark.slow
def test_equals_scan_over_many_steps():
    cell, xs = grid.build("diagonal_gru"), grid.inputs(16323)
    assert_within(values_and_gradients(NEWTONS["diagonal"], cell, xs), values_and_gradients(Scan(), cell, xs), 1e-10)


@pytest.mark.parametrize(
    ("cell", "engine"), [pytest.param("gru", "dense", marks=pytest.mark.slow), ("diagonal_lstm", "diagonal")]
)
def test_second_derivatives(cell, engine):
    cell = grid.build(cell)
    loss = lambda engine, xs: grid.contract(unroll(cell, None, xs, engine=engine))  # noqa: E731
    twice = lambda engine: jax.jacfwd(jax.grad(partial(loss, engine)))  # noqa: E731
    got, expected = jax.jit(lambda xs: (twice(NEWTONS[engine])(xs), twice(Scan())(xs)))(grid.inputs(4))
    np.testing.assert_allclose(got, expected, atol=1e-11)


def test_a_linear_cell_takes_one_iteration():
    solution = solve(Newton(Diagonal()), grid.build("min_gru"), grid.inputs(50))
    assert (int(solution.iterations), bool(solution.converged)) == (1, True)


def test_a_plain_function_is_solved_too():
    step = lambda h, x: (jnp.tanh(0.5 * h + x), h * x)  # noqa: E731
    both = jax.jit(lambda xs: [unroll(step, np.ones(3), xs, engine=engine) for engine in (Newton(), Scan())])
    assert_within(*both(grid.inputs(5)), 1e-12)


@pytest.mark.parametrize("engine", [Newton(), Scan()], ids=["newton", "scan"])
def test_a_function_may_close_over_its_weights(engine):
    xs, h = grid.inputs(3), np.ones(3)
    ws = np.asarray([0.1, 0.5, 0.5 - 1e-6, 0.5 + 1e-6])

    def loss(w):
        return grid.contract(unroll(lambda h, x: (jnp.tanh(w * h + x), h), h, xs, engine=engine))

    run = jax.jit(lambda ws: (jax.lax.map(loss, ws), jax.vmap(loss)(ws), jax.grad(loss)(ws[1])))
    one_by_one, batch, slope = run(ws)
    below, above = np.asarray(one_by_one)[2:]
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-7)
    np.testing.assert_allclose(batch, one_by_one, rtol=1e-12)


# Batches


def test_no_row_of_a_batch_iterates_more_than_it_would_alone():
    cell, newton = grid.build("gru"), Newton(Diagonal())
    xs = np.asarray(grid.inputs(6, 40)) * np.asarray([0.0, 0.1, 0.5, 1.0, 3.0, 10.0])[:, None, None]
    alone = [int(solve(newton, cell, row).iterations) for row in xs]
    of_row = lambda xs: (newton.solve(cell, None, xs), unroll(cell, None, xs, engine=Scan())[1])  # noqa: E731
    solution, expected = jax.jit(jax.vmap(of_row))(xs)
    np.testing.assert_array_equal(solution.iterations, alone)
    assert len(set(alone)) > 2
    assert_within(solution.states.h, expected, 1e-11)


# Where it does not converge

# Units, by how much a step stretches them, and for how many steps: beyond all bounds.
ONE_UNIT, STEEP, LONG = (1, 1000.0, 128), (2, 1000.0, 128), (2, 3.0, 800)
UNSTABLE = [pytest.param(ONE_UNIT, id="one_unit"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]


@lru_cache
def unstable(units, stretch, steps):
    """A cell that turns by half a radian, if it has two units, and stretches; and a push that sets it going."""
    rotation = np.asarray([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]) if units == 2 else np.ones((1, 1))
    cell = rnnjax.Elman(1, units, key=grid.KEY, dtype=jnp.float64)
    weight = grid.place(stretch * rotation.T)
    push = np.zeros((steps, 1))
    push[0] = 0.3
    return eqx.tree_at(lambda cell: cell.recurrent_weight, cell, weight), push


@pytest.mark.parametrize("problem", UNSTABLE)
def test_what_newtons_own_steps_cannot_solve_the_damped_ones_do(problem):
    cell, xs = unstable(*problem)
    lost = solve(Newton(), cell, xs)
    assert not lost.converged
    assert np.isnan(lost.residual)
    solution = solve(Newton(damping=0.01, iterations=600), cell, xs)
    assert solution.converged
    assert_within(solution.states.h, oracle.run(cell, (np.zeros(problem[0]),), xs)[1], 1e-10)


@lru_cache
def answers():
    """The run of a batch by an engine: compiled once for each engine."""
    return eqx.filter_jit(lambda cell, xs, engine: jax.vmap(lambda xs: unroll(cell, None, xs, engine=engine)[1])(xs))


# The engine, a factor of R, and what the error says. A batch has a sequence that is easily solved, too.
UNSOLVED = {
    "overflow": (
        *(Newton(), 1),
        ("overflowed on Elman at iteration {} of at most 100", "Pass damping=0.1, fall_back=True, or use Scan()"),
    ),
    "too little damping": (
        *(Newton(damping=1e-300), 1e17),
        (
            "overflowed on Elman: its steps are not finite with damping=1e-300",
            "Pass a larger `damping`, fall_back=True, or",
        ),
    ),
    "few iterations": (
        *(Newton(iterations=3, damping=0.01), 1),
        (
            "did not solve Elman within 3 iterations",
            "Pass more `iterations`, a larger `tolerance`, fall_back=True, or use Scan()",
        ),
    ),
    "weights": (Newton(), np.nan, ("cannot start on Elman", "Check that its weights are finite")),
}


@pytest.mark.parametrize("name", UNSOLVED)
def test_not_converged_is_an_error_with_its_reason_and_remedies(name):
    engine, factor, (reason, remedy) = UNSOLVED[name]
    cell, push = unstable(*ONE_UNIT)
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, factor * cell.recurrent_weight)
    batch = np.stack([push, np.zeros_like(push)])
    if "{}" in reason:
        reason = reason.format(solve(engine, cell, push).iterations)
    with pytest.raises(Exception, match=re.escape(reason) + ".*" + re.escape(remedy)):
        jax.block_until_ready(answers()(cell, batch, engine))


@pytest.mark.parametrize("problem", UNSTABLE)
def test_fall_back_is_step_by_step_for_those_that_need_it(problem):
    cell, push = unstable(*problem)
    engines = Newton(fall_back=True), Scan()
    run = lambda engine: jax.vmap(lambda xs: unroll(cell, None, xs, engine=engine))  # noqa: E731
    both = jax.jit(lambda xs: [run(engine)(xs) for engine in engines])
    assert_within(*both(np.stack([push, np.zeros_like(push)])), 1e-12)


def test_fall_back_has_the_gradient_of_step_by_step():
    few = lambda engine: values_and_gradients(engine, grid.build("gru"), grid.inputs(7))  # noqa: E731
    assert_within(few(Newton(iterations=1, fall_back=True)), few(Scan()), 1e-12)


def spoilt():
    """Inputs with a step of NaN."""
    xs = np.array(grid.inputs(7))
    xs[5] = np.nan
    return xs


def test_nan_is_not_solved():
    solution = solve(NEWTONS["damped"], grid.build("gru"), spoilt())
    assert not solution.converged
    assert np.isnan(solution.residual)
    assert solution.iterations == 0


def test_nan_in_the_inputs_is_nan_from_there_on_and_in_the_gradient():
    (last, ys), slopes = values_and_gradients(Newton(), grid.build("gru"), spoilt())
    (expected_last, expected), _ = values_and_gradients(Scan(), grid.build("gru"), spoilt())
    np.testing.assert_allclose(ys, expected, atol=1e-12)
    np.testing.assert_allclose(last.h, expected_last.h)
    assert np.isnan(np.asarray(ys)[5:]).all()
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(slopes[0]))
    assert np.isnan(np.asarray(slopes[1])[:5]).all()


def test_no_step_leaves_the_state_as_it_came():
    cell, state = grid.build("ind_rnn"), rnnjax.Hidden(np.arange(float(grid.H)))
    state.h[0] = np.nan
    last = lambda cell: unroll(cell, state, grid.inputs(4), length=0, engine=Newton())[0].h.sum()  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(last))(cell)
    assert np.isnan(value)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slope))


def test_solve_honours_what_unroll_does():
    """Resets in the padding are none; and what is returned is what was solved, even where `unroll` would fall back."""
    cell, xs = grid.build("gru"), grid.inputs(8)
    state, options = grid.random_state(cell), {"length": 5, "resets": np.arange(8) % 4 == 2}
    newtons = Newton(), Newton(iterations=1, fall_back=True)

    @eqx.filter_jit
    def run(cell, state, xs):
        return unroll(cell, state, xs, **options), [newton.solve(cell, state, xs, **options) for newton in newtons]

    (last, ys), (solved, early) = jax.tree.map(np.asarray, run(cell, state, xs))
    states = solved.states.h
    assert_within((states[-1], states[:5]), (last.h, ys[:5]), 1e-11)
    assert not early.converged
    assert np.abs(early.states.h[4] - ys[4]).max() > 1e-6


@pytest.mark.parametrize(
    ("jacobian", "problem"),
    [
        pytest.param(Dense(), STEEP, id="dense"),
        pytest.param(Dense(), (2, 3.0, 5000), id="dense-long", marks=pytest.mark.slow),
        pytest.param(Diagonal(), (2, 3.0, 5000), id="blocks-long", marks=pytest.mark.slow),
    ],
)
def test_what_would_stretch_beyond_all_bounds_but_is_zero_stays_zero(jacobian, problem):
    """A loss on the first steps alone, of a cell at rest, where products of Jacobians grow by three or more a step."""
    _, stretch, steps = problem
    blocks_of_two = rnnjax.DiagonalLSTM(1, 2, key=grid.KEY, bias=False, dtype=jnp.float64)
    large = jax.tree.map(lambda leaf: grid.place(np.full(leaf.shape, 4 * stretch)), blocks_of_two)
    cell = {Dense(): unstable(*problem)[0], Diagonal(): large}[jacobian]
    loss = lambda engine, xs: jnp.sum(unroll(cell, None, xs, engine=engine)[1][:20])  # noqa: E731
    both = jax.jit(lambda xs: [jax.grad(partial(loss, engine))(xs) for engine in (Newton(jacobian), Scan())])
    got, expected = both(np.zeros((steps, 1)))
    assert np.abs(expected).max() > 0
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
    cell = eqx.filter_eval_shape(partial(rnnjax.GRU, 1, 1024), key=grid.KEY)
    xs = jax.ShapeDtypeStruct((100_000, 1), "float32")
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: int(80e9))
    message = grid.refusal(Newton(), cell, xs)
    assert "100000 of 1024 x 1024, and the scan of them take 1681 GB, and there are 80 GB" in message
    assert "Use Newton(Diagonal()), fewer or shorter sequences, or Scan()" in message
    assert grid.refusal(Newton(Diagonal()), cell, xs) is None
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: int(4e9))
    message = grid.refusal(Newton(Diagonal()), cell, xs)
    assert "100000 x 1024 of 1 x 1, and the scan of them take 4.9 GB, and there are 4 GB. Use fewer" in message


def test_a_batch_that_does_not_fit_is_refused_though_one_sequence_would(monkeypatch):
    cell, newton = grid.build("gru"), Newton()
    monkeypatch.setattr("rnnjax.engines.newton.memory.memory", lambda: 2 * 10**5)
    assert grid.refusal(newton, cell, grid.inputs(40)) is None
    with pytest.raises(ValueError, match="cannot run GRU: its Jacobians, 64 x 40 x 1 of 8 x 8"):
        jax.eval_shape(jax.vmap(lambda xs: unroll(cell, None, xs, engine=newton)), grid.inputs(64, 40))


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
    assert_within(values_and_gradients(Newton(), lru, xs), values_and_gradients(Scan(), lru, xs), 1e-11)


def test_solve_takes_cells():
    with pytest.raises(TypeError, match=r"cell: expected a cell, got Stack\. Solve for each cell"):
        Newton().solve(grid.build("stack"), None, grid.inputs(3))


def test_solve_wants_a_step():
    with pytest.raises(ValueError, match="xs: expected at least one step, got T=0"):
        Newton().solve(grid.build("gru"), None, grid.inputs(0))
