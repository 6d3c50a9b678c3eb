"""Gradient estimators: exact ones are BPTT, cut ones are cut where they say, random ones are right in the mean."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import chex
import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax

STEPS, TARGETS = 50, 2
DIAGONAL = (
    *("min_gru", "ind_rnn", "diagonal_gru", "diagonal_lstm", "min_lstm"),
    *("linear_rnn", "sru", "lru", "s5"),
)


@grid.once
def key() -> jax.Array:
    return jax.random.key(11)


def slow(*cases: Any) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def quick(chosen: tuple[str, ...], names: Any) -> list[Any]:
    """The names, of which the quick tier has those that are chosen."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def loss(head, y, target):
    """Squared error of a linear head."""
    return jnp.sum((y @ head - target) ** 2)


def problem(cell, steps=STEPS, dtype="float64"):
    """Weights `(cell, head)`, inputs and targets."""
    built = grid.build(cell, dtype) if isinstance(cell, str) else cell
    xs, generator = grid.inputs(steps, dtype=dtype), np.random.default_rng(5)
    outputs = jax.eval_shape(lambda xs: rnnjax.unroll(built, None, xs)[1], xs).shape[-1]
    draw = lambda *shape: grid.place(generator.normal(size=shape).astype(jnp.dtype(dtype)))  # noqa: E731
    return (built, draw(outputs, TARGETS)), xs, draw(steps, TARGETS)


def _learn(estimator, weights, xs, targets, key, state, loss):
    memory = estimator.start(weights[0], state, key=key)
    return estimator.estimate(loss, weights, memory, xs, targets, key=key)


@lru_cache
def _program(field: str | None = None) -> Any:
    """An estimate as a compiled function; of one field of it alone, without what that does not need."""
    if field is None:
        return eqx.filter_jit(_learn)
    return eqx.filter_jit(lambda *arguments: getattr(_learn(*arguments), field))


def learn(estimator, weights, xs, targets, seed=None, state=None, loss=loss):
    """An estimate of a whole sequence, as arrays of NumPy."""
    drawn = key() if seed is None else jax.random.key(seed)
    return jax.tree.map(np.asarray, _program()(estimator, weights, xs, targets, drawn, state, loss))


def loss_alone(estimator, weights, xs, targets, seed=None):
    drawn = key() if seed is None else jax.random.key(seed)
    return float(_program("loss")(estimator, weights, xs, targets, drawn, None, loss))


@lru_cache
def learned(estimator, cell, steps=STEPS, dtype="float64"):
    """The same of a cell of the grid."""
    return learn(estimator, *problem(cell, steps, dtype))


@lru_cache
def _start() -> Any:
    return eqx.filter_jit(lambda estimator, cell, state: estimator.start(cell, state))


@lru_cache
def _advance() -> Any:
    return eqx.filter_jit(lambda estimator, *given: estimator.estimate(loss, *given))


def in_chunks(estimator, weights, xs, targets, state=None):
    """The estimates of the two halves of a sequence, each from the memory of the one before."""
    memory, estimates, half = _start()(estimator, weights[0], state), [], len(xs) // 2
    for part in (slice(half), slice(half, 2 * half)):
        estimate = _advance()(estimator, weights, memory, np.asarray(xs)[part], np.asarray(targets)[part])
        memory = estimate.memory
        estimates.append(jax.tree.map(np.asarray, estimate))
    return estimates


@lru_cache
def summed(estimator, cell):
    """The sum of the estimates of two halves, and the memory after them."""
    first, second = in_chunks(estimator, *problem(cell))
    both = jax.tree.map(np.add, first[:2], second[:2])
    return second._replace(loss=both[0], gradient=both[1])


def distance(one, other):
    """Of two gradients, relative to the norm of the other."""
    ravel = lambda tree: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])  # noqa: E731
    return np.linalg.norm(ravel(one) - ravel(other)) / np.linalg.norm(ravel(other))


@pytest.mark.parametrize("cell", ["lru", *slow(["lstm_options"])])
def test_bptt_is_the_gradient_of_the_sum(cell):
    weights, xs, targets = problem(cell)

    @eqx.filter_jit
    def by_hand(weights):
        trained, static = eqx.partition(weights, eqx.is_inexact_array)

        def total(trained):
            cell, head = eqx.combine(trained, static)
            last, ys = rnnjax.unroll(cell, None, xs, engine=rnnjax.Scan())
            return jax.vmap(partial(loss, head))(ys, targets).sum(), last

        return jax.grad(total, has_aux=True)(trained)

    estimate = learned(rnnjax.gradients.BPTT(), cell)
    grid.assert_close((estimate.gradient, estimate.memory.state), by_hand(weights))


# Forward, exactly


@pytest.mark.parametrize("cell", quick(("lru",), [cell for cell in grid.CELLS if cell not in grid.EMITTING]))
def test_rtrl_of_two_chunks_is_bptt_of_the_whole(cell):
    """The trace crosses a boundary, as BPTT's gradient does not."""
    got, expected = summed(rnnjax.gradients.RTRL(), cell), learned(rnnjax.gradients.BPTT(), cell)
    assert distance(got[:2], expected[:2]) < 1e-12
    grid.assert_close(got.memory.state, expected.memory.state)


