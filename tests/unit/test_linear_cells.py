"""What is said of the linear cells and of the networks around them: where they start, how far, and how safely."""

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import expit

import rnnjax
from rnnjax import Hidden, initialise, unroll
from rnnjax.networks.gated_lru import log_softplus, root_of_rest

T, I, H = 12, 3, 8  # noqa: E741
F32, F64 = jnp.float32, jnp.float64

PARTS = {
    "linear_rnn": rnnjax.LinearRNN,
    "min_gru": rnnjax.MinGRU,
    "min_gru_positive": partial(rnnjax.MinGRU, activation=rnnjax.cells.positive),
    "min_lstm": rnnjax.MinLSTM,
    "sru": rnnjax.SRU,
    "lru": rnnjax.LRU,
    "s5": rnnjax.S5,
    "qrnn": rnnjax.QRNN,
    "rg_lru": lambda inputs, _, **options: rnnjax.RGLRU(inputs, **options),
    "cg_lru": lambda inputs, _, **options: grid.of_pairs(inputs, **options),
}
QUICK_PARTS = ("linear_rnn", "min_lstm", "lru", "s5", "rg_lru")
ENGINES = {"sequential": rnnjax.Scan(), "parallel": rnnjax.Associative()}


@lru_cache
def key() -> jax.Array:
    with jax.ensure_compile_time_eval():  # also where it is first asked for inside of a trace
        return jax.random.key(13)


@lru_cache
def run(*engines: str) -> Callable[..., Any]:
    """`unroll` by each of the engines, as one program; compiled once for each form of a cell."""
    return eqx.filter_jit(
        lambda *arguments, **options: [unroll(*arguments, engine=ENGINES[engine], **options) for engine in engines]
    )


def inputs(steps: int, dtype: Any = F64) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((steps, I)).astype(dtype)


def widened(part: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)


@pytest.mark.parametrize(
    "name", [name if name in QUICK_PARTS else pytest.param(name, marks=pytest.mark.slow) for name in PARTS]
)
def test_float32_keeps_its_digits_over_a_thousand_steps(name):
    part, exact = (PARTS[name](I, H, key=key(), dtype=dtype) for dtype in (F32, F64))
    exact = jax.tree.unflatten(jax.tree.structure(exact), [np.asarray(leaf, F64) for leaf in jax.tree.leaves(part)])
    xs = inputs(1000, F32)

    @jax.jit
    def both(part: Any, exact: Any, xs: jax.Array) -> Any:
        expected = unroll(exact, None, xs.astype(F64), engine=ENGINES["sequential"])[1]
        return expected, [unroll(part, None, xs, engine=engine)[1] for engine in ENGINES.values()]

    expected, found = both(part, exact, xs)
    for ys in found:
        assert ys.dtype == F32
        np.testing.assert_allclose(ys, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["lru", "qrnn", "rg_lru"])
def test_steps_one_by_one_are_one_pass(name):
    """Streaming: each step is a call of its own; in parallel along time all of them at once."""

    @jax.jit
    def both(part: Any, xs: jax.Array) -> Any:
        step = lambda state, x: unroll(part, state, x[None], engine=ENGINES["sequential"])  # noqa: E731
        return jax.lax.scan(step, part.initial(), xs), unroll(part, None, xs, engine=ENGINES["parallel"])

    (last, ys), (whole_last, whole) = both(PARTS[name](I, H, key=key(), dtype=F64), inputs(100))
    np.testing.assert_allclose(ys[:, 0], whole, rtol=0, atol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), last, whole_last)


# Real diagonals


