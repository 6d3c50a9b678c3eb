"""Where the gradient goes: against finite differences, against products of Jacobians, against closed forms."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import rnnjax
from rnnjax import flat
from rnnjax.diagnose import plot, report

T = grid.T


@grid.once
def key() -> jax.Array:
    return jax.random.key(17)


@lru_cache
def _compiled(name: str) -> Any:
    return eqx.filter_jit(getattr(rnnjax.diagnose, name))


def ask(name: str, *arguments: Any, **options: Any) -> Any:
    """What the function of this name answers, as a compiled program that serves all arrays of the same shapes."""
    return jax.tree.map(np.asarray, _compiled(name)(*arguments, **options))


def contract(last, ys):
    """A loss that sees the last state and every output."""
    return grid.contract((last, ys))


def network(R, activation=jnp.tanh, dtype="float64"):
    """An Elman network with this R, and inputs of one number."""
    R = np.asarray(R, dtype)
    cell = rnnjax.Elman(1, len(R), key=key(), activation=activation, bias=False, dtype=dtype)
    return eqx.tree_at(lambda cell: cell.recurrent_weight, cell, grid.place(R))


def orthogonal(size):
    return np.linalg.qr(np.random.default_rng(17).normal(size=(size, size)))[0]


def quick(chosen: tuple[str, ...], names: Any) -> list[Any]:
    """The names as parameters, of which the quick tier has those that are chosen."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


CELLS = quick(("elman", "lru"), ("elman", "lstm_options", "projected_lstm", "diagonal_lstm", "lru"))


class Told(NamedTuple):
    """What is told of a cell; and what it is compared with, step by step."""

    jacobians: Any
    singular_values: Any
    product_norms: Any
    few_norms: Any
    by_lag: Any
    few_by_lag: Any
    differences: Any  # of finite size, in the place of the Jacobians
    readouts: Any  # the derivative of each output by the state it is read from
    by_end: Any  # the derivative of the loss by the last state
    by_outputs: Any  # and by the outputs


@lru_cache
def told(name: str) -> Told:
    """All of a cell by one program, along inputs that begin at a random state."""
    size = 1e-6

    cell = grid.build(name)

    @jax.jit
    def program(state: Any, xs: Any) -> Told:
        def step(state: Any, u: Any) -> Any:
            after = cell.step(state, u)
            return after, (state, after)

        us = cell.project(xs)
        last, (befores, afters) = jax.lax.scan(step, state, us)
        ys = cell.readout(afters, xs)

        def difference(before: Any, u: Any) -> Any:
            moved = lambda row: flat.pack(cell.step(flat.unpack(flat.pack(before) + row, before), u))  # noqa: E731
            row = lambda row: (moved(size * row) - moved(-size * row)) / (2 * size)  # noqa: E731
            return jax.vmap(row, out_axes=1)(jnp.eye(flat.pack(before).size))

        def readout(after: Any, x: Any) -> Any:
            over_time = lambda vector: jax.tree.map(lambda leaf: leaf[None], flat.unpack(vector, after))  # noqa: E731
            return jax.jacfwd(lambda vector: cell.readout(over_time(vector), x[None])[0])(flat.pack(after))

        by_end, by_outputs = jax.grad(lambda vector, ys: contract(flat.unpack(vector, last), ys), (0, 1))(
            flat.pack(last), ys
        )
        return Told(
            rnnjax.diagnose.jacobians(cell, state, xs),
            rnnjax.diagnose.singular_values(cell, state, xs),
            rnnjax.diagnose.product_norms(cell, state, xs),
            rnnjax.diagnose.product_norms(cell, state, xs, lags=3),
            rnnjax.diagnose.gradient_by_lag(contract, cell, state, xs),
            rnnjax.diagnose.gradient_by_lag(contract, cell, state, xs, lags=3),
            jax.vmap(difference)(befores, us),
            jax.vmap(readout)(afters, xs),
            by_end,
            by_outputs,
        )

    return jax.tree.map(np.asarray, program(grid.random_state(cell), grid.inputs(T)))