@pytest.mark.slow  # the quick tier learns in float32 by RTRL
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_rtrl_is_bptt_in_float32(cell):
    got, expected = (
        learned(estimator, cell, dtype="float32")
        for estimator in (rnnjax.gradients.RTRL(), rnnjax.gradients.BPTT(rnnjax.Scan()))
    )
    assert distance(got.gradient, expected.gradient) < 1e-6


def test_gradients_of_two_chunks_are_cut_between_them_by_bptt():
    cut, whole = summed(rnnjax.gradients.BPTT(), "lru"), learned(rnnjax.gradients.BPTT(), "lru")
    np.testing.assert_allclose(cut.loss, whole.loss, rtol=1e-12)
    grid.assert_close(cut.memory.state, whole.memory.state)
    assert distance(cut.gradient[0], whole.gradient[0]) > 1e-3


@pytest.mark.parametrize("cell", quick(("lru",), DIAGONAL))
def test_snap1_of_two_chunks_is_exact_where_units_are_apart(cell):
    grid.assert_close(summed(rnnjax.gradients.SnAp1(), cell)[:2], learned(rnnjax.gradients.BPTT(), cell)[:2])
    grid.assert_close(
        summed(rnnjax.gradients.SnAp1(), cell).memory.state, learned(rnnjax.gradients.BPTT(), cell).memory.state
    )


def test_diagonal_cells_are_all_there():
    diagonal = [name for name in grid.CELLS if isinstance(grid.build(name), rnnjax.AbstractDiagonalCell)]
    assert diagonal == [*DIAGONAL, "s6"]


def test_a_cell_that_emits_something_else_than_its_state_is_refused():
    reason = rnnjax.gradients.RTRL().refusal(grid.build("s6"))
    assert reason == "RTRL cannot train S6: its steps emit something else than its state. Use BPTT() or TruncatedBPTT"


# Step by step, for what follows in NumPy


class Steps(NamedTuple):
    """What happens at each step of a cell whose state is F fields of H units, the first of which is its output."""

    losses: np.ndarray  # [T]
    by_head: np.ndarray  # [T, H, TARGETS]
    signals: np.ndarray  # [T, H], the derivative of the loss by the output
    states: np.ndarray  # [T, F, H]
    jacobians: np.ndarray  # [T, F, H, F, H]
    immediate: np.ndarray  # [T, F, H, P], the derivative by the weights
    initial: np.ndarray  # [F, H, P], that of the initial state


@lru_cache
def step_by_step(name: str, given: bool = False, steps: int = STEPS) -> Steps:
    """Along a whole sequence, from a given state or from the initial one."""
    (cell, head), xs, targets = problem(name, steps)
    structure = jax.tree.structure(jax.eval_shape(cell.initial))

    @jax.jit
    def program(state: Any) -> Steps:
        trained, static = eqx.partition(cell, eqx.is_inexact_array)
        flat, restore = jax.flatten_util.ravel_pytree(trained)
        initial = lambda flat: jnp.stack(eqx.combine(restore(flat), static).initial())  # noqa: E731

        def after(flat: Any, rows: Any, x: Any) -> Any:
            cell = eqx.combine(restore(flat), static)
            return jnp.stack(cell.step(jax.tree.unflatten(structure, list(rows)), cell.project(x[None])[0]))

        def step(rows: Any, given: Any) -> Any:
            x, target = given
            immediate, jacobian = jax.jacrev(after, (0, 1))(flat, rows, x)
            rows = after(flat, rows, x)
            value, (by_head, signal) = jax.value_and_grad(loss, (0, 1))(head, rows[0], target)
            return rows, Steps(value, by_head, signal, rows, jacobian, immediate, jnp.zeros(()))

        start = initial(flat) if state is None else jnp.stack(state)
        return jax.lax.scan(step, start, (xs, targets))[1]._replace(initial=jax.jacrev(initial)(flat))

    return jax.tree.map(np.asarray, program(grid.random_state(cell) if given else None))


def ravel(gradient: Any) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])


def test_snap1_is_the_diagonal_of_rtrl():
    """RTRL with all but a unit's own fields struck out of J and of the immediate influence, in NumPy."""
    steps = step_by_step("lstm_options", steps=6)
    own = np.eye(grid.H, dtype=bool)[None, :, None, :]
    influence, gradient = steps.initial, np.zeros(steps.initial.shape[-1])
    for jacobian, immediate, signal in zip(steps.jacobians, steps.immediate, steps.signals, strict=True):
        influence = np.einsum("fhgk,gkp->fhp", np.where(own, jacobian, 0), influence) + immediate
        gradient += np.einsum("h,hp->p", signal, influence[0])
    got = learned(rnnjax.gradients.SnAp1(), "lstm_options", 6).gradient[0]
    np.testing.assert_allclose(ravel(got), gradient, atol=1e-11)


