"""Where the gradient goes: against finite differences, against differentiating apart, against closed forms."""

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import rnnjax
from rnnjax import flat
from rnnjax.diagnose import plot

KEY = jax.random.key(17)
CELLS = ("elman", "lstm_options", "projected_lstm", "diagonal_lstm", "lru")


def contract(last, ys):
    """A loss that sees the last state and every output."""
    return grid.contract((last, ys))


def network(R, activation=jnp.tanh, **options):
    """An Elman network with this R, and inputs of one number, in float64."""
    R = jnp.asarray(R, "float64")
    cell = rnnjax.Elman(1, len(R), key=KEY, activation=activation, bias=False, dtype="float64", **options)
    return eqx.tree_at(lambda cell: cell.recurrent_weight, cell, R[None, :, None, :])


def orthogonal(size, key=KEY):
    return jnp.linalg.qr(jax.random.normal(key, (size, size), "float64"))[0]


@pytest.mark.parametrize("cell", CELLS)
def test_jacobians_are_finite_differences(cell):
    built, xs = grid.build(cell), grid.inputs(2)
    state, step = grid.random_state(built), 1e-6
    got = rnnjax.jacobians(built, state, xs)
    for t, u in enumerate(built.project(xs)):
        vector = flat.pack(state)
        moved = lambda vector, u=u: flat.pack(built.step(flat.unpack(vector, state), u))  # noqa: B023, E731
        differences = jax.vmap(lambda d: (moved(vector + step * d) - moved(vector - step * d)) / (2 * step))  # noqa: B023
        np.testing.assert_allclose(got[t], differences(jnp.eye(vector.size)).T, atol=1e-8)
        state = built.step(state, u)


@pytest.mark.parametrize("cell", CELLS)
def test_spectrum_and_products_are_those_of_the_jacobians(cell):
    built, xs = grid.build(cell), grid.inputs(grid.T)
    jacobians = np.asarray(rnnjax.jacobians(built, None, xs))
    spectrum = rnnjax.singular_values(built, None, xs)
    np.testing.assert_allclose(spectrum, np.linalg.svd(jacobians, compute_uv=False), atol=1e-10)
    product, norms = np.eye(jacobians.shape[1]), [1.0]
    for jacobian in jacobians[::-1]:
        product = product @ jacobian
        norms.append(np.linalg.norm(product, 2))
    np.testing.assert_allclose(rnnjax.product_norms(built, None, xs), norms, rtol=1e-9)
    np.testing.assert_allclose(rnnjax.product_norms(built, None, xs, lags=3), norms[:4], rtol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_by_lag_is_each_step_differentiated_apart(cell):
    built, xs = grid.build(cell), grid.inputs(4)
    states, ys = [grid.random_state(built)], rnnjax.unroll(built, grid.random_state(built), xs, engine=rnnjax.Scan())[1]
    for u in built.project(xs):
        states.append(built.step(states[-1], u))

    def after(state, t):
        """The loss, as a function of s_t and of all that comes after."""
        own = built.readout(jax.tree.map(lambda leaf: leaf[None], state), xs[t - 1 : t]) if t else ys[:0]
        last, later = rnnjax.unroll(built, state, xs[t:], engine=rnnjax.Scan())
        return contract(last, jnp.concatenate([ys[: max(t - 1, 0)], own, later]))

    apart = []
    for t, state in enumerate(states):
        gradient = jax.jit(jax.grad(after), static_argnums=1)(state, t)
        apart.append(np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in jax.tree.leaves(gradient))))
    got = rnnjax.gradient_by_lag(contract, built, states[0], xs)
    np.testing.assert_allclose(got, apart[::-1], rtol=1e-9)
    few = rnnjax.gradient_by_lag(contract, built, states[0], xs, lags=3)
    np.testing.assert_allclose(few, apart[::-1][:4], rtol=1e-9)


@pytest.mark.parametrize(("cell", "engine"), [("gru", "checkpointed"), ("gru", "newton"), ("lru", "associative")])
def test_every_engine_tells_the_same(cell, engine):
    built, xs = grid.build(cell), grid.inputs(grid.T)
    for ask in (rnnjax.gradient_by_lag, rnnjax.gradient_by_input):
        told = eqx.filter_jit(lambda engine: ask(contract, built, None, xs, engine=engine))  # noqa: B023
        np.testing.assert_allclose(told(grid.ENGINES[engine]), told(rnnjax.Scan()), rtol=1e-8)


