"""What is said of the linear cells and of the networks around them: where they start, how far, and how safely."""

from functools import partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import rnnjax
from rnnjax import Hidden, initialise, unroll
from rnnjax.networks.rg_lru import log_softplus, root_of_rest

T, I, H = 12, 3, 8  # noqa: E741
KEY = jax.random.key(13)
F32, F64 = jnp.float32, jnp.float64

PARTS = {
    "linear_rnn": rnnjax.LinearRNN,
    "min_gru": rnnjax.MinGRU,
    "min_gru_positive": partial(rnnjax.MinGRU, activation=rnnjax.positive),
    "min_lstm": rnnjax.MinLSTM,
    "sru": rnnjax.SRU,
    "lru": rnnjax.LRU,
    "s5": rnnjax.S5,
    "qrnn": rnnjax.QRNN,
    "rg_lru": lambda inputs, _, **options: rnnjax.RGLRU(inputs, **options),
}
run = eqx.filter_jit(unroll)
SEQUENTIAL, PARALLEL = rnnjax.Scan(), rnnjax.Associative()


def inputs(steps: int, dtype: Any = F64) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (steps, I), F32).astype(dtype)


@pytest.mark.parametrize("name", PARTS)
def test_float32_keeps_its_digits_over_a_thousand_steps(name):
    part, xs = PARTS[name](I, H, key=KEY, dtype=F32), inputs(1000, F32)
    exact = jax.tree.map(lambda leaf: leaf.astype(F64), part)
    _, expected = run(exact, None, xs.astype(F64), engine=SEQUENTIAL)
    for engine in (SEQUENTIAL, PARALLEL):
        _, ys = run(part, None, xs, engine=engine)
        assert ys.dtype == F32
        np.testing.assert_allclose(ys, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["lru", "qrnn", "rg_lru"])
def test_steps_one_by_one_are_one_pass(name):
    """Streaming: each step is a call of its own; in parallel along time all of them at once."""
    part, xs = PARTS[name](I, H, key=KEY, dtype=F64), inputs(100)

    @eqx.filter_jit
    def stream(part: Any, xs: jax.Array) -> Any:
        return jax.lax.scan(lambda state, x: unroll(part, state, x[None], engine=SEQUENTIAL), part.initial(), xs)

    last, ys = stream(part, xs)
    whole_last, whole = run(part, None, xs, engine=PARALLEL)
    np.testing.assert_allclose(ys[:, 0], whole, rtol=0, atol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), last, whole_last)


# Real diagonals


