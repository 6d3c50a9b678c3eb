"""Gradient estimators: exact ones are BPTT, cut ones are cut where they say, random ones are right in the mean."""

from functools import partial

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
KEY = jax.random.key(11)
DIAGONAL = [name for name in grid.CELLS if isinstance(grid.build(name), rnnjax.AbstractDiagonalCell)]


def loss(head, y, target):
    """Squared error of a linear head."""
    return jnp.sum((y @ head - target) ** 2)


def problem(cell, steps=STEPS, dtype="float64"):
    """Weights `(cell, head)`, inputs and targets."""
    built = grid.build(cell, dtype) if isinstance(cell, str) else cell
    xs = grid.inputs(steps, dtype=dtype)
    outputs = jax.eval_shape(lambda xs: rnnjax.unroll(built, None, xs)[1], xs).shape[-1]
    head = jax.random.normal(jax.random.key(5), (outputs, TARGETS), dtype)
    return (built, head), xs, jax.random.normal(jax.random.key(6), (steps, TARGETS), dtype)


@eqx.filter_jit
def learn(estimator, weights, xs, targets, key=KEY, state=None):
    """An estimate of a whole sequence."""
    memory = estimator.start(weights[0], state, key=key)
    return estimator.estimate(loss, weights, memory, xs, targets, key=key)


def differentiate(function, weights):
    """The gradient by every weight, by hand."""
    trained, static = eqx.partition(weights, eqx.is_inexact_array)
    return jax.jit(jax.grad(lambda trained: function(*eqx.combine(trained, static))))(trained)


def losses(head, ys, targets):
    return jax.vmap(partial(loss, head))(ys, targets).sum()


@pytest.mark.parametrize("cell", ["lstm_options", "lru"])
def test_bptt_is_the_gradient_of_the_sum(cell):
    weights, xs, targets = problem(cell)
    run = partial(rnnjax.unroll, state=None, xs=xs, engine=rnnjax.Scan())
    estimate = learn(rnnjax.BPTT(), weights, xs, targets)
    grid.assert_close(estimate.gradient, differentiate(lambda cell, head: losses(head, run(cell)[1], targets), weights))
    grid.assert_close(estimate.memory.state, run(weights[0])[0])


@pytest.mark.parametrize("cell", grid.CELLS)
def test_rtrl_is_bptt(cell):
    weights, xs, targets = problem(cell)
    got, expected = (learn(estimator, weights, xs, targets)[:2] for estimator in (rnnjax.RTRL(), rnnjax.BPTT()))
    assert optax.tree.norm(optax.tree.sub(got, expected)) < 1e-12 * optax.tree.norm(expected)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_rtrl_is_bptt_in_float32(cell):
    weights, xs, targets = problem(cell, dtype="float32")
    got, expected = (learn(e, weights, xs, targets).gradient for e in (rnnjax.RTRL(), rnnjax.BPTT(rnnjax.Scan())))
    assert float(optax.tree.norm(optax.tree.sub(got, expected)) / optax.tree.norm(expected)) < 1e-6


@pytest.mark.parametrize("estimator", [rnnjax.RTRL(), rnnjax.SnAp1()], ids=["rtrl", "snap1"])
def test_chunks_are_one_pass(estimator):
    """The trace crosses a boundary, as BPTT's gradient does not."""
    weights, xs, targets = problem("diagonal_lstm")
    memory = estimator.start(weights[0], None)
    first = estimator.estimate(loss, weights, memory, xs[:20], targets[:20])
    second = estimator.estimate(loss, weights, first.memory, xs[20:], targets[20:])
    whole = learn(rnnjax.BPTT(), weights, xs, targets)
    grid.assert_close(optax.tree.add(first.gradient, second.gradient), whole.gradient)
    grid.assert_close(second.memory.state, whole.memory.state)
    cut = learn(rnnjax.TruncatedBPTT(20), weights, xs[:40], targets[:40])
    assert not np.allclose(cut.gradient[0].bias, learn(rnnjax.BPTT(), weights, xs[:40], targets[:40]).gradient[0].bias)