def test_time_constants_are_log_uniform():
    decay = initialise.time_constants(2.0, 500.0)(key(), (4000,), F64)
    tau = np.log(-1 / np.log(decay))
    assert np.log(2) <= tau.min() < np.log(2.1)
    assert np.log(480) < tau.max() <= np.log(500)
    np.testing.assert_allclose(tau.mean(), np.log(2 * 500) / 2, atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear_rnn_starts_below_one_in_any_dtype(dtype):
    cell = rnnjax.LinearRNN(I, 500, key=key(), dtype=jnp.dtype(dtype))
    assert cell.decay.dtype == dtype
    decay = np.asarray(cell.decay, np.float64)
    assert decay.min() > 0
    assert 0.99 < decay.max() < 1


def gates(*biases: float, dtype: Any = F64) -> np.ndarray:
    """What the coefficients are of where the gates are these numbers, before their nonlinearities."""
    return np.repeat(np.asarray(biases, dtype)[:, None], H, axis=1)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_min_lstm_shares_where_both_gates_are_shut(dtype):
    cell = rnnjax.MinLSTM(I, H, key=key(), dtype=dtype)

    @jax.jit
    def both(u: jax.Array, shut: jax.Array) -> Any:
        return cell.coefficients(u), jax.jacobian(cell.coefficients)(shut)

    (keep, written), slopes = both(gates(-10_000.0, -9_999.0, 1.0, dtype=dtype), np.full((3, H), -10_000.0, dtype))
    np.testing.assert_allclose(keep, 1 / (1 + np.exp(-1)), rtol=1e-6)
    np.testing.assert_allclose(written, 1 / (1 + np.exp(1)), rtol=1e-6)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_what_is_kept_is_no_difference_from_one():
    """A gate that all but closes keeps its digits, so that the gradient through many steps of it does."""
    us = {rnnjax.MinGRU: gates(60.0, 1.0), rnnjax.MinLSTM: gates(10.0, -60.0, 1.0), rnnjax.SRU: gates(60.0, 1.0)}
    cells = [(make(I, H, key=key(), dtype=F64), u) for make, u in us.items()]
    made = jax.jit(lambda cells: [cell.coefficients(u) for cell, u in cells])(cells)
    for (a, b), cell in zip(made, us, strict=True):
        small = np.asarray(b if cell is rnnjax.SRU else a)
        assert np.all((small > 1e-27) & (small < 1e-25)), cell


@pytest.mark.parametrize("cell", [rnnjax.MinGRU, rnnjax.MinLSTM])
def test_positive_candidates_keep_the_state_positive(cell):
    made = cell(I, H, key=key(), activation=rnnjax.cells.positive)
    lowest = jax.jit(lambda xs: unroll(made, None, xs)[1].min())
    assert lowest(np.float32(3) * inputs(200, F32)) > 0
    assert lowest(np.float32(1000) * inputs(200, F32)) == 0  # where a gate underflows; never below


def test_positive_joins_its_halves():
    n = np.asarray([-800.0, -1.0, -1e-9, 0.0, 1e-9, 3.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(rnnjax.cells.positive)))(n)
    np.testing.assert_allclose(values, [0, 1 / (1 + np.e), 0.5, 0.5, 0.5, 3.5], atol=1e-8)
    np.testing.assert_allclose(slopes, [0, np.e / (1 + np.e) ** 2, 0.25, 1, 1, 1], atol=1e-8)


def test_sru_without_its_highway_or_without_its_state():
    cell = rnnjax.SRU(I, I, key=key(), dtype=F64)
    assert cell.output_weight.shape == (I, I)
    xs, state, bias = inputs(T), Hidden(np.linspace(-1.0, 1.0, I)), np.asarray(cell.bias)
    open_, shut = (
        eqx.tree_at(lambda cell: cell.bias, cell, np.concatenate([bias[:I], np.full(I, gate)]))
        for gate in (900.0, -900.0)
    )
    [(_, ys)] = run("sequential")(shut, state, xs)
    np.testing.assert_allclose(ys, xs, rtol=1e-12)
    [(last, ys)] = run("sequential")(open_, state, xs)
    np.testing.assert_allclose(ys[-1], np.tanh(last.h), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_linear_recurrence_takes_its_coefficients_as_inputs(dtype):
    cell = rnnjax.LinearRecurrence(Hidden(np.zeros(H, dtype)))
    parts = np.random.default_rng(4).standard_normal((2, 2, T, H))
    a, b = parts[0] + 1j * parts[1] if dtype == "complex128" else parts[0]
    h, expected = np.zeros(H, dtype), []
    for step in range(T):
        h = a[step] * (0 if step == 5 else h) + b[step]
        expected.append(h)
    for last, ys in run(*ENGINES)(cell, None, (a, b), resets=np.arange(T) == 5):
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(last.h, expected[-1], rtol=0, atol=1e-12)


class OneGate(rnnjax.AbstractLinearCell):
    """h_t = a h_{t-1} + x_t, with one number for all units, be it a gate or a constant."""

    gate: Any = eqx.field(static=True)
    initial_state: None = None

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((4,), F64)

    def initial(self) -> Hidden:
        return Hidden(jnp.zeros(4))

    def project(self, xs: jax.Array) -> jax.Array:
        return xs

    def coefficients(self, u: jax.Array) -> Any:
        return self.gate(u), u

    def readout(self, states: Hidden, xs: jax.Array) -> jax.Array:
        del xs
        return states.h


@pytest.mark.parametrize("gate", [lambda u: jax.nn.sigmoid(u[0]), lambda u: jax.nn.sigmoid(u[:1]), lambda _: 0.9])
def test_one_coefficient_may_serve_all_units(gate):
    xs = np.random.default_rng(5).standard_normal((16, 4))
    engines = ENGINES["sequential"], ENGINES["parallel"], rnnjax.Associative(block=4), rnnjax.Auto()
    together = jax.jit(lambda xs: [unroll(OneGate(gate), None, xs, engine=one, length=11)[1] for one in engines])
    expected, *found = together(xs)
    for ys in found:
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("gate", "shown"),
    [
        (lambda u: u[:2], r"got a f64\[2\] and b f64\[4\]"),
        (lambda u: jax.lax.complex(u, u), r"got a c128\[4\] and b f64\[4\]"),
    ],
)
def test_coefficients_that_do_not_fit_the_state_are_refused(gate, shown):
    with pytest.raises(ValueError, match=r"OneGate.coefficients: expected a and b that fit the state, .*" + shown):
        run("parallel")(OneGate(gate), None, np.ones((16, 4)))


def test_a_plain_function_at_every_step_is_no_weight():
    network = rnnjax.Stack([rnnjax.TimeDistributed(jnp.tanh, I), rnnjax.MinGRU(I, H, key=key(), dtype=F32)])
    loss = lambda network: jnp.sum(unroll(network, None, inputs(T, F32))[1])  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(network)
    assert np.isfinite(value)
    assert len(jax.tree.leaves(gradient)) == 2


# Complex diagonals


@pytest.mark.parametrize("make", [rnnjax.LRU, rnnjax.S5])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_complex_cells_have_real_weights_and_a_complex_state(make, dtype):
    cell = make(I, H, key=key(), learn_initial=True, dtype=jnp.dtype(dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cell)} == {dtype}
    assert jax.eval_shape(cell.initial).h.dtype == ("complex128" if dtype == "float64" else "complex64")


@lru_cache
def coefficients() -> Callable[..., Any]:
    """A cell's coefficients; compiled once for each form of a cell."""
    return eqx.filter_jit(lambda cell, u: cell.coefficients(u))


def eigenvalues(cell: rnnjax.LRU) -> np.ndarray:
    return np.asarray(coefficients()(cell, np.zeros((2, len(cell.nu)), cell.nu.dtype))[0])


@lru_cache
def slope_of_sum() -> Callable[[Any], Any]:
    """The gradient in a cell of the sum of its outputs; compiled once for each form of a cell."""
    return eqx.filter_jit(eqx.filter_grad(lambda cell: unroll(cell, None, inputs(T, F32))[1].sum()))


def test_lru_starts_on_its_ring():
    cell = rnnjax.LRU(I, 4000, key=key(), r_min=0.6, r_max=0.9, max_phase=0.5, dtype=F64)
    found = eigenvalues(cell)
    squared, angle = np.abs(found) ** 2, np.angle(found)
    assert 0.36 - 1e-6 <= squared.min() < 0.37
    assert 0.80 < squared.max() <= 0.81 + 1e-6
    np.testing.assert_allclose(squared.mean(), (0.36 + 0.81) / 2, atol=0.01)  # uniform in area
    assert 0 < angle.min() < 0.01
    assert 0.49 < angle.max() <= 0.5 + 1e-6
    np.testing.assert_allclose(np.exp(2 * np.asarray(cell.log_gamma)) + squared, 1, atol=1e-6)


@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_lru_starts_finite_at_the_edges_of_the_disc(r_min, r_max):
    cell = rnnjax.LRU(I, 1000, key=key(), r_min=r_min, r_max=r_max)
    assert np.abs(eigenvalues(cell)).max() <= 1
    for tree in (cell, slope_of_sum()(cell)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_lru_draws_the_variances_of_the_paper():
    cell = rnnjax.LRU(200, 300, key=key())
    np.testing.assert_allclose(np.var(np.asarray(cell.input_weight)), 1 / (2 * 200), rtol=0.05)
    np.testing.assert_allclose(np.var(np.asarray(cell.output_weight)), 1 / 300, rtol=0.05)
    np.testing.assert_allclose(np.var(np.asarray(cell.skip)), 1, rtol=0.3)


def hippo(states: int) -> np.ndarray:
    """HiPPO-N, written out entry by entry: the normal part of HiPPO-LegS."""
    matrix = np.zeros((states, states))
    for n in range(states):
        for k in range(states):
            legs = -np.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1.0) if n == k else 0.0
            matrix[n, k] = legs + np.sqrt((n + 0.5) * (k + 0.5))
    return matrix


@pytest.mark.parametrize("states", [2, 8, 64])
def test_hippo_normal_is_the_matrix_of_numpy(states):
    values, vectors = initialise.hippo_normal(states)
    dense = hippo(states)
    found = np.linalg.eigvals(dense)
    above = found[found.imag > 0]
    np.testing.assert_allclose(np.sort(values.imag), np.sort(above.imag), rtol=1e-10)
    np.testing.assert_allclose(values.real, -0.5)
    np.testing.assert_allclose(2 * np.real(vectors * values @ vectors.conj().T), dense, atol=1e-10 * states**2)


def held(A: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The maps of the state and of B x over a step of h' = A h + B x where x is held, by matrix exponentials."""
    a = expm(A * step)
    return a, np.linalg.solve(A, a - np.eye(len(A)))


def trapezoidal(A: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The maps of the state and of B x over a step by the trapezoidal rule, by matrix inverses."""
    implicit = np.linalg.inv(np.eye(len(A)) - A * step / 2)
    return implicit @ (np.eye(len(A)) + A * step / 2), step * implicit


@pytest.mark.parametrize(
    ("discretise", "maps"), [(rnnjax.cells.zero_order_hold, held), (rnnjax.cells.bilinear, trapezoidal)]
)
def test_s5_answers_an_impulse_as_the_dense_system(discretise, maps):
    """Its answer, with B and C as they were drawn, is that of h' = A h + B x, made discrete with dense matrices."""
    states, blocks, step = 12, 2, 0.07
    random = np.random.default_rng(0)
    B, C = random.standard_normal((I, states)), random.standard_normal((states, I))
    cell = rnnjax.S5(
        I,
        states,
        key=key(),
        blocks=blocks,
        skip=False,
        shortest_step=step,
        longest_step=step,
        discretise=discretise,
        input_initialiser=lambda *_: jax.device_put(B),
        output_initialiser=lambda *_: jax.device_put(C),
        dtype=F64,
    )
    cell = eqx.tree_at(lambda cell: cell.log_step, cell, np.full(states // 2, np.log(step)))
    dense = np.kron(np.eye(blocks), hippo(states // blocks))
    a, scale = maps(dense, step)
    expected = [C.T @ np.linalg.matrix_power(a, step) @ scale @ B.T for step in range(T)]  # [O, I]
    for feature in range(I):
        impulse = np.outer(np.arange(T) == 0, np.eye(I)[feature])
        for _, ys in run(*ENGINES)(cell, None, impulse):
            np.testing.assert_allclose(ys, np.stack(expected)[:, :, feature], atol=1e-12)


def test_s5_keeps_its_digits_at_short_steps():
    """What is written in a short step is nearly nothing, which exp(z) - 1 would not be to seven digits."""
    cell = rnnjax.S5(I, H, key=key(), blocks=4, shortest_step=1e-5, longest_step=1e-4)
    _, written = coefficients()(cell, np.ones((2, H // 2), F32))
    _, expected = coefficients()(widened(cell), np.ones((2, H // 2)))
    np.testing.assert_allclose(written, expected, rtol=1e-6)


def test_s5_with_a_bound_trains_the_real_parts_and_clips_them():
    """It starts where S5 starts; a unit beyond the bound decays as one at the bound, and has no gradient."""
    make = partial(rnnjax.S5, I, H, key=key(), blocks=2, dtype=F64)
    free, bounded = make(), make(largest_real_part=-1e-4)
    beyond = eqx.tree_at(lambda cell: cell.real_part, bounded, np.asarray([0.5, -1e-5, -0.5, -3.0]))

    @jax.jit
    def values(free: Any, bounded: Any, beyond: Any) -> Any:
        slope = jax.grad(lambda cell: unroll(cell, None, inputs(T))[1].sum())(beyond)
        return free.eigenvalues(F64), bounded.eigenvalues(F64), beyond.eigenvalues(F64).real, slope.real_part

    expected, found, clipped, slope = values(free, bounded, beyond)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(clipped, [-1e-4, -1e-4, -0.5, -3.0])
    np.testing.assert_array_equal(slope != 0, [False, False, True, True])


def test_s5_draws_its_steps_log_uniformly():
    steps = np.asarray(rnnjax.S5(I, 4000, key=key(), blocks=100).log_step)
    assert np.log(0.001) <= steps.min() < np.log(0.0011)
    assert np.log(0.095) < steps.max() <= np.log(0.1)
    np.testing.assert_allclose(steps.mean(), np.log(0.001 * 0.1) / 2, atol=0.1)


# The real-gated unit


def test_rg_lru_starts_within_the_bounds_of_the_paper():
    network = rnnjax.RGLRU(4000, key=key(), heads=100)
    kept = np.exp(-8 * np.log1p(np.exp(np.asarray(network.decay, np.float64))))
    assert 0.9 - 1e-5 <= kept.min() < 0.901
    assert 0.998 < kept.max() <= 0.999 + 1e-5
    np.testing.assert_allclose(kept.mean(), 0.9495, atol=0.005)


def test_rg_lru_takes_its_first_step_whole():
    network, xs = rnnjax.RGLRU(I, key=key(), dtype=F64), inputs(T)
    i = expit(xs @ np.asarray(network.gate_weight)[:, I:] + np.asarray(network.bias)[I:])
    run = jax.jit(lambda state, resets, length: unroll(network, state, xs, resets=resets, length=length))
    state, none = jax.jit(lambda: network.initial())(), np.zeros(T, bool)
    assert not state.begun
    last, ys = as_numpy(run(state, np.arange(T) == 5, T))
    np.testing.assert_allclose(ys[0], i[0] * xs[0], rtol=1e-12)
    np.testing.assert_allclose(ys[5], i[5] * xs[5], rtol=1e-12)
    assert np.all(np.abs(ys[1]) < np.abs(i[1] * xs[1]) + np.abs(ys[0]))
    assert last.begun
    after, ys = as_numpy(run(last._replace(h=np.zeros(I)), none, T))
    assert np.all(np.abs(ys[0]) < 0.9 * np.abs(i[0] * xs[0]))
    assert not run(state, none, 0)[0].begun
    assert run(after, none, 0)[0].begun


def as_numpy(tree: Any) -> Any:
    """`tree` with arrays of NumPy."""
    return jax.tree.map(np.asarray, tree)


@lru_cache
def at_each(function: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray], Any]:
    """The values of a function of one number, and its slopes."""
    return jax.jit(jax.vmap(jax.value_and_grad(function)))


LOGARITHMS = [-700.0, -100.0, -40.0, -12.1, -11.9, -5.0, -1.0, 0.0, 1.0, 5.0]


def test_the_root_and_its_slope_are_right_where_it_is_the_root_of_nothing():
    values, slopes = at_each(root_of_rest)(np.asarray(LOGARITHMS))
    rate = np.exp(np.asarray(LOGARITHMS, np.longdouble))
    root = np.sqrt(-np.expm1(-rate))
    np.testing.assert_allclose(values, root.astype(float), rtol=1e-14)
    np.testing.assert_allclose(slopes, (rate * np.exp(-rate) / (2 * root)).astype(float), rtol=1e-12, atol=1e-16)


def test_the_logarithm_of_softplus_where_softplus_is_lost():
    n = np.asarray([-1e4, -800.0, -41.0, -39.0, -3.0, 0.0, 3.0, 800.0])
    expected = np.where(n < -30, n - np.exp(np.minimum(n, 0)) / 2, np.log(np.logaddexp(np.maximum(n, -30), 0)))
    values, slopes = at_each(log_softplus)(n)
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    softplus = np.logaddexp(n, 0)
    exact = np.where(n < -700, 1, 1 / (1 + np.exp(-np.maximum(n, -700))) / np.maximum(softplus, 1e-300))
    np.testing.assert_allclose(slopes, exact, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_rg_lru_never_has_an_infinite_gradient(dtype):
    network, xs = rnnjax.RGLRU(I, key=key(), dtype=jnp.dtype(dtype)), inputs(T, jnp.dtype(dtype))

    def slope(decay: jax.Array, gate: jax.Array) -> Any:
        fields = lambda network: (network.decay, network.bias)  # noqa: E731
        extreme = eqx.tree_at(fields, network, (jnp.full(I, decay), jnp.full(2 * I, gate)))
        loss = lambda network, xs: unroll(network, None, xs, engine=ENGINES["sequential"])[1].sum()  # noqa: E731
        return jax.value_and_grad(loss, (0, 1))(extreme, xs)

    extremes = np.asarray([-3e38, -1e4, -60.0, 0.0, 60.0, 1e4, 3e38]).astype(jnp.dtype(dtype))
    slopes = jax.jit(jax.vmap(jax.vmap(slope, (None, 0)), (0, None)))(extremes, extremes)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


# Convolutions


def test_a_dense_convolution_is_one_product():
    network = rnnjax.networks.CausalConvolution(I, H, window=4, key=key())
    lowered = str(jax.make_jaxpr(lambda xs: unroll(network, None, xs))(inputs(T, F32)))
    assert lowered.count("dot_general") == 1
    assert "conv_general" not in lowered


RESETS = (), (0,), (3, 5, 11)


@lru_cache
def by_window(window: int) -> tuple[Any, Any]:
    """Value and gradient by inputs and state under each of the resets: of the whole, and piece by piece."""
    network = rnnjax.networks.CausalConvolution(I, H, window=window, key=key(), dtype=F64)
    state = np.random.default_rng(6).standard_normal((window - 1, I))
    state = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(network.initial)), [state])

    def pieces(resets: tuple[int, ...], state: Any, xs: jax.Array) -> Any:
        ys = []
        for start, stop in pairwise([0, *resets, T]):
            state, piece = unroll(network, network.initial() if start in resets else state, xs[start:stop])
            ys.append(piece)
        return state, jnp.concatenate(ys)

    def both(function: Any, state: Any, xs: jax.Array) -> Any:
        values, transpose = jax.vjp(function, state, xs)
        return values, transpose(jax.tree.map(jnp.cos, values))

    @jax.jit
    def compiled(flags: dict[Any, jax.Array], state: Any, xs: jax.Array) -> Any:
        whole = {at: both(partial(unroll, network, resets=flags[at]), state, xs) for at in RESETS}
        return whole, {at: both(partial(pieces, at), state, xs) for at in RESETS}

    return compiled({at: np.isin(np.arange(T), at) for at in RESETS}, state, inputs(T))


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("window", [1, 3, pytest.param(14, marks=pytest.mark.slow)])
def test_convolution_sees_nothing_of_before_a_reset(window, resets):
    """Value and gradient by inputs and state are those of the pieces, each fed by itself."""
    whole, pieces = by_window(window)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), whole[resets], pieces[resets])


def test_the_output_gate_passes_no_nan_on_that_the_pooling_holds():
    """After the window has gone past a NaN the gates are finite again, and c is not until the next reset."""
    network, clean, t = rnnjax.QRNN(I, H, key=key(), window=2, dtype=F64), inputs(T), 8
    resets, poisoned = np.arange(T) == t, clean.copy()
    poisoned[2, 0] = np.nan

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slope(network: Any, xs: jax.Array) -> Any:
        ys = unroll(network, None, xs, resets=resets)[1]
        return jnp.sum(ys[t:]), ys

    gradient, ys = slope(network, poisoned)
    assert np.isnan(ys[2:t]).all()
    expected, _ = slope(network, clean)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), gradient, expected)