@pytest.mark.parametrize("cell", CELLS)
def test_jacobians_are_finite_differences(cell):
    np.testing.assert_allclose(told(cell).jacobians, told(cell).differences, atol=1e-8)


@pytest.mark.parametrize("cell", CELLS)
def test_spectrum_and_products_are_those_of_the_jacobians(cell):
    jacobians = told(cell).jacobians
    np.testing.assert_allclose(told(cell).singular_values, np.linalg.svd(jacobians, compute_uv=False), atol=1e-10)
    product, norms = np.eye(jacobians.shape[1]), [1.0]
    for jacobian in jacobians[::-1]:
        product = product @ jacobian
        norms.append(np.linalg.norm(product, 2))
    np.testing.assert_allclose(told(cell).product_norms, norms, rtol=1e-9)
    np.testing.assert_allclose(told(cell).few_norms, norms[:4], rtol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_by_lag_is_what_goes_back_through_each_step(cell):
    """By the outputs that are read from a state, and by the state after it."""
    jacobians, readouts, by_outputs = told(cell).jacobians, told(cell).readouts, told(cell).by_outputs
    read = [np.zeros(jacobians.shape[1]), *np.einsum("tod,to->td", readouts, by_outputs)]
    gradient = told(cell).by_end + read[T]
    norms = [np.linalg.norm(gradient)]
    for t in range(T - 1, -1, -1):
        gradient = gradient @ jacobians[t] + read[t]
        norms.append(np.linalg.norm(gradient))
    np.testing.assert_allclose(told(cell).by_lag, norms, rtol=1e-9)
    np.testing.assert_allclose(told(cell).few_by_lag, norms[:4], rtol=1e-9)


@lru_cache
def _gradients() -> Any:
    asked = rnnjax.diagnose.gradient_by_lag, rnnjax.diagnose.gradient_by_input
    return eqx.filter_jit(lambda cell, xs, engine: [one(contract, cell, None, xs, engine=engine) for one in asked])


@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        ("lru", "associative"),
        pytest.param("gru", "checkpointed", marks=pytest.mark.slow),
        pytest.param("gru", "newton", marks=pytest.mark.slow),
    ],
)
def test_every_engine_tells_the_same(cell, engine):
    engines = grid.ENGINES[engine], rnnjax.Scan()
    by_engine, by_scan = (_gradients()(grid.build(cell), grid.inputs(T), one) for one in engines)
    for got, expected in zip(by_engine, by_scan, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("part", quick(("bidirectional",), ("lstm_options", "bidirectional")))
def test_gradient_by_input_is_the_gradient(part):
    built = grid.build(part)

    @jax.jit
    def both(xs: Any) -> Any:
        gradient = jax.grad(lambda xs: contract(*rnnjax.unroll(built, None, xs, engine=rnnjax.Scan())))(xs)
        return rnnjax.diagnose.gradient_by_input(contract, built, None, xs), gradient

    got, gradient = both(grid.inputs(T))
    np.testing.assert_allclose(got, np.linalg.norm(gradient, axis=1)[::-1], rtol=1e-8)


# Lyapunov exponents


def bank(*decay):
    """A linear cell of units that fade at these rates."""
    cell = rnnjax.LinearRNN(1, len(decay), key=key(), dtype="float64")
    return eqx.tree_at(lambda cell: cell.decay, cell, grid.place(np.asarray(decay)))


def test_lyapunov_exponents_of_a_linear_cell_are_logarithms():
    got = ask("lyapunov_exponents", bank(0.9, -0.5, 1.1, 0.2), None, np.zeros((50, 1)), skip=5)
    np.testing.assert_allclose(got, np.log([1.1, 0.9, 0.5, 0.2]), atol=1e-12)


def test_the_largest_lyapunov_exponents_of_a_diagonal_cell_are_not_those_of_its_first_units():
    got = ask("lyapunov_exponents", bank(0.2, 0.9, -0.5, 0.7), None, np.zeros((400, 1)), count=2, skip=200)
    np.testing.assert_allclose(got, np.log([0.9, 0.7]), atol=1e-10)


def dense_and_exact():
    """A dense linear cell, and its exponents."""
    R = np.random.default_rng(17).normal(size=(5, 5))
    return network(R, rnnjax.cells.linear), np.sort(np.log(np.abs(np.linalg.eigvals(R))))[::-1]


def test_lyapunov_exponents_of_a_dense_linear_cell_are_the_limit_of_its_log_singular_values():
    cell, exact = dense_and_exact()
    got = ask("lyapunov_exponents", cell, None, np.zeros((4000, 1)), skip=200, every=2)
    np.testing.assert_allclose(got, exact, atol=2e-3)
    steps = 40
    product = np.linalg.matrix_power(np.asarray(cell.recurrent_weight).T, steps)
    np.testing.assert_allclose(np.log(np.linalg.svd(product, compute_uv=False)[0]) / steps, exact[0], atol=0.05)


@pytest.mark.slow
def test_the_largest_lyapunov_exponents_of_a_dense_cell_are_the_largest_of_all():
    cell, exact = dense_and_exact()
    zeros = np.zeros((4000, 1))
    got = ask("lyapunov_exponents", cell, None, zeros, skip=200, every=2)
    few = ask("lyapunov_exponents", cell, None, zeros, skip=200, count=2)
    np.testing.assert_allclose(few, got[:2], atol=2e-3)
    np.testing.assert_allclose(few, exact[:2], atol=2e-3)


def mean_field_exponent(g):
    """Of h' = tanh(g R h) with R random: lambda = log(g^2 <tanh'(x)^2>) / 2, where x is normal and of variance

    g^2 <tanh(x)^2> (Molgedey, Schuchhardt & Schuster 1992, Phys. Rev. Lett. 69:3717).
    """
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    variance = 1.0
    for _ in range(2000):
        variance = g**2 * weights @ np.tanh(np.sqrt(variance) * points) ** 2
    return 0.5 * np.log(g**2 * weights @ (1 - np.tanh(np.sqrt(variance) * points) ** 2) ** 2)


@pytest.mark.parametrize("g", [0.5, 2.0, 5.0])
def test_a_random_tanh_network_is_chaotic_above_a_gain_of_one(g):
    """Sompolinsky et al. 1988, Engelken et al. 2020: a fixed point below, chaos above, its size by mean field."""
    H, generator = 200, np.random.default_rng(0)
    R = g * generator.normal(size=(H, H)) / np.sqrt(H)
    start = rnnjax.Hidden(generator.normal(size=H))
    (largest,) = ask("lyapunov_exponents", network(R), start, np.zeros((1500, 1)), count=1, skip=300, every=5)
    expected = np.log(np.abs(np.linalg.eigvals(R)).max()) if g < 1 else mean_field_exponent(g)
    assert np.sign(largest) == np.sign(g - 1)
    np.testing.assert_allclose(largest, expected, atol=0.01 if g < 1 else 0.06)


def test_a_counter_in_a_state_is_no_number_to_differentiate_by():
    elman = grid.build("elman")

    @jax.jit
    def twice(xs: Any) -> Any:
        return [
            (
                rnnjax.diagnose.jacobians(cell, None, xs),
                rnnjax.diagnose.lyapunov_exponents(cell, None, xs),
                rnnjax.diagnose.gradient_by_lag(on_the_end, cell, None, xs, engine=rnnjax.Scan()),
            )
            for cell in (grid.Counted(elman), elman)
        ]

    (*counted, counted_by_lag), (*plain, by_lag) = twice(grid.inputs(T))
    np.testing.assert_array_equal(counted[0], plain[0])
    np.testing.assert_array_equal(counted[1], plain[1])
    np.testing.assert_allclose(counted_by_lag, by_lag, rtol=1e-12)


def test_what_is_too_large_is_infinite_and_what_is_small_is_told():
    explosive, fading = (network(size * orthogonal(6), rnnjax.cells.linear, "float32") for size in (3.0, 0.5))
    xs = np.ones((200, 1), "float32")
    norms = ask("product_norms", explosive, None, xs)
    np.testing.assert_allclose(norms[:80], 3.0 ** np.arange(80), rtol=1e-4)
    assert np.isinf(norms[100:]).all()
    sized = jax.jit(
        lambda size: rnnjax.diagnose.gradient_by_lag(lambda *seen: size * seen[0].h.sum(), fading, None, xs, lags=50)
    )
    for size in (1.0, 1e-20):
        gradient = np.asarray(sized(np.float32(size)))
        np.testing.assert_allclose(gradient / gradient[0], 0.5 ** np.arange(51), rtol=1e-4)


# Claims of textbooks


ACTIVATIONS = {"linear": rnnjax.cells.linear, "tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


@lru_cache
def _norms_back() -> Any:
    def norms(weight: Any, xs: Any, number: Any) -> Any:
        chosen = lambda n: jax.lax.switch(number, list(ACTIVATIONS.values()), n)  # noqa: E731
        cell = eqx.tree_at(lambda cell: cell.recurrent_weight, network(np.zeros((6, 6)), chosen), weight)
        return rnnjax.diagnose.product_norms(cell, None, xs)

    return jax.jit(norms)


def norms_back(R, activation, xs=None):
    """The norms of the products of Jacobians over thirty steps, R being filled up with zeros to [6, 6]."""
    padded = np.zeros((6, 6))
    padded[: len(R), : len(R)] = R
    xs, number = np.ones((30, 1)) if xs is None else xs, list(ACTIVATIONS).index(activation)
    return np.asarray(_norms_back()(network(padded).recurrent_weight, xs, np.asarray(number)))


def inputs_of_one():
    return np.random.default_rng(17).normal(size=(30, 1))


def test_claim_a_largest_singular_value_under_one_forces_vanishing():
    for activation in ("linear", "tanh", "relu"):
        norms = norms_back(0.8 * orthogonal(6), activation)
        assert (norms <= 0.8 ** np.arange(31) * (1 + 1e-9)).all(), activation


def test_claim_a_largest_singular_value_over_one_explodes_if_it_is_of_all_directions():
    np.testing.assert_allclose(norms_back(1.5 * orthogonal(6), "linear"), 1.5 ** np.arange(31))


def test_claim_a_largest_singular_value_over_one_does_not_force_explosion():
    """Textbooks say that it explodes; it is the spectral radius that decides, and this matrix is nilpotent."""
    np.testing.assert_allclose(norms_back([[0.0, 5.0], [0.0, 0.0]], "linear"), [1, 5] + 29 * [0], atol=1e-12)


def test_claim_tanh_shrinks():
    """Each step by R is multiplied by slopes of at most one, so that the norm is at most that of the linear network."""
    bent, straight = (norms_back(1.2 * orthogonal(6), a, inputs_of_one()) for a in ("tanh", "linear"))
    assert (bent[1:] < straight[1:]).all()


def test_claim_a_sigmoid_loses_the_gradient_within_ten_steps():
    """Its slope is at most a quarter: less than a millionth is left of it after ten steps of an orthogonal R."""
    assert norms_back(orthogonal(6), "sigmoid", inputs_of_one())[10] <= 0.25**10
    assert norms_back(orthogonal(6), "tanh", np.full((30, 1), 0.1))[10] > 0.1


# Gates


@lru_cache
def _gates_and_jacobians() -> Any:
    return eqx.filter_jit(
        lambda cell, xs: (rnnjax.diagnose.gates(cell, None, xs), rnnjax.diagnose.jacobians(cell, None, xs))
    )


def test_claim_the_lstms_cell_path_is_the_product_of_its_forget_gates():
    cell = grid.build("lstm")
    silent = grid.place(np.zeros(cell.recurrent_weight.shape))
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, silent)
    gates, jacobians = map(np.asarray, _gates_and_jacobians()(cell, grid.inputs(T)))
    product = np.linalg.multi_dot(jacobians[::-1, grid.H :, grid.H :])
    np.testing.assert_allclose(product, np.diag(gates[:, 1].prod(0)), atol=1e-14)


def test_gates_are_those_of_the_equations():
    cell = grid.build("lstm")
    got, _ = _gates_and_jacobians()(cell, grid.inputs(T))
    W, R, b = (np.asarray(weight) for weight in (cell.input_weight, cell.recurrent_weight, cell.bias))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    h = c = np.zeros(grid.H)
    for t, x in enumerate(np.asarray(grid.inputs(T))):
        pre = np.stack(np.split(x @ W + h @ R + b, 4))
        i, f, o = sigmoid(pre[[0, 1, 3]])
        np.testing.assert_allclose(got[t], [i, f, o], atol=1e-12)
        c = f * c + i * np.tanh(pre[2])
        h = o * np.tanh(c)
    silu = rnnjax.Elman(grid.I, grid.H, key=key(), activation=jax.nn.silu, dtype="float64")
    for other, count in ((grid.build("gru"), 2), (silu, 1)):
        shape = eqx.filter_eval_shape(rnnjax.diagnose.gates, other, None, grid.inputs(T)).shape
        assert shape == (T, count, grid.H)


@pytest.mark.parametrize("name", quick(("gru", "leak", "lru"), ("gru", "lstm", "leak", "lru")))
def test_slow_units_are_not_stuck(name):
    chrono = rnnjax.initialise.chrono(1000)
    cell = {
        "gru": lambda: rnnjax.GRU(1, 8, key=key(), bias_initialiser=chrono, dtype="float64"),
        "lstm": lambda: rnnjax.LSTM(1, 8, key=key(), bias_initialiser=chrono, dtype="float64"),
        "leak": lambda: rnnjax.Elman(1, 8, key=key(), leak=0.005, dtype="float64"),
        "lru": lambda: rnnjax.LRU(1, 8, key=key(), r_min=0.99999, r_max=0.999999, dtype="float64"),
    }[name]()
    assert ask("stuck", cell, None, steady(12)).mean() < 0.1


def test_dead_units_are_stuck():
    dead = rnnjax.Elman(1, 8, key=key(), activation=jax.nn.relu, dtype="float64")
    dead = eqx.tree_at(lambda cell: cell.bias, dead, grid.place(np.asarray(dead.bias) - 100))
    assert ask("stuck", dead, None, steady(12)).all()


# Reports


def on_the_end(last, ys):
    """A loss on the last output."""
    del last
    return jnp.sum(ys[-1] ** 2)


def on_all_steps(last, ys):
    del last
    return jnp.sum(ys**2)


def on_the_start(last, ys):
    return jnp.sum(ys[0] ** 2) + 0 * last.h.real.sum()


def steady(steps=30):
    """Inputs of mean zero and deviation a half."""
    return 0.5 * np.random.default_rng(17).normal(size=(steps, 1))


@pytest.fixture
def examine(monkeypatch):
    """`examine`, which asks compiled programs for its numbers, one for each loss and shape."""
    monkeypatch.setattr(report, "_on_the_end", _cut)
    for name in ("gradient_by_lag", "stuck"):
        monkeypatch.setattr(report, name, lambda *asked, name=name, **options: ask(name, *asked, **options))
    return rnnjax.diagnose.examine


_cut = lru_cache(report._on_the_end)


def test_the_report_on_a_network_that_vanishes_names_it_and_its_remedy_cures_it(examine):
    found = examine(on_the_end, network(0.5 * orthogonal(20), rnnjax.cells.linear), None, steady())
    (finding,) = found.findings
    assert finding.illness == "vanishing"
    assert found.vanishing_after == 10  # 0.5^10 is the first power below a thousandth
    assert "after 10 of 30 steps" in str(found)
    assert "recurrent_initialiser=initialise.orthogonal" in finding.remedy
    cured = rnnjax.Elman(
        1,
        20,
        key=key(),
        activation=rnnjax.cells.linear,
        bias=False,
        recurrent_initialiser=rnnjax.initialise.orthogonal,
        dtype="float64",
    )
    assert examine(on_the_end, cured, None, steady()).findings == ()


def test_the_report_on_a_network_that_explodes_names_it_and_its_remedy_cures_it(examine):
    R = 3.0 * orthogonal(20)
    found = examine(on_the_end, network(R, rnnjax.cells.linear), None, steady())
    (finding,) = found.findings
    assert finding.illness == "exploding"
    assert found.exploding_after == 7  # 3^7 is the first power above a thousand
    assert "R divided by its largest singular value" in finding.remedy
    cured = examine(on_the_end, network(R / np.linalg.norm(R, 2), rnnjax.cells.linear), None, steady())
    assert cured.findings == ()
    assert "healthy over 30 steps" in str(cured)


def gru_of_twenty():
    return rnnjax.GRU(1, 20, key=key(), dtype="float64")


def test_the_report_on_a_saturated_network_names_it_and_its_remedy_cures_it(examine):
    ill = 1000 + 100 * steady(12)
    found = examine(on_the_end, gru_of_twenty(), None, ill)
    (finding,) = [finding for finding in found.findings if finding.illness == "saturated"]
    assert found.stuck > 0.5
    assert "subtract their mean, divide by their deviation" in finding.remedy
    cured = examine(on_the_end, gru_of_twenty(), None, (ill - ill.mean()) / ill.std())
    assert cured.findings == ()
    assert cured.stuck == 0


def test_the_report_asks_what_the_end_sees_of_a_loss_on_all_steps(examine):
    found = examine(on_all_steps, network(0.5 * orthogonal(20), rnnjax.cells.linear), None, steady())
    assert found.vanishing_after == 10


FORGETFUL = [
    (lambda: rnnjax.GRU(1, 20, key=key(), bias_initialiser=rnnjax.initialise.forget(-3.0), dtype="float64"), 12),
    (lambda: rnnjax.LSTM(1, 8, key=key(), bias_initialiser=rnnjax.initialise.forget(-3.0), dtype="float64"), 30),
]


@pytest.mark.parametrize(
    ("cell", "steps"),
    [pytest.param(*FORGETFUL[0], id="gru"), pytest.param(*FORGETFUL[1], id="lstm", marks=pytest.mark.slow)],
)
def test_the_report_blames_r_only_where_it_is_the_only_way(cell, steps, examine):
    weak = grid.place(0.3 * np.asarray(cell().recurrent_weight))
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell(), weak)
    (finding,) = examine(on_the_end, cell, None, steady(steps)).findings
    assert finding.illness == "vanishing"
    assert "forget bias" in finding.remedy
    assert "R" not in finding.seen