@pytest.mark.parametrize("cell", DIAGONAL)
def test_snap1_is_exact_where_units_are_apart(cell):
    weights, xs, targets = problem(cell)
    grid.assert_close(learn(rnnjax.SnAp1(), weights, xs, targets)[:2], learn(rnnjax.BPTT(), weights, xs, targets)[:2])


def test_snap1_is_the_diagonal_of_rtrl():
    """RTRL with all but a unit's own fields struck out of J and of the immediate influence, in NumPy."""
    (cell, head), xs, targets = problem("lstm_options", 6)
    trained, static = eqx.partition(cell, eqx.is_inexact_array)
    flat, restore = jax.flatten_util.ravel_pytree(trained)

    def after(flat, state, x):
        full = eqx.combine(restore(flat), static)
        h, c = full.step(rnnjax.LSTMState(*state), full.project(x[None])[0])
        return jnp.stack([h, c])

    own = np.eye(grid.H, dtype=bool)[None, :, None, :]
    state = jnp.stack(cell.initial())
    influence = np.asarray(jax.jacrev(lambda flat: jnp.stack(eqx.combine(restore(flat), static).initial()))(flat))
    gradient = np.zeros(flat.size)
    for x, target in zip(xs, targets, strict=True):
        immediate, jacobian = jax.jacrev(after, (0, 1))(flat, state, x)
        kept = np.where(own, jacobian, 0)
        influence = np.einsum("fhgk,gkp->fhp", kept, influence) + np.asarray(immediate)
        state = after(flat, state, x)
        gradient += np.einsum("h,hp->p", jax.grad(lambda h: loss(head, h, target))(state[0]), influence[0])  # noqa: B023
    got = learn(rnnjax.SnAp1(), (cell, head), xs, targets).gradient[0]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(got)[0], gradient, atol=1e-11)


def test_rflo_is_its_formula():
    """Murray 2019, eqs. 5 to 7: a trace for each synapse, and errors that come back by random weights."""
    leak, H = 0.3, grid.H
    cell = rnnjax.Elman(grid.I, H, leak=leak, key=KEY, dtype="float64")
    head = rnnjax.RandomFeedback(H, TARGETS, key=KEY, dtype="float64")
    _, xs, targets = problem(cell)
    squares = lambda head, y, target: 0.5 * jnp.sum((head(y) - target) ** 2)  # noqa: E731
    estimator = rnnjax.EProp()
    estimate = estimator.estimate(squares, (cell, head), estimator.start(cell), xs, targets)

    W, R, b = (np.asarray(a) for a in (cell.input_weight[:, 0], cell.recurrent_weight[0, :, 0], cell.bias[0]))
    V, B = np.asarray(head.weight), np.asarray(head.feedback)
    h, p, q, dR, dW, dV = np.zeros(H), np.zeros((H, H)), np.zeros((grid.I, H)), 0, 0, 0
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        n = x @ W + h @ R + b
        slope = leak * (1 - np.tanh(n) ** 2)
        p, q = (1 - leak) * p + slope * h[:, None], (1 - leak) * q + slope * x[:, None]
        h = (1 - leak) * h + leak * np.tanh(n)
        error = h @ V + head.bias - target
        dR, dW, dV = dR + (B @ error) * p, dW + (B @ error) * q, dV + np.outer(h, error)
    np.testing.assert_allclose(estimate.gradient[0].recurrent_weight[0, :, 0], dR, atol=1e-11)
    np.testing.assert_allclose(estimate.gradient[0].input_weight[:, 0], dW, atol=1e-11)
    np.testing.assert_allclose(estimate.gradient[1].weight, dV, atol=1e-11)
    assert estimate.gradient[1].key is None
    assert not np.allclose(V, B)