def test_time_constants_are_log_uniform():
    decay = initialise.time_constants(2.0, 500.0)(KEY, (4000,), F64)
    tau = np.log(-1 / np.log(decay))
    assert np.log(2) <= tau.min() < np.log(2.1)
    assert np.log(480) < tau.max() <= np.log(500)
    np.testing.assert_allclose(tau.mean(), np.log(2 * 500) / 2, atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear_rnn_starts_below_one_in_any_dtype(dtype):
    cell = rnnjax.LinearRNN(I, 500, key=KEY, dtype=jnp.dtype(dtype))
    assert cell.decay.dtype == dtype
    assert float(cell.decay.min()) > 0
    assert 0.99 < float(cell.decay.max()) < 1


def gates(cell: Any, *biases: float) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients where the gates are these numbers, before their nonlinearities."""
    u = jnp.broadcast_to(jnp.asarray(biases, cell.bias.dtype)[:, None], cell.bias.shape)
    return cell.coefficients(u)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_min_lstm_shares_where_both_gates_are_shut(dtype):
    cell = rnnjax.MinLSTM(I, H, key=KEY, dtype=dtype)
    keep, written = gates(cell, -10_000.0, -9_999.0, 1.0)
    np.testing.assert_allclose(keep, 1 / (1 + np.exp(-1)), rtol=1e-6)
    np.testing.assert_allclose(written, 1 / (1 + np.exp(1)), rtol=1e-6)
    slopes = jax.jacobian(lambda u: cell.coefficients(u))(jnp.full((3, H), -10_000.0, dtype))
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_what_is_kept_is_no_difference_from_one():
    """A gate that all but closes keeps its digits, so that the gradient through many steps of it does."""
    for cell, biases in ((rnnjax.MinGRU, (60.0, 1.0)), (rnnjax.MinLSTM, (10.0, -60.0, 1.0)), (rnnjax.SRU, (60.0, 1.0))):
        made = cell(I, H, key=KEY, dtype=F64)
        a, b = gates(made, *biases)
        small = b if cell is rnnjax.SRU else a
        assert np.all((small > 1e-27) & (small < 1e-25))


@pytest.mark.parametrize("cell", [rnnjax.MinGRU, rnnjax.MinLSTM])
def test_positive_candidates_keep_the_state_positive(cell):
    made = cell(I, H, key=KEY, activation=rnnjax.positive)
    assert float(run(made, None, 3 * inputs(200, F32))[1].min()) > 0
    assert float(run(made, None, 1000 * inputs(200, F32))[1].min()) == 0  # where a gate underflows; never below


def test_positive_joins_its_halves():
    n = jnp.asarray([-800.0, -1.0, -1e-9, 0.0, 1e-9, 3.0])
    np.testing.assert_allclose(rnnjax.positive(n), [0, 1 / (1 + np.e), 0.5, 0.5, 0.5, 3.5], atol=1e-8)
    slopes = jax.vmap(jax.grad(rnnjax.positive))(n)
    np.testing.assert_allclose(slopes, [0, np.e / (1 + np.e) ** 2, 0.25, 1, 1, 1], atol=1e-8)


def test_sru_without_its_highway_or_without_its_state():
    cell = rnnjax.SRU(I, I, key=KEY, dtype=F64)
    assert cell.output_weight.shape == (I, 1, I)
    xs, state = inputs(T), Hidden(jnp.linspace(-1.0, 1.0, I))
    open_, shut = (eqx.tree_at(lambda cell: cell.bias, cell, cell.bias.at[1].set(bias)) for bias in (900.0, -900.0))
    np.testing.assert_allclose(run(shut, state, xs)[1], xs, rtol=1e-12)
    last, ys = run(open_, state, xs)
    np.testing.assert_allclose(ys[-1], np.tanh(last.h), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_linear_recurrence_takes_its_coefficients_as_inputs(dtype):
    cell = rnnjax.LinearRecurrence(Hidden(jnp.zeros(H, dtype)))
    a, b = jax.random.normal(KEY, (2, T, H), jnp.dtype(dtype))
    resets = jnp.arange(T) == 5
    h, expected = np.zeros(H, dtype), []
    for step in range(T):
        h = np.asarray(a[step] * (0 if step == 5 else h) + b[step])
        expected.append(h)
    for engine in (SEQUENTIAL, PARALLEL):
        last, ys = run(cell, None, (a, b), resets=resets, engine=engine)
        np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(last.h, expected[-1], rtol=0, atol=1e-12)


class OneGate(rnnjax.AbstractLinearCell):
    """h_t = a h_{t-1} + x_t, with one number for all units, be it a gate or a constant."""

    gate: Any = eqx.field(static=True)
    start: None = None

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
    xs = jax.random.normal(KEY, (16, 4), F64)
    _, expected = run(OneGate(gate), None, xs, engine=SEQUENTIAL, length=11)
    for engine in (PARALLEL, rnnjax.Associative(block=4), rnnjax.Auto()):
        _, ys = run(OneGate(gate), None, xs, engine=engine, length=11)
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
        run(OneGate(gate), None, jnp.ones((16, 4)), engine=PARALLEL)


def test_a_plain_function_at_every_step_is_no_weight():
    network = rnnjax.Stack([rnnjax.TimeDistributed(jnp.tanh, I), rnnjax.MinGRU(I, H, key=KEY, dtype=F32)])
    loss = lambda network: jnp.sum(unroll(network, None, inputs(T, F32))[1])  # noqa: E731
    assert jnp.isfinite(jax.jit(loss)(network))
    assert len(jax.tree.leaves(jax.grad(loss)(network))) == 2


# Complex diagonals


@pytest.mark.parametrize("make", [rnnjax.LRU, rnnjax.S5])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_complex_cells_have_real_weights_and_a_complex_state(make, dtype):
    cell = make(I, H, key=KEY, learn_initial=True, dtype=jnp.dtype(dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cell)} == {dtype}
    assert cell.initial().h.dtype == ("complex128" if dtype == "float64" else "complex64")


def eigenvalues(cell: rnnjax.LRU) -> np.ndarray:
    return np.asarray(eqx.filter_jit(cell.coefficients)(jnp.zeros((2, len(cell.nu)), cell.nu.dtype))[0])


def test_lru_starts_on_its_ring():
    cell = rnnjax.LRU(I, 4000, key=KEY, r_min=0.6, r_max=0.9, max_phase=0.5, dtype=F64)
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
    cell = rnnjax.LRU(I, 1000, key=KEY, r_min=r_min, r_max=r_max)
    assert np.abs(eigenvalues(cell)).max() <= 1
    loss = lambda cell: run(cell, None, inputs(T, F32))[1].sum()  # noqa: E731
    for tree in (cell, jax.jit(jax.grad(loss))(cell)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_lru_draws_the_variances_of_the_paper():
    cell = rnnjax.LRU(200, 300, key=KEY)
    np.testing.assert_allclose(np.var(cell.input_weight), 1 / (2 * 200), rtol=0.05)
    np.testing.assert_allclose(np.var(cell.output_weight), 1 / 300, rtol=0.05)
    np.testing.assert_allclose(np.var(cell.skip), 1, rtol=0.3)


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


def test_s5_answers_an_impulse_as_the_dense_system():
    """Its answer, with B and C as they were drawn, is that of h' = A h + B x under a hold, by matrix exponentials."""
    states, blocks, step = 12, 2, 0.07
    random = np.random.default_rng(0)
    B, C = random.standard_normal((I, states)), random.standard_normal((states, I))
    cell = rnnjax.S5(
        I,
        states,
        key=KEY,
        blocks=blocks,
        skip=False,
        shortest_step=step,
        longest_step=step,
        input_initialiser=lambda *_: jnp.asarray(B),
        output_initialiser=lambda *_: jnp.asarray(C),
        dtype=F64,
    )
    cell = eqx.tree_at(lambda cell: cell.log_step, cell, jnp.full(states // 2, np.log(step)))
    dense = np.kron(np.eye(blocks), hippo(states // blocks))
    a = expm(dense * step)
    held = np.linalg.solve(dense, a - np.eye(states)) @ B.T
    expected = [C.T @ np.linalg.matrix_power(a, step) @ held for step in range(T)]  # [O, I]
    for feature in range(I):
        impulse = jnp.zeros((T, I)).at[0, feature].set(1.0)
        for engine in (SEQUENTIAL, PARALLEL):
            _, ys = run(cell, None, impulse, engine=engine)
            np.testing.assert_allclose(ys, np.stack(expected)[:, :, feature], atol=1e-12)


def test_s5_keeps_its_digits_at_short_steps():
    """What is written in a short step is nearly nothing, which exp(z) - 1 would not be to seven digits."""
    cell = rnnjax.S5(I, H, key=KEY, blocks=4, shortest_step=1e-5, longest_step=1e-4)
    u = jnp.ones((2, H // 2), F32)
    exact = jax.tree.map(lambda leaf: leaf.astype(F64), cell)
    _, written = eqx.filter_jit(cell.coefficients)(u)
    _, expected = eqx.filter_jit(exact.coefficients)(u.astype(F64))
    np.testing.assert_allclose(written, expected, rtol=1e-6)


def test_s5_draws_its_steps_log_uniformly():
    steps = np.asarray(rnnjax.S5(I, 4000, key=KEY, blocks=100).log_step)
    assert np.log(0.001) <= steps.min() < np.log(0.0011)
    assert np.log(0.095) < steps.max() <= np.log(0.1)
    np.testing.assert_allclose(steps.mean(), np.log(0.001 * 0.1) / 2, atol=0.1)


# The real-gated unit


def test_rg_lru_starts_within_the_bounds_of_the_paper():
    network = rnnjax.RGLRU(4000, key=KEY, heads=100)
    kept = np.exp(-8 * np.log1p(np.exp(np.asarray(network.decay, np.float64))))
    assert 0.9 - 1e-5 <= kept.min() < 0.901
    assert 0.998 < kept.max() <= 0.999 + 1e-5
    np.testing.assert_allclose(kept.mean(), 0.9495, atol=0.005)


def test_rg_lru_takes_its_first_step_whole():
    network = rnnjax.RGLRU(I, key=KEY, dtype=F64)
    xs = inputs(T)
    i = jax.nn.sigmoid(xs @ network.gate_weight[0, :, 1] + network.bias[1])
    state = network.initial()
    assert not state.begun
    last, ys = run(network, state, xs, resets=jnp.arange(T) == 5)
    np.testing.assert_allclose(ys[0], i[0] * xs[0], rtol=1e-12)
    np.testing.assert_allclose(ys[5], i[5] * xs[5], rtol=1e-12)
    assert np.all(np.abs(ys[1]) < np.abs(i[1] * xs[1]) + np.abs(ys[0]))
    assert last.begun
    after, ys = run(network, last._replace(h=jnp.zeros(I)), xs)
    assert np.all(np.abs(ys[0]) < 0.9 * np.abs(i[0] * xs[0]))
    assert not run(network, state, xs, length=0)[0].begun
    assert run(network, after, xs, length=0)[0].begun


LOGARITHMS = [-700.0, -100.0, -40.0, -12.1, -11.9, -5.0, -1.0, 0.0, 1.0, 5.0]


def test_the_root_and_its_slope_are_right_where_it_is_the_root_of_nothing():
    logarithms = jnp.asarray(LOGARITHMS)
    rate = np.exp(np.asarray(LOGARITHMS, np.longdouble))
    root = np.sqrt(-np.expm1(-rate))
    np.testing.assert_allclose(root_of_rest(logarithms), root.astype(float), rtol=1e-14)
    slopes = jax.vmap(jax.grad(root_of_rest))(logarithms)
    np.testing.assert_allclose(slopes, (rate * np.exp(-rate) / (2 * root)).astype(float), rtol=1e-12, atol=1e-16)


def test_the_logarithm_of_softplus_where_softplus_is_lost():
    n = np.asarray([-1e4, -800.0, -41.0, -39.0, -3.0, 0.0, 3.0, 800.0])
    expected = np.where(n < -30, n - np.exp(np.minimum(n, 0)) / 2, np.log(np.logaddexp(np.maximum(n, -30), 0)))
    np.testing.assert_allclose(log_softplus(jnp.asarray(n)), expected, rtol=1e-14)
    slopes = jax.vmap(jax.grad(log_softplus))(jnp.asarray(n))
    softplus = np.logaddexp(n, 0)
    exact = np.where(n < -700, 1, 1 / (1 + np.exp(-np.maximum(n, -700))) / np.maximum(softplus, 1e-300))
    np.testing.assert_allclose(slopes, exact, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_rg_lru_never_has_an_infinite_gradient(dtype):
    network, xs = rnnjax.RGLRU(I, key=KEY, dtype=jnp.dtype(dtype)), inputs(T, jnp.dtype(dtype))

    def loss(network: Any, xs: jax.Array) -> jax.Array:
        return run(network, None, xs, engine=SEQUENTIAL)[1].sum()

    @jax.jit
    def slope(decay: jax.Array, gate: jax.Array) -> Any:
        fields = lambda network: (network.decay, network.bias)  # noqa: E731
        extreme = eqx.tree_at(fields, network, (jnp.full(I, decay), jnp.full((2, I), gate)))
        return jax.value_and_grad(loss, (0, 1))(extreme, xs)

    extremes = jnp.asarray([-3e38, -1e4, -60.0, 0.0, 60.0, 1e4, 3e38], dtype)
    for leaf in jax.tree.leaves(jax.vmap(jax.vmap(slope, (None, 0)), (0, None))(extremes, extremes)):
        assert np.isfinite(leaf.astype(F64)).all()


# Convolutions


def test_a_dense_convolution_is_one_product():
    network = rnnjax.CausalConvolution(I, H, window=4, key=KEY)
    lowered = str(jax.make_jaxpr(lambda xs: unroll(network, None, xs))(inputs(T, F32)))
    assert lowered.count("dot_general") == 1
    assert "conv_general" not in lowered


@pytest.mark.parametrize("resets", [(), (0,), (3, 5, 11)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_convolution_sees_nothing_of_before_a_reset(window, resets):
    """Value and gradient by inputs and state are those of the pieces, each fed by itself."""
    network = rnnjax.CausalConvolution(I, H, window=window, key=KEY, dtype=F64)
    state = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape, F64), network.initial())
    flags = jnp.zeros(T, bool).at[jnp.asarray(resets, int)].set(True)

    def pieces(state: Any, xs: jax.Array) -> Any:
        ys = []
        for start, stop in pairwise([0, *resets, T]):
            state, piece = run(network, network.initial() if start in resets else state, xs[start:stop])
            ys.append(piece)
        return state, jnp.concatenate(ys)

    @partial(jax.jit, static_argnums=0)
    def both(function: Any) -> Any:
        values, transpose = jax.vjp(function, state, inputs(T))
        return values, transpose(jax.tree.map(jnp.cos, values))

    whole = both(lambda state, xs: run(network, state, xs, resets=flags))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), whole, both(pieces))


def test_the_output_gate_passes_no_nan_on_that_the_pooling_holds():
    """After the window has gone past a NaN the gates are finite again, and c is not until the next reset."""
    network, clean, t = rnnjax.QRNN(I, H, key=KEY, window=2, dtype=F64), inputs(T), 8
    resets, poisoned = jnp.arange(T) == t, clean.at[2, 0].set(jnp.nan)

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(network: Any, xs: jax.Array) -> jax.Array:
        return jnp.sum(unroll(network, None, xs, resets=resets)[1][t:])

    _, ys = run(network, None, poisoned, resets=resets)
    assert np.isnan(ys[2:t]).all()
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(close, slope(network, poisoned), slope(network, clean))