def small_lru():
    return rnnjax.LRU(1, 4, key=key(), dtype="float64", r_min=0.9)


@pytest.mark.parametrize(("cell", "steps"), [(gru_of_twenty, 12), (small_lru, 5)], ids=["gru", "lru"])
def test_the_report_on_what_is_not_finite_says_so(cell, steps, examine):
    xs = np.where(np.arange(steps)[:, None] == 3, np.nan, steady(steps))
    (finding,) = examine(on_the_end, cell(), None, xs).findings
    assert finding.illness == "not finite"


NORMS = np.asarray([0.5, 3.0, np.nan, 2.0])


def test_the_report_counts_what_was_clipped(examine):
    found = examine(on_the_end, small_lru(), None, steady(5), update_norms=NORMS, clip=1.0)
    assert found.clipped == 0.75
    assert [finding.illness for finding in found.findings] == ["clipped"]
    found = examine(on_the_end, small_lru(), None, steady(5), update_norms=NORMS, clip=5.0)
    assert found.findings == ()
    assert "clipped in 25% of the updates" in str(found)


@pytest.mark.slow
def test_the_report_is_the_same_where_nothing_is_compiled_ahead(examine):
    asked = on_the_end, small_lru(), None, steady(5)
    compiled = examine(*asked)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gradient_by_lag", "stuck"):
            patch.setattr(report, name, getattr(rnnjax.diagnose, name))
        plain = rnnjax.diagnose.examine(*asked)
    np.testing.assert_allclose(plain.gradient, compiled.gradient, rtol=1e-12)
    assert plain._replace(gradient=None) == compiled._replace(gradient=None)