def test_eprop_of_an_lstm_is_its_formula():
    """Bellec et al. 2020, supplementary note 2: the trace is that of c, e = dh/dc * trace."""
    (cell, head), xs, targets = problem("lstm")
    gradient = learn(rnnjax.EProp(), (cell, head), xs, targets).gradient[0]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    W, R, b, V = (np.asarray(a) for a in (cell.input_weight, cell.recurrent_weight[0], cell.bias, head))
    H = grid.H
    h, c, trace, dR = np.zeros(H), np.zeros(H), np.zeros((H, 3, H)), np.zeros((H, 4, H))
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        i, f, g, o = np.einsum("i,igh->gh", x, W) + np.einsum("p,pgh->gh", h, R) + b
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        immediate = np.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g**2)])  # dc/d(gate), for i, f, g
        trace = f * trace + h[:, None, None] * immediate
        c = f * c + i * g
        through_c = o * (1 - np.tanh(c) ** 2) * trace
        through_o = h[:, None, None] * (np.tanh(c) * o * (1 - o))
        h = o * np.tanh(c)
        signal = V @ (2 * (h @ V - target))
        dR += signal * np.concatenate([through_c, through_o], 1)
    np.testing.assert_allclose(gradient.recurrent_weight[0], dR, atol=1e-11)


@pytest.mark.parametrize("cell", ["elman", "gru"])
def test_uoro_is_unbiased(cell):
    """The mean of 10,000 draws is within the spread of such a mean, for each weight and for all of them."""
    weights, xs, targets = problem(cell, 8)
    exact = learn(rnnjax.BPTT(), weights, xs, targets).gradient
    draw = jax.jit(jax.vmap(lambda key: learn(rnnjax.UORO(), weights, xs, targets, key).gradient))
    draws = jax.tree.map(
        lambda *parts: np.concatenate(parts), *[draw(jax.random.split(k, 2500)) for k in jax.random.split(KEY, 4)]
    )
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


@pytest.mark.parametrize("name", ["gru", "dropped"])
def test_truncated_at_the_end_is_bptt_bit_for_bit(name):
    part = rnnjax.RecurrentDropout(grid.build("gru"), 0.5) if name == "dropped" else name
    weights, xs, targets = problem(part)
    for estimator in (rnnjax.TruncatedBPTT(STEPS), rnnjax.TruncatedBPTT(STEPS, STEPS + 3)):
        chex.assert_trees_all_equal(learn(estimator, weights, xs, targets), learn(rnnjax.BPTT(), weights, xs, targets))


def test_what_is_carried_over_windows_is_dropped_as_they_are():
    """All that an LSTM writes is dropped: its states stay zero, and so does the loss."""
    lstm = rnnjax.RecurrentDropout(grid.build("lstm"), 1 - 1e-9)
    weights, xs, targets = problem(lstm, 12)
    for back in (4, 6, 8):
        estimate = learn(rnnjax.TruncatedBPTT(4, back), weights, xs, jnp.zeros_like(targets))
        assert estimate.loss == 0


def test_a_learned_start_that_moved_is_where_it_moved():
    weights, xs, targets = problem("lstm_options", 12)
    moved = eqx.tree_at(lambda weights: weights[0].start.c, weights, weights[0].start.c + 1)
    whole = learn(rnnjax.BPTT(), moved, xs, targets)
    for estimator in (rnnjax.TruncatedBPTT(3), rnnjax.TruncatedBPTT(3, 5)):
        estimate = estimator.estimate(loss, moved, estimator.start(weights[0]), xs, targets)
        np.testing.assert_allclose(estimate.loss, whole.loss, rtol=1e-12)


def test_sums_over_windows_are_kept_in_float32():
    weights, xs, targets = problem("gru", 2000, "bfloat16")
    in_float32 = jax.tree.map(lambda leaf: leaf.astype("float32"), (weights, xs, targets))
    narrow, wide = learn(rnnjax.TruncatedBPTT(5), weights, xs, targets), learn(rnnjax.TruncatedBPTT(5), *in_float32)
    for one, other in zip(jax.tree.leaves(narrow.gradient), jax.tree.leaves(wide.gradient), strict=True):
        assert one.dtype == "bfloat16"
        assert np.linalg.norm(np.asarray(one, "float32") - other) < 0.02 * np.linalg.norm(other)