@pytest.mark.parametrize("part", ["lstm_options", "bidirectional"])
def test_gradient_by_input_is_the_gradient(part):
    built, xs = grid.build(part), grid.inputs(grid.T)
    gradient = jax.grad(lambda xs: contract(*rnnjax.unroll(built, None, xs, engine=rnnjax.Scan())))(xs)
    got = rnnjax.gradient_by_input(contract, built, None, xs)
    np.testing.assert_allclose(got, np.linalg.norm(gradient, axis=1)[::-1], rtol=1e-8)


def test_lyapunov_exponents_of_a_linear_cell_are_logarithms():
    decay = jnp.asarray([0.9, -0.5, 1.1, 0.2])
    cell = rnnjax.LinearRNN(1, 4, key=KEY, dtype="float64")
    cell = eqx.tree_at(lambda cell: cell.decay, cell, decay)
    got = rnnjax.lyapunov_exponents(cell, None, jnp.zeros((50, 1)), skip=5)
    np.testing.assert_allclose(got, np.sort(np.log(np.abs(decay)))[::-1], atol=1e-12)


def test_the_largest_lyapunov_exponents_of_a_diagonal_cell_are_not_those_of_its_first_units():
    cell = rnnjax.LinearRNN(1, 4, key=KEY, dtype="float64")
    cell = eqx.tree_at(lambda cell: cell.decay, cell, jnp.asarray([0.2, 0.9, -0.5, 0.7]))
    got = rnnjax.lyapunov_exponents(cell, None, jnp.zeros((400, 1)), count=2, skip=200)
    np.testing.assert_allclose(got, np.log([0.9, 0.7]), atol=1e-10)


def test_a_counter_in_a_state_is_no_number_to_differentiate_by():
    gru, xs = grid.build("gru"), grid.inputs(grid.T)
    counted = grid.Counted(gru)
    np.testing.assert_array_equal(rnnjax.jacobians(counted, None, xs), rnnjax.jacobians(gru, None, xs))
    np.testing.assert_array_equal(
        rnnjax.lyapunov_exponents(counted, None, xs), rnnjax.lyapunov_exponents(gru, None, xs)
    )
    told = [rnnjax.gradient_by_lag(on_the_end, cell, None, xs, engine=rnnjax.Scan()) for cell in (counted, gru)]
    np.testing.assert_allclose(*told, rtol=1e-12)


def test_what_is_too_large_is_infinite_and_what_is_small_is_told():
    explosive = jax.tree.map(lambda leaf: leaf.astype("float32"), network(3 * orthogonal(6), rnnjax.linear))
    xs = jnp.ones((200, 1), "float32")
    norms = rnnjax.product_norms(explosive, None, xs)
    np.testing.assert_allclose(norms[:80], 3.0 ** np.arange(80), rtol=1e-4)
    assert np.isinf(norms[100:]).all()
    fading = jax.tree.map(lambda leaf: leaf.astype("float32"), network(0.5 * orthogonal(6), rnnjax.linear))
    for size in (1.0, 1e-20):
        told = rnnjax.gradient_by_lag(lambda *seen, size=size: size * seen[0].h.sum(), fading, None, xs, lags=50)
        np.testing.assert_allclose(told / told[0], 0.5 ** np.arange(51), rtol=1e-4)