def test_the_report_on_a_loss_that_ends_early_says_so(examine):
    found = examine(on_the_start, small_lru(), None, steady(5))
    assert [finding.illness for finding in found.findings] == ["silent"]


def test_pictures_are_drawn():
    generator = np.random.default_rng(17)
    spectrum = np.sort(generator.random((T, 2 * grid.H)))[:, ::-1]
    gates = generator.random((T, 3, grid.H))
    figure = Figure()
    axes = figure.subplots(2, 3).ravel()
    plot.draw_spectrum(axes[0], grid.place(spectrum))
    plot.draw_gradient_by_lag(axes[1], {"LSTM": grid.place(0.9 ** np.arange(T)), "gone": [1.0, 0.0]})
    plot.draw_gates(axes[2:5], grid.place(gates), ("i", "f", "o"))
    plot.draw_alignment(axes[5], np.eye(2, 3), sources=("ein", "roter", "Ball"), targets=("a", "ball"))
    assert [len(one.lines) for one in axes[:2]] == [4, 2]
    assert [one.get_title() for one in axes[2:5]] == ["i", "f", "o"]
    assert [label.get_text() for label in axes[5].get_xticklabels()] == ["ein", "roter", "Ball"]
    dead = Figure().subplots()
    plot.draw_spectrum(dead, [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    assert dead.get_ylim()[0] > 0.1
    plot.draw_gates(Figure().subplots(), gates[:, :1], ("i",))
    figure.canvas.draw()
    with pytest.raises(TypeError, match="gradients: expected a name for each curve"):
        plot.draw_gradient_by_lag(axes[1], [1.0, 0.5])
    with pytest.raises(ValueError, match=r"gradients\['none'\]: expected a gradient at lag 0"):
        plot.draw_gradient_by_lag(axes[1], {"none": [0.0, 0.0]})
    with pytest.raises(ValueError, match="names: expected 3, and as many axes"):
        plot.draw_gates(axes[:2], gates, ("i", "f"))
    with pytest.raises(ValueError, match="targets: expected 2 words"):
        plot.draw_alignment(axes[5], np.eye(2, 3), targets=("a",))
    with pytest.raises(ValueError, match="singular_values: expected an array of rank 2"):
        plot.draw_spectrum(axes[0], [1.0])


# What does not fit


BAD = {
    "product_norms(GRU, None, XS, lags=13)": "lags: expected a number from 0 to the T=12 steps of xs, got 13",
    "gradient_by_lag(LOSS, GRU, None, XS, lags=13)": "lags: expected a number from 0 to the T=12",
    "gradient_by_lag(LOSS, GRU, None, XS, lags=-1)": "lags: expected a number from 0",
    "gradient_by_lag(CONSTANT, GRU, None, XS)": "loss: expected one that depends on the last state or the outputs",
    "gradient_by_input(CONSTANT, GRU, None, XS)": "loss: expected one that depends",
    "gradient_by_lag(VECTOR, GRU, None, XS)": "loss: expected a real scalar",
    "gradient_by_lag(LOSS, GRU, None, XS, engine=FUSED)": r"engine: Fused cannot run.*plain cell of GRU\. Pass engine",
    "jacobians(GRU, None, XS, engine=ASSOCIATIVE)": "engine: Associative cannot run GRU",
    "jacobians(STACK, None, XS)": "cell: expected a cell, .* got Stack",
    "jacobians(GRU, None, XS[:0])": "xs: expected at least one step",
    "jacobians(GRU, 3.0, XS)": "state: expected",
    "gradient_by_input(LOSS, GRU, None, TOKENS)": "xs: expected floating arrays",
    "gates(LRU, None, XS)": "cell: expected an AbstractGatedCell, got LRU",
    "gates(ELMAN, None, XS)": "cell: expected a cell with gates, which are sigmoids, but Elman has none",
    "lyapunov_exponents(GRU, None, XS, count=9)": "count: expected a number from 1 to the D=",
    "lyapunov_exponents(GRU, None, XS, every=0)": "every: expected a number of steps",
    "lyapunov_exponents(GRU, None, XS, every=13)": "every: expected a number of steps from 1 to T=12, got 13",
    "lyapunov_exponents(GRU, None, XS, every=2.5)": "every: expected a number of steps",
    "lyapunov_exponents(GRU, None, XS, skip=12)": "skip: expected from 0 to 11",
    "examine(LOSS, GRU, None, XS, clip=1.0)": "clip: expected together with update_norms",
    "examine(LOSS, GRU, None, XS, clip=1.0, update_norms=[])": "update_norms: expected the norm of at least one",
    "examine(LOSS, GRU, None, XS, clip=-1.0, update_norms=[1.0])": "clip: expected the clipping norm",
    "examine(None, GRU, None, XS)": "loss: expected a function",
    "gradient_by_lag(None, GRU, None, XS)": "loss: expected a function",
    "gradient_by_lag(LOSS, GRU, None, XS, lags='3')": "lags: expected a number from 0",
    "gradient_by_input(LOSS, GRU, None, XS[:0])": "xs: expected at least one step",
    "gates(RELU, None, XS)": "cell: expected a cell with gates, which are sigmoids, but Elman has none",
}
BAD_NUMBERS = {
    "lyapunov_exponents(EXPLOSIVE, None, LONG, every=100)": "pass a smaller every",
    "lyapunov_exponents(GRU, None, NAN)": "the Jacobian of a step is not finite",
    "singular_values(GRU, None, NAN)": "the Jacobian of a step is not finite",
}


@grid.once
def names() -> dict[str, Any]:
    """What the calls above speak of."""
    xs = np.asarray(grid.inputs(T))
    cells = {name.upper(): grid.build(name) for name in ("gru", "lru", "elman", "stack")}
    return cells | {
        "rnnjax": rnnjax,
        "RELU": rnnjax.Elman(grid.I, 4, key=key(), activation=jax.nn.relu, dtype="float64"),
        "EXPLOSIVE": network(3 * orthogonal(4), rnnjax.cells.linear, "float32"),
        "LONG": np.zeros((300, 1), "float32"),
        "FUSED": rnnjax.Fused(),
        "ASSOCIATIVE": rnnjax.Associative(),
        "XS": xs,
        "NAN": np.where(np.arange(T)[:, None] == 3, np.nan, xs),
        "TOKENS": np.arange(4),
        "LOSS": contract,
        "CONSTANT": lambda last, ys: jnp.float64(jax.tree.leaves(last)[0].size + ys.size),
        "VECTOR": lambda *given: given[1],
    }


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises(Exception, match=BAD[call]):
        jax.eval_shape(partial(eval, call, vars(rnnjax) | vars(rnnjax.diagnose) | names()))


@pytest.mark.parametrize(
    "call",
    quick(("singular_values(GRU, None, NAN)", "lyapunov_exponents(EXPLOSIVE, None, LONG, every=100)"), BAD_NUMBERS),
)
def test_numbers_that_are_not_finite_are_named(call):
    """At run time, as no tracing can know."""
    with pytest.raises(Exception, match=BAD_NUMBERS[call]):
        eqx.filter_jit(partial(eval, call, vars(rnnjax) | vars(rnnjax.diagnose) | names()))()