def test_a_counter_in_a_state_is_no_number_to_differentiate_by():
    counting, plain = (problem(cell, 8) for cell in (grid.Counted(grid.build("gru")), "gru"))
    for estimator in (rnnjax.RTRL(), rnnjax.BPTT(rnnjax.Scan())):
        got, expected = learn(estimator, *counting), learn(estimator, *plain)
        assert got.memory.state[0] == 8
        leaves = [(estimate.loss, jax.tree.leaves(estimate.gradient)) for estimate in (got, expected)]
        grid.assert_close(*leaves)


def test_snap1_takes_a_recurrence_without_weights():
    cell = rnnjax.LinearRecurrence(rnnjax.Hidden(jnp.zeros(4)))
    head = jax.random.normal(KEY, (4, TARGETS), "float64")
    xs = tuple(jax.random.uniform(key, (9, 4), "float64") for key in jax.random.split(KEY))
    _, _, targets = problem("gru", 9)
    estimates = [learn(estimator, (cell, head), xs, targets) for estimator in (rnnjax.SnAp1(), rnnjax.BPTT())]
    grid.assert_close(estimates[0][:2], estimates[1][:2])


@pytest.mark.parametrize(
    ("every", "back", "given"),
    [(1, 1, True), (5, 5, False), (7, 7, True), (1, 4, False), (5, 12, True), (7, 8, False), (10, 60, False)],
)
def test_truncated_cuts_exactly_at_its_windows(every, back, given):
    """By hand: each loss differentiated on its own, through the steps of its window alone."""
    steps = 23 if every < 10 else STEPS
    weights, xs, targets = problem("gru", steps)
    start = grid.random_state(weights[0]) if given else None

    def by_hand(cell, head):
        states = [cell.initial() if start is None else start]
        for x in xs:
            states.append(cell.step(states[-1], cell.project(x[None])[0]))
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        total = 0.0
        for first in range(0, steps, every):
            end = min(first + every, steps)
            begin = max(first - (back - every), 0)
            state = jax.tree.map(lambda leaf: leaf[begin], states)  # noqa: B023
            if begin > 0:
                state = jax.lax.stop_gradient(state)
            _, ys = rnnjax.unroll(cell, state, xs[begin:end], engine=rnnjax.Scan())
            total = total + losses(head, ys[first - begin :], targets[first:end])
        return total

    got = learn(rnnjax.TruncatedBPTT(every, back), weights, xs, targets, state=start)
    grid.assert_close(got.gradient, differentiate(by_hand, weights))
    whole = learn(rnnjax.BPTT(), weights, xs, targets, state=start)
    grid.assert_close((got.loss, got.memory), (whole.loss, whole.memory))
    if back < steps:
        assert not np.allclose(got.gradient[0].input_weight, whole.gradient[0].input_weight, atol=1e-9)


@pytest.mark.parametrize("name", ["stack_of_bidirectional", "qrnn", "rg_lru"])
def test_backward_estimators_take_networks(name):
    weights, xs, targets = problem(name, 12)
    whole = learn(rnnjax.BPTT(), weights, xs, targets)
    chex.assert_trees_all_equal(learn(rnnjax.TruncatedBPTT(12), weights, xs, targets).gradient, whole.gradient)
    if name != "stack_of_bidirectional":  # which sees no further than its window
        grid.assert_close(learn(rnnjax.TruncatedBPTT(5, 15), weights, xs, targets), whole)


def test_a_learned_start_learns_from_the_first_chunk_alone():
    weights, xs, targets = problem("lstm_options", 20)
    estimator = rnnjax.BPTT()
    first = estimator.estimate(loss, weights, estimator.start(weights[0]), xs[:10], targets[:10])
    second = estimator.estimate(loss, weights, first.memory, xs[10:], targets[10:])
    assert np.abs(first.gradient[0].start.c).max() > 1e-3
    assert not second.gradient[0].start.c.any()
    given = estimator.estimate(loss, weights, estimator.start(weights[0], weights[0].initial()), xs, targets)
    assert not given.gradient[0].start.c.any()