def test_lyapunov_exponents_of_a_dense_linear_cell_are_the_limit_of_its_log_singular_values():
    R = jax.random.normal(KEY, (5, 5), "float64")
    exact = np.sort(np.log(np.abs(np.linalg.eigvals(R))))[::-1]
    got = rnnjax.lyapunov_exponents(network(R, rnnjax.linear), None, jnp.zeros((4000, 1)), skip=200, every=2)
    np.testing.assert_allclose(got, exact, atol=2e-3)
    T = 40
    product = np.linalg.matrix_power(np.asarray(R).T, T)
    np.testing.assert_allclose(np.log(np.linalg.svd(product, compute_uv=False)[0]) / T, exact[0], atol=0.05)
    few = rnnjax.lyapunov_exponents(network(R, rnnjax.linear), None, jnp.zeros((4000, 1)), skip=200, count=2)
    np.testing.assert_allclose(few, got[:2], atol=2e-3)


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
    H = 200
    R = g * np.random.default_rng(0).normal(size=(H, H)) / np.sqrt(H)
    start = rnnjax.Hidden(jax.random.normal(KEY, (H,), "float64"))
    (largest,) = rnnjax.lyapunov_exponents(network(R), start, jnp.zeros((1500, 1)), count=1, skip=300, every=5)
    expected = np.log(np.abs(np.linalg.eigvals(R)).max()) if g < 1 else mean_field_exponent(g)
    assert np.sign(largest) == np.sign(g - 1)
    np.testing.assert_allclose(largest, expected, atol=0.01 if g < 1 else 0.06)


def test_claim_a_largest_singular_value_under_one_forces_vanishing():
    for activation in (rnnjax.linear, jnp.tanh, jax.nn.relu):
        norms = rnnjax.product_norms(network(0.8 * orthogonal(6), activation), None, jnp.ones((30, 1)))
        assert (np.asarray(norms) <= 0.8 ** np.arange(31) * (1 + 1e-9)).all()


def test_claim_a_largest_singular_value_over_one_explodes_if_it_is_of_all_directions():
    norms = rnnjax.product_norms(network(1.5 * orthogonal(6), rnnjax.linear), None, jnp.ones((30, 1)))
    np.testing.assert_allclose(norms, 1.5 ** np.arange(31))


def test_claim_a_largest_singular_value_over_one_does_not_force_explosion():
    """Textbooks say that it explodes; it is the spectral radius that decides, and this matrix is nilpotent."""
    R = [[0.0, 5.0], [0.0, 0.0]]
    norms = rnnjax.product_norms(network(R, rnnjax.linear), None, jnp.ones((10, 1)))
    np.testing.assert_allclose(norms, [1, 5] + 9 * [0], atol=1e-12)


def test_claim_tanh_shrinks():
    """Each step by R is multiplied by slopes of at most one, so that the norm is at most that of the linear network."""
    R, xs = 1.2 * orthogonal(6), jax.random.normal(KEY, (30, 1))
    bent, straight = (rnnjax.product_norms(network(R, a), None, xs) for a in (jnp.tanh, rnnjax.linear))
    assert (np.asarray(bent)[1:] < np.asarray(straight)[1:]).all()


def test_claim_a_sigmoid_loses_the_gradient_within_ten_steps():
    """Its slope is at most a quarter: less than a millionth is left of it after ten steps of an orthogonal R."""
    norms = rnnjax.product_norms(network(orthogonal(6), jax.nn.sigmoid), None, jax.random.normal(KEY, (10, 1)))
    assert norms[10] <= 0.25**10
    assert rnnjax.product_norms(network(orthogonal(6)), None, 0.1 * jnp.ones((10, 1)))[10] > 0.1


def test_claim_the_lstms_cell_path_is_the_product_of_its_forget_gates():
    cell, xs = grid.build("lstm"), grid.inputs(20)
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, jnp.zeros_like(cell.recurrent_weight))
    forget = np.asarray(rnnjax.gates(cell, None, xs))[:, 1]
    jacobians = np.asarray(rnnjax.jacobians(cell, None, xs))[:, grid.H :, grid.H :]
    product = np.linalg.multi_dot(jacobians[::-1])
    np.testing.assert_allclose(product, np.diag(forget.prod(0)), atol=1e-14)


def test_gates_are_those_of_the_equations():
    cell, xs = grid.build("lstm"), grid.inputs(grid.T)
    got = rnnjax.gates(cell, None, xs)
    h = jnp.zeros(grid.H)
    for t, (u, y) in enumerate(zip(cell.project(xs), rnnjax.unroll(cell, None, xs)[1], strict=True)):
        pre = u + jnp.einsum("p,pgh->gh", h, cell.recurrent_weight[0])
        np.testing.assert_allclose(got[t], jax.nn.sigmoid(pre[jnp.asarray([0, 1, 3])]), atol=1e-12)
        h = y
    assert rnnjax.gates(grid.build("gru"), None, xs).shape == (grid.T, 2, grid.H)
    silu = rnnjax.Elman(grid.I, 4, key=KEY, activation=jax.nn.silu, dtype="float64")
    assert rnnjax.gates(silu, None, xs).shape == (grid.T, 1, 4)