def test_rflo_is_its_formula():
    """Murray 2019, eqs. 5 to 7: a trace for each synapse, and errors that come back by random weights."""
    leak, H = 0.3, grid.H
    cell = rnnjax.Elman(grid.I, H, leak=leak, key=key(), dtype="float64")
    head = rnnjax.gradients.RandomFeedback(H, TARGETS, key=key(), dtype="float64")
    _, xs, targets = problem(cell)
    squares = lambda head, y, target: 0.5 * jnp.sum((head(y) - target) ** 2)  # noqa: E731
    estimate = learn(rnnjax.gradients.EProp(), (cell, head), xs, targets, loss=squares)

    W, R, b = (np.asarray(a) for a in (cell.input_weight, cell.recurrent_weight, cell.bias))
    V, B = np.asarray(head.weight), np.asarray(head.feedback)
    h, p, q, dR, dW, dV = np.zeros(H), np.zeros((H, H)), np.zeros((grid.I, H)), 0, 0, 0
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        n = x @ W + h @ R + b
        slope = leak * (1 - np.tanh(n) ** 2)
        p, q = (1 - leak) * p + slope * h[:, None], (1 - leak) * q + slope * x[:, None]
        h = (1 - leak) * h + leak * np.tanh(n)
        error = h @ V + np.asarray(head.bias) - target
        dR, dW, dV = dR + (B @ error) * p, dW + (B @ error) * q, dV + np.outer(h, error)
    np.testing.assert_allclose(estimate.gradient[0].recurrent_weight, dR, atol=1e-11)
    np.testing.assert_allclose(estimate.gradient[0].input_weight, dW, atol=1e-11)
    np.testing.assert_allclose(estimate.gradient[1].weight, dV, atol=1e-11)
    assert estimate.gradient[1].key is None
    assert not np.allclose(V, B)


def test_eprop_of_an_lstm_is_its_formula():
    """Bellec et al. 2020, supplementary note 2: the trace is that of c, e = dh/dc * trace."""
    (cell, head), xs, targets = problem("lstm")
    gradient = learn(rnnjax.gradients.EProp(), (cell, head), xs, targets).gradient[0]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    W, R, b, V = (np.asarray(a) for a in (cell.input_weight, cell.recurrent_weight, cell.bias, head))
    H = grid.H
    h, c, trace, dR = np.zeros(H), np.zeros(H), np.zeros((H, 3, H)), np.zeros((H, 4, H))
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        i, f, g, o = np.split(x @ W + h @ R + b, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        immediate = np.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g**2)])  # dc/d(gate), for i, f, g
        trace = f * trace + h[:, None, None] * immediate
        c = f * c + i * g
        through_c = o * (1 - np.tanh(c) ** 2) * trace
        through_o = h[:, None, None] * (np.tanh(c) * o * (1 - o))
        h = o * np.tanh(c)
        signal = V @ (2 * (h @ V - target))
        dR += signal * np.concatenate([through_c, through_o], 1)
    np.testing.assert_allclose(gradient.recurrent_weight, dR.reshape(H, 4 * H), atol=1e-11)


@pytest.mark.parametrize("cell", ["elman", *slow(["gru"], ["residual_and_skip"])])
def test_uoro_is_unbiased(cell):
    """The mean of 10,000 draws is within the spread of such a mean, for each weight and for all of them."""
    weights, xs, targets = problem(cell, 8)
    exact = learned(rnnjax.gradients.BPTT(), cell, 8).gradient

    @jax.jit
    def draw(key):
        one = lambda key: _learn(rnnjax.gradients.UORO(), weights, xs, targets, key, None, loss).gradient  # noqa: E731
        return jax.lax.map(jax.vmap(one), jax.random.split(key, (4, 2500)))

    draws = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(10_000, *leaf.shape[2:]), draw(key()))
    errors = [
        (leaf.mean(0) - one) / (leaf.std(0) / 100)
        for leaf, one in zip(jax.tree.leaves(draws[0]), jax.tree.leaves(exact[0]), strict=True)
    ]
    errors = np.concatenate([error.ravel() for error in errors])
    assert np.isfinite(errors).all()
    assert abs(errors).max() < np.sqrt(2 * np.log(errors.size)) + 1  # of so many, the largest is about the root
    assert np.mean(abs(errors) < 3) > 0.98
    assert np.mean(errors**2) < 1.5
    grid.assert_close(
        jax.tree.map(lambda leaf: leaf[0], draws[1]), exact[1]
    )  # the head's gradient is exact in every draw


def test_a_counter_in_a_state_is_no_number_to_differentiate_by():
    counted, expected = problem(grid.Counted(grid.build("elman")), 8), learned(rnnjax.gradients.BPTT(), "elman", 8)
    for estimator in (rnnjax.gradients.RTRL(), rnnjax.gradients.BPTT(rnnjax.Scan())):
        got = learn(estimator, *counted)
        assert got.memory.state[0] == 8
        leaves = [(estimate.loss, jax.tree.leaves(estimate.gradient)) for estimate in (got, expected)]
        grid.assert_close(*leaves)