def test_memory_does_not_grow_with_time():
    """Temporary bytes of compiled programs, inputs not counted."""
    (cell, head), _, _ = problem("gru", dtype="float32")

    def temporary(estimator, steps):
        xs, targets = jnp.zeros((steps, grid.I), "float32"), jnp.zeros((steps, TARGETS), "float32")
        program = eqx.filter_jit(lambda *a: learn(estimator, (cell, head), *a)[:2]).lower(xs, targets).compile()
        return program.compiled.memory_analysis().temp_size_in_bytes

    assert temporary(rnnjax.BPTT(rnnjax.Scan()), 10_000) > 50 * temporary(rnnjax.BPTT(rnnjax.Scan()), 100)
    for estimator in (rnnjax.RTRL(), rnnjax.SnAp1(), rnnjax.TruncatedBPTT(50)):
        assert temporary(estimator, 10_000) < 1.1 * temporary(estimator, 100) + 1_000


def test_a_batch_is_a_vmap_and_optax_takes_what_comes():
    weights, _, _ = problem("gru", 12, "float32")
    xs, targets = grid.inputs(grid.B, 12, dtype="float32"), jax.random.normal(KEY, (grid.B, 12, TARGETS), "float32")
    estimator, optimiser = rnnjax.RTRL(), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))

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
    weights, xs, targets = problem(grid.build("stack"), 12)
    estimate = lambda key: learn(rnnjax.TruncatedBPTT(5), weights, xs, targets, key).loss  # noqa: E731
    assert estimate(KEY) == estimate(KEY)
    assert estimate(KEY) != estimate(jax.random.key(1))


BAD = {
    "RTRL().start(STACK)": "RTRL cannot train Stack: it needs one cell, any cell. Use BPTT",
    "SnAp1().start(RESET)": "SnAp1 cannot train ResetBeforeGRU: it needs an AbstractDiagonalCell or an AbstractGated",
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
    "UORO().estimate(LOSS, (GRU, HEAD), rnnjax.UORO().start(WIDE, key=KEY), XS, XS, key=KEY)": "memory: expected",
    "BPTT().estimate(None, (GRU, HEAD), START, XS, XS)": "loss: expected a function .*got None",
    "BPTT().estimate(PAIR, (GRU, HEAD), START, XS, XS)": "loss: expected a real scalar",
    "RTRL().estimate(LOSS, (GRU, HEAD), TRACED, XS[:0], XS[:0])": "xs: expected at least one step",
    "TruncatedBPTT(2.5)": "every: expected a number of steps k1",
    "TruncatedBPTT(True)": "every: expected a number of steps k1",
    "TruncatedBPTT(2, '5')": "back: expected a number of steps k2",
    "RandomFeedback(0, 2, key=KEY)": "input_size: expected a positive integer",
    "Elman(3, 4, key=KEY, leak=1.5)": "leak: expected a share above 0",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    cell = rnnjax.GRU(grid.I, 4, key=KEY)
    names = {
        "STACK": rnnjax.Stack([cell]),
        "RESET": rnnjax.ResetBeforeGRU(3, 4, key=KEY),
        "LRU": rnnjax.LRU(3, 4, key=KEY),
        "HALF": rnnjax.GRU(3, 4, key=KEY, dtype=jnp.bfloat16),
        "GRU": cell,
        "HEAD": jnp.zeros((4, grid.I)),
        "START": rnnjax.BPTT().start(cell),
        "TRACED": rnnjax.RTRL().start(cell),
        "XS": grid.inputs(8, dtype="float32"),
        "LOSS": lambda head, y, target: jnp.sum((y @ head.astype(y.dtype) - target) ** 2),
        "VECTOR": lambda *step: step[2],
        "PAIR": lambda *step: (jnp.sum(step[1]), None),
        "WIDE": rnnjax.GRU(grid.I, 5, key=KEY),
        "KEY": KEY,
        "len": len,
    }
    with pytest.raises((ValueError, TypeError), match=BAD[call]):
        eval(f"rnnjax.{call}", {"rnnjax": rnnjax, **names})