def on_the_end(last, ys):
    """A loss on the last output."""
    del last
    return jnp.sum(ys[-1] ** 2)


def steady(T=30):
    """Inputs of mean zero and deviation a half."""
    return 0.5 * jax.random.normal(KEY, (T, 1), "float64")


def test_the_report_on_a_network_that_vanishes_names_it_and_its_remedy_cures_it():
    ill = network(0.5 * orthogonal(20), rnnjax.linear)
    report = rnnjax.examine(on_the_end, ill, None, steady())
    (finding,) = report.findings
    assert finding.illness == "vanishing"
    assert report.vanishing_after == 10  # 0.5^10 is the first power below a thousandth
    assert "after 10 of 30 steps" in str(report)
    assert "recurrent_initialiser=initialise.orthogonal" in finding.remedy
    cured = rnnjax.Elman(
        1,
        20,
        key=KEY,
        activation=rnnjax.linear,
        recurrent_initialiser=rnnjax.initialise.orthogonal,
        dtype="float64",
    )
    assert rnnjax.examine(on_the_end, cured, None, steady()).findings == ()


def test_the_report_on_a_network_that_explodes_names_it_and_its_remedy_cures_it():
    ill = network(3.0 * orthogonal(20), rnnjax.linear)
    report = rnnjax.examine(on_the_end, ill, None, steady())
    (finding,) = report.findings
    assert finding.illness == "exploding"
    assert report.exploding_after == 7  # 3^7 is the first power above a thousand
    assert "R divided by its largest singular value" in finding.remedy
    R = ill.recurrent_weight[0, :, 0]
    cured = network(R / jnp.linalg.norm(R, 2), rnnjax.linear)
    report = rnnjax.examine(on_the_end, cured, None, steady())
    assert report.findings == ()
    assert "healthy over 30 steps" in str(report)


def test_the_report_on_a_saturated_network_names_it_and_its_remedy_cures_it():
    cell = rnnjax.GRU(1, 20, key=KEY, dtype="float64")
    ill = 1000 + 100 * steady(12)
    report = rnnjax.examine(on_the_end, cell, None, ill)
    (finding,) = [finding for finding in report.findings if finding.illness == "saturated"]
    assert report.stuck > 0.5
    assert "subtract their mean, divide by their deviation" in finding.remedy
    cured = rnnjax.examine(on_the_end, cell, None, (ill - ill.mean()) / ill.std())
    assert cured.findings == ()
    assert cured.stuck == 0