def test_snap1_takes_a_recurrence_without_weights():
    generator = np.random.default_rng(11)
    cell = rnnjax.LinearRecurrence(rnnjax.Hidden(grid.place(np.zeros(4))))
    head, xs = grid.place(generator.normal(size=(4, TARGETS))), tuple(generator.random((2, 9, 4)))
    _, _, targets = problem("gru", 9)
    estimates = [
        learn(estimator, (cell, head), xs, targets) for estimator in (rnnjax.gradients.SnAp1(), rnnjax.gradients.BPTT())
    ]
    grid.assert_close(estimates[0][:2], estimates[1][:2])


# Networks, forward


def keyless(estimator, weights, xs, targets, state=None):
    """The estimate of a whole sequence without a key, with which a stack drops outputs."""
    memory = _start()(estimator, weights[0], state)
    return jax.tree.map(np.asarray, _advance()(estimator, weights, memory, np.asarray(xs), np.asarray(targets)))


def halves(estimator, weights, xs, targets, state=None):
    """The same in two chunks, summed."""
    first, second = in_chunks(estimator, weights, xs, targets, state)
    loss, gradient = jax.tree.map(np.add, first[:2], second[:2])
    return second._replace(loss=loss, gradient=gradient)


def assert_exact(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-12)
    assert distance(got.gradient, expected.gradient) < tolerance
    assert jax.tree.structure(got.gradient) == jax.tree.structure(expected.gradient)
    grid.assert_close(got.memory.state, expected.memory.state)


@grid.once
def gru_below_lstm() -> rnnjax.Stack:
    """Two layers that learn their initial states."""
    options = {"key": key(), "learn_initial": True, "dtype": "float64"}
    return rnnjax.Stack([rnnjax.GRU(grid.I, 3, **options), rnnjax.LSTM(3, 4, peepholes=True, **options)])


@pytest.mark.parametrize(
    "network", ["gru_below_lstm", *slow(["stack"], ["residual_and_skip"], ["time_distributed"], ["conv_lstm"])]
)
def test_rtrl_of_a_network_is_bptt(network):
    given = problem(gru_below_lstm() if network == "gru_below_lstm" else network, 12)
    assert_exact(halves(rnnjax.gradients.RTRL(), *given), keyless(rnnjax.gradients.BPTT(rnnjax.Scan()), *given))


@grid.once
def diagonal() -> rnnjax.Stack:
    """Layers without a state at the bottom, around a cell and at the top, of cells whose units are apart."""
    options = {"key": key(), "dtype": "float64"}
    linear = lambda: eqx.nn.Linear(4, 4, **options)  # noqa: E731
    block = rnnjax.Stack(
        [rnnjax.MinGRU(4, 4, learn_initial=True, **options), rnnjax.TimeDistributed(linear(), 4, dtype="float64")]
    )
    enter = rnnjax.TimeDistributed(eqx.nn.Linear(grid.I, 4, **options), grid.I, dtype="float64")
    leave = rnnjax.TimeDistributed(linear(), 4, dtype="float64")
    return rnnjax.Stack([enter, rnnjax.residual(block), rnnjax.LRU(4, 4, learn_initial=True, **options), leave])


def test_snap1_is_exact_for_a_network_of_cells_whose_units_are_apart():
    given = problem(diagonal(), 8)
    assert_exact(halves(rnnjax.gradients.SnAp1(), *given), keyless(rnnjax.gradients.BPTT(rnnjax.Scan()), *given))


def test_one_step_of_a_network_from_a_given_state_is_exact():
    weights, xs, targets = problem(gru_below_lstm(), 1)
    estimators = rnnjax.gradients.SnAp1(), rnnjax.gradients.EProp(), rnnjax.gradients.BPTT(rnnjax.Scan())
    state = grid.random_state(weights[0])
    learn_all = lambda weights: [_learn(one, weights, xs, targets, None, state, loss) for one in estimators]  # noqa: E731
    *estimates, expected = jax.tree.map(np.asarray, eqx.filter_jit(learn_all)(weights))
    for got in estimates:
        assert_exact(got, expected)


def two_elmans_by_hand(weights, xs, targets, rule):
    """The gradients by the weights of two leaky layers, from the influence M of each weight on both states.

    rule   "rtrl": M_t = J M_{t-1} + I. "snap1": of it the entries where I, the influence within a step, is not zero.
           "eprop": M_t = (1 - leak) M_{t-1} + I within a layer, and what of it passes to the layer above within a step
    """
    cells, V = weights[0].layers, np.asarray(weights[1])
    below, above = np.split(np.arange(sum(cell.hidden_size for cell in cells)), [cells[0].hidden_size])
    identity = np.eye(above[-1] + 1)
    h, M, gradient = 0 * identity[0], {}, {}
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        y, decay, own, immediate = x, 0 * identity, 0 * identity, {}
        for cell, units in zip(cells, (below, above), strict=True):
            W, R, b = (np.asarray(array) for array in (cell.input_weight, cell.recurrent_weight, cell.bias))
            before, activity = h[units], np.tanh(y @ W + h[units] @ R + b)
            slope = cell.leak * (1 - activity**2)
            for name, factor in (("input_weight", y), ("recurrent_weight", before), ("bias", np.ones(1))):
                immediate[len(units), name] = np.einsum("kj,i->kij", identity[:, units] * slope, factor)
            decay[np.ix_(units, units)] = (1 - cell.leak) * np.eye(len(units))
            own[np.ix_(units, units)] = slope[:, None] * R.T
            h[units] = (1 - cell.leak) * before + cell.leak * activity
            y = h[units]
        within = identity.copy()
        within[np.ix_(above, below)] = slope[:, None] * W.T
        signal = np.concatenate([0 * below, V @ (2 * (y @ V - target))]) @ within
        for field, new in immediate.items():
            influence, reached = M.get(field, 0 * new), np.tensordot(within, new, 1) != 0
            if rule == "eprop":
                M[field] = np.tensordot(decay, influence, 1) + new
                gradient[field] = gradient.get(field, 0) + np.tensordot(signal, M[field], 1)
                continue
            M[field] = np.tensordot(within, np.tensordot(decay + own, influence, 1) + new, 1)
            if rule == "snap1":
                M[field] = np.where(reached, M[field], 0)
            gradient[field] = gradient.get(field, 0) + np.tensordot(signal[above] @ identity[above], M[field], 1)
    return gradient


def test_estimators_of_two_layers_are_their_formulas():
    options = {"key": key(), "dtype": "float64"}
    stack = rnnjax.Stack([rnnjax.Elman(grid.I, 3, leak=0.3, **options), rnnjax.Elman(3, 4, leak=0.6, **options)])
    weights, xs, targets = problem(stack, 10)
    rules = {"rtrl": rnnjax.gradients.RTRL(), "snap1": rnnjax.gradients.SnAp1(), "eprop": rnnjax.gradients.EProp()}

    @eqx.filter_jit
    def learn_all(weights):
        return {rule: _learn(one, weights, xs, targets, None, None, loss).gradient[0] for rule, one in rules.items()}

    gradients = jax.tree.map(np.asarray, learn_all(weights))
    for rule, got in gradients.items():
        for (units, name), expected in two_elmans_by_hand(weights, xs, targets, rule).items():
            array = getattr(got.layers[units - 3], name)
            np.testing.assert_allclose(array, expected.reshape(array.shape), atol=1e-11)
    for rule in ("snap1", "eprop"):
        assert distance(gradients[rule].layers[0], gradients["rtrl"].layers[0]) > 1e-3


@pytest.mark.parametrize("estimator", [rnnjax.gradients.RTRL(), *slow([rnnjax.gradients.EProp()])])
def test_a_forward_estimator_drops_between_layers_with_its_key(estimator):
    """As `unroll` of one step does, with the key of that step."""
    options = {"key": key(), "dtype": "float64"}
    cells = [rnnjax.Elman(grid.I, 3, **options), rnnjax.Elman(3, 4, **options)]
    steps = 3 if isinstance(estimator, rnnjax.gradients.RTRL) else 1
    weights, xs, targets = problem(rnnjax.Stack([rnnjax.Stack(cells, dropout=0.5)]), steps)

    @jax.jit
    def by_hand(trained):
        stack, head = eqx.combine(trained, weights)
        state, total = stack.initial(), 0.0
        for t in range(steps):
            step_key = jax.random.fold_in(key(), t)
            state, y = rnnjax.unroll(stack, state, xs[t : t + 1], key=step_key, engine=rnnjax.Unrolled())
            total += loss(head, y[0], targets[t])
        return total

    expected = jax.tree.map(np.asarray, jax.value_and_grad(by_hand)(eqx.filter(weights, eqx.is_inexact_array)))
    got = learn(estimator, weights, xs, targets)
    np.testing.assert_allclose(got.loss, expected[0], rtol=1e-12)
    assert distance(got.gradient, expected[1]) < 1e-12
    assert abs(got.loss - keyless(estimator, weights, xs, targets).loss) > 1e-3


def test_memory_of_a_network_is_as_documented():
    numbers = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    network = gru_below_lstm()
    below, above = map(numbers, network.layers)  # states of 3 numbers, and of 2 * 4
    trace = lambda estimator: numbers(eqx.filter_eval_shape(estimator.start, network).trace)  # noqa: E731
    assert trace(rnnjax.gradients.RTRL()) == (3 + 2 * 4) * (below + above)
    assert trace(rnnjax.gradients.SnAp1()) == (1 + 2 * 4) * below + 2 * above
    assert trace(rnnjax.gradients.EProp()) == below + 2 * above


# Truncated


@pytest.mark.parametrize("name", ["elman", *slow(["gru"], ["dropped"])])
def test_truncated_at_the_end_is_bptt_bit_for_bit(name):
    given = problem(rnnjax.regularise.RecurrentDropout(grid.build("gru"), 0.5) if name == "dropped" else name, 8)
    whole = learned(rnnjax.gradients.BPTT(), name, 8) if name != "dropped" else learn(rnnjax.gradients.BPTT(), *given)
    for estimator in (rnnjax.gradients.TruncatedBPTT(8), rnnjax.gradients.TruncatedBPTT(8, 11)):
        chex.assert_trees_all_equal(learn(estimator, *given), whole)