SLOW = {
    "gru": lambda: rnnjax.GRU(1, 8, key=KEY, bias_initialiser=rnnjax.initialise.chrono(1000), dtype="float64"),
    "lstm": lambda: rnnjax.LSTM(1, 8, key=KEY, bias_initialiser=rnnjax.initialise.chrono(1000), dtype="float64"),
    "leak": lambda: rnnjax.Elman(1, 8, key=KEY, leak=0.005, dtype="float64"),
    "lru": lambda: rnnjax.LRU(1, 8, key=KEY, r_min=0.99999, r_max=0.999999, dtype="float64"),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_units_are_not_stuck(name):
    assert rnnjax.stuck(SLOW[name](), None, steady(12)).mean() < 0.1


def test_dead_units_are_stuck():
    dead = rnnjax.Elman(1, 8, key=KEY, activation=jax.nn.relu, dtype="float64")
    dead = eqx.tree_at(lambda cell: cell.bias, dead, dead.bias - 100)
    assert rnnjax.stuck(dead, None, steady(12)).all()


def test_the_report_asks_what_the_end_sees_of_a_loss_on_all_steps():
    ill = network(0.5 * orthogonal(20), rnnjax.linear)
    report = rnnjax.examine(lambda *seen: jnp.sum(seen[1] ** 2), ill, None, steady())
    assert report.vanishing_after == 10


def test_the_report_blames_r_only_where_it_is_the_only_way():
    cell = rnnjax.LSTM(1, 8, key=KEY, bias_initialiser=rnnjax.initialise.forget(-3.0), dtype="float64")
    cell = eqx.tree_at(lambda cell: cell.recurrent_weight, cell, 0.3 * cell.recurrent_weight)
    (finding,) = rnnjax.examine(on_the_end, cell, None, steady()).findings
    assert finding.illness == "vanishing"
    assert "forget bias" in finding.remedy
    assert "R" not in finding.seen


@pytest.mark.parametrize("cell", ["gru", "lru"])
def test_the_report_on_what_is_not_finite_says_so(cell):
    xs = grid.inputs(grid.T).at[3].set(jnp.nan)
    (finding,) = rnnjax.examine(on_the_end, grid.build(cell), None, xs).findings
    assert finding.illness == "not finite"


def test_the_report_counts_what_was_clipped():
    cell, norms = rnnjax.LRU(1, 4, key=KEY, dtype="float64", r_min=0.9), np.asarray([0.5, 3.0, np.nan, 2.0])
    report = rnnjax.examine(on_the_end, cell, None, steady(5), update_norms=norms, clip=1.0)
    assert report.clipped == 0.75
    assert [finding.illness for finding in report.findings] == ["clipped"]
    report = rnnjax.examine(on_the_end, cell, None, steady(5), update_norms=norms, clip=5.0)
    assert report.findings == ()
    assert "clipped in 25% of the updates" in str(report)


def test_the_report_on_a_loss_that_ends_early_says_so():
    cell = rnnjax.LRU(1, 4, key=KEY, dtype="float64", r_min=0.9)
    report = rnnjax.examine(lambda last, ys: jnp.sum(ys[0] ** 2) + 0 * last.h.real.sum(), cell, None, steady(5))
    assert [finding.illness for finding in report.findings] == ["silent"]


def test_pictures_are_drawn():
    cell, xs = grid.build("lstm"), grid.inputs(grid.T)
    figure = Figure()
    axes = figure.subplots(2, 3).ravel()
    plot.draw_spectrum(axes[0], rnnjax.singular_values(cell, None, xs))
    plot.draw_gradient_by_lag(axes[1], {"LSTM": rnnjax.gradient_by_lag(contract, cell, None, xs), "gone": [1.0, 0.0]})
    plot.draw_gates(axes[2:5], rnnjax.gates(cell, None, xs), ("i", "f", "o"))
    plot.draw_alignment(axes[5], jnp.eye(2, 3), sources=("ein", "roter", "Ball"), targets=("a", "ball"))
    assert [len(one.lines) for one in axes[:2]] == [4, 2]
    assert [one.get_title() for one in axes[2:5]] == ["i", "f", "o"]
    assert [label.get_text() for label in axes[5].get_xticklabels()] == ["ein", "roter", "Ball"]
    dead = Figure().subplots()
    plot.draw_spectrum(dead, [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    assert dead.get_ylim()[0] > 0.1
    plot.draw_gates(Figure().subplots(), rnnjax.gates(cell, None, xs)[:, :1], ("i",))
    figure.canvas.draw()
    with pytest.raises(TypeError, match="gradients: expected a name for each curve"):
        plot.draw_gradient_by_lag(axes[1], [1.0, 0.5])
    with pytest.raises(ValueError, match=r"gradients\['none'\]: expected a gradient at lag 0"):
        plot.draw_gradient_by_lag(axes[1], {"none": [0.0, 0.0]})
    with pytest.raises(ValueError, match="names: expected 3, and as many axes"):
        plot.draw_gates(axes[:2], rnnjax.gates(cell, None, xs), ("i", "f"))
    with pytest.raises(ValueError, match="targets: expected 2 words"):
        plot.draw_alignment(axes[5], jnp.eye(2, 3), targets=("a",))
    with pytest.raises(ValueError, match="singular_values: expected an array of rank 2"):
        plot.draw_spectrum(axes[0], [1.0])


BAD = {
    "product_norms(GRU, None, XS, lags=13)": "lags: expected a number from 0 to the T=12 steps of xs, got 13",
    "gradient_by_lag(LOSS, GRU, None, XS, lags=13)": "lags: expected a number from 0 to the T=12",
    "gradient_by_lag(LOSS, GRU, None, XS, lags=-1)": "lags: expected a number from 0",
    "gradient_by_lag(CONSTANT, GRU, None, XS)": "loss: expected one that depends on the last state or the outputs",
    "gradient_by_input(CONSTANT, GRU, None, XS)": "loss: expected one that depends",
    "gradient_by_lag(VECTOR, GRU, None, XS)": "loss: expected a real scalar",
    "gradient_by_lag(LOSS, GRU, None, XS, engine=FUSED)": "engine: Fused cannot run.*a plain cell of GRU: pass engine",
    "jacobians(GRU, None, XS, engine=ASSOCIATIVE)": "engine: Associative cannot run GRU",
    "jacobians(STACK, None, XS)": "cell: expected a cell, .* got Stack",
    "jacobians(GRU, None, XS[:0])": "xs: expected at least one step",
    "jacobians(GRU, 3.0, XS)": "state: expected",
    "gradient_by_input(LOSS, GRU, None, TOKENS)": "xs: expected floating arrays",
    "gates(LRU, None, XS)": "cell: expected an AbstractGatedCell, whose gates are known, got LRU",
    "gates(ELMAN, None, XS)": "cell: expected a cell with gates, which are sigmoids, but Elman has none",
    "lyapunov_exponents(GRU, None, XS, count=9)": "count: expected a number from 1 to the D=",
    "lyapunov_exponents(GRU, None, XS, every=0)": "every: expected a number of steps",
    "lyapunov_exponents(GRU, None, XS, every=13)": "every: expected a number of steps from 1 to T=12, got 13",
    "lyapunov_exponents(GRU, None, XS, every=2.5)": "every: expected a number of steps",
    "lyapunov_exponents(EXPLOSIVE, None, LONG, every=100)": "pass a smaller every",
    "lyapunov_exponents(GRU, None, XS, skip=12)": "skip: expected from 0 to 11",
    "lyapunov_exponents(GRU, None, NAN)": "the Jacobian of a step is not finite",
    "singular_values(GRU, None, NAN)": "the Jacobian of a step is not finite",
    "examine(LOSS, GRU, None, XS, clip=1.0)": "clip: expected together with update_norms",
    "examine(LOSS, GRU, None, XS, clip=1.0, update_norms=[])": "update_norms: expected the norm of at least one",
    "examine(LOSS, GRU, None, XS, clip=-1.0, update_norms=[1.0])": "clip: expected the norm that updates were held to",
    "examine(None, GRU, None, XS)": "loss: expected a function",
    "gradient_by_lag(None, GRU, None, XS)": "loss: expected a function",
    "gradient_by_lag(LOSS, GRU, None, XS, lags='3')": "lags: expected a number from 0",
    "gradient_by_input(LOSS, GRU, None, XS[:0])": "xs: expected at least one step",
    "gates(RELU, None, XS)": "cell: expected a cell with gates, which are sigmoids, but Elman has none",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    xs = grid.inputs(grid.T)
    names = {
        "GRU": grid.build("gru"),
        "LRU": grid.build("lru"),
        "ELMAN": grid.build("elman"),
        "STACK": grid.build("stack"),
        "RELU": rnnjax.Elman(grid.I, 4, key=KEY, activation=jax.nn.relu, dtype="float64"),
        "EXPLOSIVE": jax.tree.map(lambda leaf: leaf.astype("float32"), network(3 * orthogonal(4), rnnjax.linear)),
        "LONG": jnp.zeros((300, 1), "float32"),
        "FUSED": rnnjax.Fused(),
        "ASSOCIATIVE": rnnjax.Associative(),
        "XS": xs,
        "NAN": xs.at[3].set(jnp.nan),
        "TOKENS": jnp.arange(4),
        "LOSS": contract,
        "CONSTANT": lambda last, ys: jnp.float64(jax.tree.leaves(last)[0].size + ys.size),
        "VECTOR": lambda *given: given[1],
    }
    with pytest.raises(Exception, match=BAD[call]):
        eval(f"rnnjax.{call}", {"rnnjax": rnnjax, **names})