@pytest.mark.parametrize("back", [6, *slow([4], [8])])
def test_what_is_carried_over_windows_is_dropped_as_they_are(back):
    """All that an LSTM writes is dropped: its states stay zero, and so does the loss."""
    weights, xs, targets = problem(rnnjax.regularise.RecurrentDropout(grid.build("lstm"), 1 - 1e-9), 12)
    assert loss_alone(rnnjax.gradients.TruncatedBPTT(4, back), weights, xs, np.zeros_like(targets)) == 0


@pytest.mark.parametrize("back", [5, *slow([3])])
def test_a_learned_start_that_moved_is_where_it_moved(back):
    weights, xs, targets = problem("lstm_options", 12)
    start = grid.place(np.asarray(weights[0].initial_state.c) + 1)
    moved = eqx.tree_at(lambda weights: weights[0].initial_state.c, weights, start)
    estimator = rnnjax.gradients.TruncatedBPTT(3, back)

    @eqx.filter_jit
    def both(weights, moved):
        estimate = estimator.estimate(loss, moved, estimator.start(weights[0]), xs, targets)
        return estimate.loss, _learn(rnnjax.gradients.BPTT(), moved, xs, targets, None, None, loss).loss

    np.testing.assert_allclose(*both(weights, moved), rtol=1e-12)


@pytest.mark.parametrize("cell", ["elman", *slow(["gru"])])
def test_sums_over_windows_are_kept_in_float32(cell):
    weights, xs, targets = problem(cell, 2000, "bfloat16")
    wider = lambda leaf: grid.place(np.asarray(leaf).astype("float32"))  # noqa: E731
    in_float32 = jax.tree.map(wider, (weights, xs, targets))
    narrow, wide = (
        learn(rnnjax.gradients.TruncatedBPTT(5), weights, xs, targets),
        learn(rnnjax.gradients.TruncatedBPTT(5), *in_float32),
    )
    for one, other in zip(jax.tree.leaves(narrow.gradient), jax.tree.leaves(wide.gradient), strict=True):
        assert one.dtype == "bfloat16"
        assert np.linalg.norm(one.astype("float32") - other) < 0.02 * np.linalg.norm(other)


def window_by_hand(steps: Steps, begin: int, first: int, end: int, given: bool) -> np.ndarray:
    """The losses of the steps from `first` on differentiated by the cell's weights, through the steps from `begin`."""
    size = steps.signals.shape[1]
    back, gradient = np.zeros(size), np.zeros(steps.immediate.shape[-1])
    for t in range(end - 1, begin - 1, -1):
        back = back + (steps.signals[t] if t >= first else 0)
        gradient += back @ steps.immediate[t, 0]
        back = back @ steps.jacobians[t, 0, :, 0]
    return gradient + (back @ steps.initial[0] if begin == 0 and not given else 0)


@pytest.mark.parametrize(
    ("every", "back", "given"),
    [
        (7, 7, True),
        (5, 12, True),
        *slow((1, 1, True), (5, 5, False), (1, 4, False), (7, 8, False), (10, 60, False)),
    ],
)
def test_truncated_cuts_exactly_at_its_windows(every, back, given):
    """By hand: each window's losses on their own, through the steps of the window alone."""
    count = 23 if every < 10 else STEPS
    weights, xs, targets = problem("gru")
    steps = step_by_step("gru", given)
    start = grid.random_state(weights[0]) if given else None
    got = learn(rnnjax.gradients.TruncatedBPTT(every, back), weights, xs[:count], targets[:count], state=start)
    by_hand = sum(
        window_by_hand(steps, max(first - (back - every), 0), first, min(first + every, count), given)
        for first in range(0, count, every)
    )
    np.testing.assert_allclose(ravel(got.gradient[0]), by_hand, rtol=0, atol=1e-11 * max(1, abs(by_hand).max()))
    head = steps.by_head[:count].sum(0)
    np.testing.assert_allclose(got.gradient[1], head, rtol=0, atol=1e-11 * max(1, abs(head).max()))
    np.testing.assert_allclose(got.loss, steps.losses[:count].sum(), rtol=1e-11)
    np.testing.assert_allclose(got.memory.state.h, steps.states[count - 1, 0], rtol=0, atol=1e-11)
    assert not got.memory.is_initial
    if back < count:
        whole = window_by_hand(steps, 0, 0, count, given)
        assert not np.allclose(ravel(got.gradient[0]), whole, atol=1e-9)


@pytest.mark.slow  # of networks the quick tier has `test_dropout_in_a_network_follows_the_key`
@pytest.mark.parametrize("name", ["stack_of_bidirectional", "qrnn", "rg_lru"])
def test_backward_estimators_take_networks(name):
    whole = learned(rnnjax.gradients.BPTT(), name, 12)
    chex.assert_trees_all_equal(learned(rnnjax.gradients.TruncatedBPTT(12), name, 12).gradient, whole.gradient)
    if name not in ("stack_of_bidirectional", "qrnn"):  # one sees its window alone, one draws for each window
        grid.assert_close(learned(rnnjax.gradients.TruncatedBPTT(5, 15), name, 12), whole)


def test_a_learned_start_learns_from_the_first_chunk_alone():
    weights, xs, targets = problem("lstm_options", 20)
    first, second = in_chunks(rnnjax.gradients.BPTT(), weights, xs, targets)
    assert np.abs(first.gradient[0].initial_state.c).max() > 1e-3
    assert not second.gradient[0].initial_state.c.any()
    given, _ = in_chunks(rnnjax.gradients.BPTT(), weights, xs, targets, weights[0].initial_state)
    assert not given.gradient[0].initial_state.c.any()


# In use


def temporary(estimator, steps):
    """Temporary bytes of a compiled program, inputs not counted."""
    weights, _, _ = problem("elman", 1, "float32")
    xs, targets = np.zeros((steps, grid.I), "float32"), np.zeros((steps, TARGETS), "float32")
    program = eqx.filter_jit(lambda *a: _learn(estimator, weights, *a, None, None, loss)[:2])
    return program.lower(xs, targets).compile().compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_bptt_grows_with_time():
    assert temporary(rnnjax.gradients.BPTT(rnnjax.Scan()), 10_000) > 50 * temporary(
        rnnjax.gradients.BPTT(rnnjax.Scan()), 100
    )


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(rnnjax.gradients.RTRL(), id="rtrl", marks=pytest.mark.slow),
        pytest.param(rnnjax.gradients.SnAp1(), id="snap1"),
        pytest.param(rnnjax.gradients.TruncatedBPTT(50), id="truncated", marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_time(estimator):
    assert temporary(estimator, 10_000) < 1.1 * temporary(estimator, 100) + 1_000


def test_a_batch_is_a_vmap_and_optax_takes_what_comes():
    weights, _, _ = problem("gru", 12, "float32")
    xs = grid.inputs(grid.B, 12, dtype="float32")
    targets = np.random.default_rng(11).normal(size=(grid.B, 12, TARGETS)).astype("float32")
    estimator, optimiser = rnnjax.gradients.RTRL(), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))

    @eqx.filter_jit
    def update(weights, optimised):
        memory = estimator.start(weights[0])
        one = lambda xs, targets: estimator.estimate(loss, weights, memory, xs, targets)[:2]  # noqa: E731
        value, gradient = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(xs, targets))
        updates, optimised = optimiser.update(gradient, optimised)
        return value, eqx.apply_updates(weights, updates), optimised

    optimised, seen = optimiser.init(eqx.filter(weights, eqx.is_inexact_array)), []
    for _ in range(30):
        value, weights, optimised = update(weights, optimised)
        seen.append(float(value))
    assert seen[-1] < 0.7 * seen[0]


def test_dropout_in_a_network_follows_the_key():
    given = problem("stack", 10)
    estimate = lambda seed: loss_alone(rnnjax.gradients.TruncatedBPTT(5), *given, seed)  # noqa: E731
    assert estimate(11) == estimate(11)
    assert estimate(11) != estimate(1)


# What does not fit


BAD = {
    "RTRL().start(QRNN)": "RTRL cannot train QRNN: it needs a cell, or a Stack, residual or skip .* Use BPTT",
    "UORO().start(BOTH)": "UORO cannot train Bidirectional: it needs a cell, or a Stack",
    "EProp().start(skip(Stack([BOTH])))": "EProp cannot train Bidirectional in Connected: it needs an AbstractGated",
    "RTRL().start(Stack([regularise.VariationalDropout(GRU)]))": "cannot train VariationalDropout in Stack: it needs",
    "RTRL().start(OTHER)": "RTRL cannot train OtherStack: it needs a cell",
    "SnAp1().start(Stack([TimeDistributed(len, 3)]))": "SnAp1 cannot train Stack: it has no cell. Use BPTT",
    "SnAp1().start(Stack([AHEAD]))": r"LayerAhead in Stack: it needs weights whose last axis counts the 4 units",
    "EProp().start(Stack([LRU]))": "EProp cannot train LRU in Stack: it needs an AbstractGatedCell. Use RTRL",
    "RTRL().start(Stack([HALF]))": "RTRL cannot train GRU in Stack in bfloat16: it needs float32 or wider",
    "RTRL().start(Stack([GRU]), 3.0)": "state: expected .*Hidden.* for Stack",
    "SnAp1().start(RESET)": "SnAp1 cannot train ResetBeforeGRU: it needs an AbstractDiagonalCell or an AbstractGated",
    "SnAp1().start(AHEAD)": r"LayerAhead: it needs weights whose last axis counts the 4 units, not \[3, 8\]",
    "EProp().start(LRU)": "EProp cannot train LRU: it needs an AbstractGatedCell. Use RTRL",
    "RTRL().start(HALF)": "RTRL cannot train GRU in bfloat16: it needs float32 or wider",
    "BPTT().start(len)": "BPTT cannot train len: it needs a cell or a network",
    "BPTT().start(GRU, 3.0)": "state: expected Hidden",
    "RTRL().start(GRU, 3.0)": "state: expected Hidden",
    "UORO().start(GRU)": "key: expected a key for UORO",
    "TruncatedBPTT(0)": "every: expected a number of steps k1, at least 1, got 0",
    "TruncatedBPTT(5, 0)": "back: expected a number of steps k2 of at least every=5, got 0",
    "TruncatedBPTT(5, 4)": "back: expected",
    "TruncatedBPTT(9).estimate(LOSS, (GRU, HEAD), START, XS, XS)": "every: expected at most the T=8 steps",
    "BPTT().estimate(LOSS, GRU, START, XS, XS)": "weights: expected a pair",
    "BPTT().estimate(LOSS, (GRU, HEAD), START, XS, XS[:3])": r"targets: expected arrays \[T=8, ...\]",
    "BPTT().estimate(LOSS, (GRU, HEAD), START, XS, None)": r"targets: expected arrays \[T=8, ...\]",
    "BPTT().estimate(VECTOR, (GRU, HEAD), START, XS, XS)": "loss: expected a real scalar",
    "RTRL().estimate(VECTOR, (GRU, HEAD), TRACED, XS, XS)": "loss: expected a real scalar",
    "RTRL().estimate(LOSS, (GRU, HEAD), TRACED, XS[:, :2], XS)": "xs: expected .* for GRU",
    "BPTT().estimate(LOSS, (GRU, HEAD), None, XS, XS)": "memory: expected what BPTT's start.* got None",
    "BPTT().estimate(LOSS, (GRU, HEAD), GRU.initial(), XS, XS)": "memory: expected what BPTT's start",
    "RTRL().estimate(LOSS, (GRU, HEAD), START, XS, XS)": "memory: expected what RTRL's start",
    "UORO().estimate(LOSS, (GRU, HEAD), UORO().start(WIDE, key=KEY), XS, XS, key=KEY)": "memory: expected",
    "BPTT().estimate(None, (GRU, HEAD), START, XS, XS)": "loss: expected a function .*got None",
    "BPTT().estimate(PAIR, (GRU, HEAD), START, XS, XS)": "loss: expected a real scalar",
    "RTRL().estimate(LOSS, (GRU, HEAD), TRACED, XS[:0], XS[:0])": "xs: expected at least one step",
    "TruncatedBPTT(2.5)": "every: expected a number of steps k1",
    "TruncatedBPTT(True)": "every: expected a number of steps k1",
    "TruncatedBPTT(2, '5')": "back: expected a number of steps k2",
    "RandomFeedback(0, 2, key=KEY)": "input_size: expected a positive integer",
    "Elman(3, 4, key=KEY, leak=1.5)": "leak: expected a share above 0",
}


class LayerAhead(rnnjax.Elman):
    """A cell of four units, with a layer before its W that mixes eight others."""

    layer: jax.Array

    def __init__(self):
        super().__init__(8, 4, key=key())
        self.layer = grid.place(np.zeros((3, 8), "float32"))

    def input_type(self):
        return jax.ShapeDtypeStruct((3,), self.dtype)

    def project(self, xs):
        return super().project(xs @ self.layer)


class OtherStack(rnnjax.Stack):
    """A network that may run in any way."""


@grid.once
def names() -> dict[str, Any]:
    """What the calls above speak of."""
    cell = rnnjax.GRU(grid.I, 4, key=key())
    return {
        "rnnjax": rnnjax,
        "QRNN": rnnjax.QRNN(3, 4, key=key()),
        "BOTH": rnnjax.Bidirectional(cell, cell, merge=rnnjax.networks.add),
        "OTHER": OtherStack([cell]),
        "RESET": rnnjax.ResetBeforeGRU(3, 4, key=key()),
        "AHEAD": LayerAhead(),
        "LRU": rnnjax.LRU(3, 4, key=key()),
        "HALF": rnnjax.GRU(3, 4, key=key(), dtype=jnp.bfloat16),
        "GRU": cell,
        "HEAD": grid.place(np.zeros((4, grid.I))),
        "START": _start()(rnnjax.gradients.BPTT(), cell, None),
        "TRACED": _start()(rnnjax.gradients.RTRL(), cell, None),
        "XS": np.asarray(grid.inputs(8, dtype="float32")),
        "LOSS": lambda head, y, target: jnp.sum((y @ head.astype(y.dtype) - target) ** 2),
        "VECTOR": lambda *step: step[2],
        "PAIR": lambda *step: (jnp.sum(step[1]), None),
        "WIDE": rnnjax.GRU(grid.I, 5, key=key()),
        "KEY": key(),
        "len": len,
    }


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises((ValueError, TypeError), match=BAD[call]):
        jax.eval_shape(partial(eval, call, vars(rnnjax) | vars(rnnjax.gradients) | names()))
