"""Regularisers: what is dropped, when, and under which key; the masks are read off and the steps redone by hand."""

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cell import recur
from rnnjax.regularise import masked

KEY = jax.random.key(3)
LSTM, GRU = grid.build("lstm"), grid.build("gru")

RANDOM = {  # built at the rate given
    "inputs": lambda rate: rnnjax.VariationalDropout(LSTM, inputs=rate),
    "recurrent": lambda rate: rnnjax.VariationalDropout(GRU, recurrent=rate),
    "outputs": lambda rate: rnnjax.VariationalDropout(grid.build("stack_of_bidirectional"), outputs=rate),
    "all_three": lambda rate: rnnjax.VariationalDropout(LSTM, inputs=rate, recurrent=rate, outputs=rate),
    "recurrent_dropout": lambda rate: rnnjax.RecurrentDropout(LSTM, rate),
    "recurrent_dropout_gru": lambda rate: rnnjax.RecurrentDropout(GRU, rate),
    "zoneout": lambda rate: rnnjax.Zoneout(LSTM, rate),
    "zoneout_linear": lambda rate: rnnjax.Zoneout(grid.build("lru"), rate),
    "noise": lambda rate: rnnjax.NoisyStates(GRU, rate),
}
IN_THE_STEP = ("recurrent", "recurrent_dropout", "zoneout", "noise")


def run(part, xs, key=KEY, **options):
    return rnnjax.unroll(part, None, xs, key=key, **{"engine": rnnjax.Scan(), **options})


compiled = eqx.filter_jit(run)


@pytest.fixture
def drawn(monkeypatch):
    """A list that fills with the masks over time that steps are given."""
    seen, unroll = [], masked.unroll

    def spy(cell, state, xs, **options):
        seen.append(xs[1])
        return unroll(cell, state, xs, **options)

    monkeypatch.setattr(masked, "unroll", spy)
    return seen


@pytest.mark.parametrize("name", RANDOM)
def test_rate_zero_changes_nothing(name):
    regulariser, xs = RANDOM[name](0.0), grid.inputs(grid.T)
    expected = rnnjax.unroll(regulariser.part, None, xs, engine=rnnjax.Scan())
    for key in (KEY, None):
        for got, one in zip(jax.tree.leaves(run(regulariser, xs, key)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_says_all(name):
    regulariser, xs = RANDOM[name](0.4), grid.inputs(grid.T)
    once = compiled(regulariser, xs)[1]
    np.testing.assert_array_equal(once, compiled(regulariser, xs)[1])
    assert not np.allclose(once, compiled(regulariser, xs, jax.random.key(4))[1])
    assert not np.allclose(once, compiled(regulariser, xs, None)[1])


@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_variational_masks_are_shared_over_time(place):
    regulariser = rnnjax.VariationalDropout(
        rnnjax.TimeDistributed(rnnjax.linear, grid.I, dtype="float64"), **{place: 0.5}
    )
    ones = jnp.ones((20, grid.I))
    ys = jax.vmap(lambda key: run(regulariser, ones, key)[1])(jax.random.split(KEY, 2000))
    assert set(np.unique(ys)) == {0.0, 2.0}
    np.testing.assert_array_equal(ys, jnp.broadcast_to(ys[:, :1], ys.shape))
    np.testing.assert_allclose(ys[:, 0].mean(0), 1.0, atol=3 / np.sqrt(2000))


def test_the_recurrent_mask_is_shared_over_time_and_on_what_recurs_alone(drawn):
    regulariser, xs = rnnjax.VariationalDropout(GRU, recurrent=0.4), grid.inputs(grid.T)
    _, ys = run(regulariser, xs, jax.random.key(5))
    (masks,) = drawn
    np.testing.assert_array_equal(masks, jnp.broadcast_to(masks[0], masks.shape))
    assert 0 < masks[0].sum() < grid.H
    state = GRU.initial()
    for u, y in zip(GRU.project(xs), ys, strict=True):
        v = recur(GRU.recurrent_weight, jnp.where(masks[0], state.h, 0) / 0.6)
        state = GRU.pointwise(GRU.gains, u, v, state)
        np.testing.assert_allclose(state.h, y, atol=1e-12)


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def test_recurrent_dropout_is_fresh_and_on_what_is_written_alone(drawn):
    xs = grid.inputs(grid.T)
    (h, c), ys = run(rnnjax.RecurrentDropout(LSTM, 0.4), xs)
    (masks,) = drawn
    assert not (masks == masks[0]).all()
    state = LSTM.initial()
    for u, mask, y in zip(LSTM.project(xs), masks, ys, strict=True):
        i, f, g, o = u + recur(LSTM.recurrent_weight, state.h)
        c_after = sigmoid(f) * state.c + sigmoid(i) * jnp.where(mask, jnp.tanh(g), 0) / 0.6
        state = rnnjax.LSTMState(sigmoid(o) * jnp.tanh(c_after), c_after)
        np.testing.assert_allclose(state.h, y, atol=1e-12)
    np.testing.assert_allclose(state.c, c, atol=1e-12)
    np.testing.assert_allclose(state.h, h, atol=1e-12)


def test_recurrent_dropout_of_a_gru_keeps_what_is_kept(drawn):
    xs = grid.inputs(grid.T)
    _, ys = run(rnnjax.RecurrentDropout(GRU, 0.4), xs)
    (masks,) = drawn
    h = GRU.initial().h
    for u, mask, y in zip(GRU.project(xs), masks, ys, strict=True):
        v = recur(GRU.recurrent_weight, h)
        r, z = sigmoid(u[:2] + v[:2])
        h = z * h + (1 - z) * jnp.where(mask, jnp.tanh(u[2] + r * v[2]), 0) / 0.6
        np.testing.assert_allclose(h, y, atol=1e-12)


def test_zoneout_keeps_the_unit_as_it_was(drawn):
    xs = grid.inputs(grid.T)
    last, _ = run(rnnjax.Zoneout(LSTM, rnnjax.LSTMState(h=0.25, c=0.5)), xs)
    (masks,) = drawn
    assert not (masks.c == masks.c[0]).all()
    assert not (masks.c == masks.h).all()
    state = LSTM.initial()
    for t, u in enumerate(LSTM.project(xs)):
        after = LSTM.step(state, u)
        state = rnnjax.LSTMState(*(jnp.where(m[t], b, a) for m, b, a in zip(masks, state, after, strict=True)))
    np.testing.assert_allclose(last.h, state.h, atol=1e-12)
    np.testing.assert_allclose(last.c, state.c, atol=1e-12)


def test_zoneout_rates_are_probabilities_of_keeping(drawn):
    run(rnnjax.Zoneout(LSTM, rnnjax.LSTMState(h=0.1, c=0.7)), grid.inputs(5000))
    (masks,) = drawn
    error = 3 * 0.5 / np.sqrt(masks.h.size)
    np.testing.assert_allclose(masks.h.mean(), 0.1, atol=error)
    np.testing.assert_allclose(masks.c.mean(), 0.7, atol=error)


@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout", "noise"])
def test_evaluation_is_the_mean_of_one_step(name):
    """What a step reads of c, by which it is linear in every mask but that of the output's tanh."""
    regulariser, x = RANDOM[name](0.3), grid.inputs(1)
    state = grid.random_state(regulariser)
    one = lambda key: rnnjax.unroll(regulariser, state, x, key=key, engine=rnnjax.Scan())[0]  # noqa: E731
    draws = jax.vmap(one)(jax.random.split(KEY, 4000))
    linear = "c" if name == "recurrent_dropout" else "h"
    draws, mean = getattr(draws, linear), getattr(one(None), linear)
    assert (draws.std(0) > 0).any()
    np.testing.assert_array_less(abs(draws.mean(0) - mean), 4 * draws.std(0) / np.sqrt(4000) + 1e-12)


ENGINES = {"checkpointed": rnnjax.Checkpointed(segment=5), "newton": rnnjax.Newton()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", IN_THE_STEP)
def test_every_engine_gives_the_same_numbers(name, engine):
    regulariser, xs = RANDOM[name](0.4), grid.inputs(grid.T)

    @eqx.filter_jit
    def value_and_gradient(engine):
        loss = lambda regulariser, xs: grid.contract(run(regulariser, xs, engine=engine))  # noqa: E731
        return eqx.filter_value_and_grad(loss)(regulariser, xs)

    grid.assert_close(value_and_gradient(ENGINES[engine]), value_and_gradient(rnnjax.Scan()))


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_fused_refuses_what_it_cannot_trace(name):
    regulariser = RANDOM[name](0.4)
    with pytest.raises(ValueError, match=f"{type(regulariser).__name__} of .*AbstractGatedCell"):
        run(regulariser, grid.inputs(grid.T), engine=rnnjax.Fused())


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_vmap_draws_for_each_sequence_by_its_key(name):
    regulariser, xs, keys = RANDOM[name](0.4), grid.inputs(grid.B, grid.T), jax.random.split(KEY, grid.B)
    together = jax.vmap(lambda xs, key: run(regulariser, xs, key))(xs, keys)
    apart = [compiled(regulariser, one, key) for one, key in zip(xs, keys, strict=True)]
    grid.assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_remat_draws_the_same_again(name):
    regulariser, xs = RANDOM[name](0.4), grid.inputs(grid.T)
    loss = lambda xs: grid.contract(run(regulariser, xs))  # noqa: E731
    grid.assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(xs), jax.jit(jax.grad(loss))(xs))


@pytest.mark.parametrize("name", ["all_three", *IN_THE_STEP])
def test_reverse_with_a_length_is_the_flipped_run(name):
    regulariser, xs, length = RANDOM[name](0.4), grid.inputs(grid.T), 8
    padded = xs.at[length:].set(jnp.nan)
    last, ys = compiled(regulariser, padded, length=length, reverse=True)
    flipped_last, flipped = compiled(regulariser, jnp.concatenate([xs[:length][::-1], xs[length:]]), length=length)
    grid.assert_close((last, ys[:length]), (flipped_last, flipped[:length][::-1]))
    assert not np.asarray(ys[length:]).any()


@pytest.mark.parametrize("name", ["all_three", *IN_THE_STEP])
def test_what_comes_before_a_reset_ends_there(name):
    regulariser, xs, resets = RANDOM[name](0.4), grid.inputs(grid.T), jnp.arange(grid.T) == 6
    spoiled = xs.at[4].set(jnp.nan)

    @eqx.filter_jit
    def after(regulariser, xs):
        last, ys = run(regulariser, xs, resets=resets)
        return grid.contract((last, ys[6:])), ys

    (value, ys), gradient = eqx.filter_value_and_grad(after, has_aux=True)(regulariser, spoiled)
    (expected, _), expected_gradient = eqx.filter_value_and_grad(after, has_aux=True)(regulariser, xs.at[4].set(0.0))
    assert np.isnan(ys[4:6]).any(1).all()
    assert np.isfinite(ys[:4]).all()
    grid.assert_close((value, gradient), (expected, expected_gradient))


def test_noise_is_added_to_the_state(drawn):
    xs = grid.inputs(grid.T)
    last, _ = run(rnnjax.NoisyStates(LSTM, 0.3), xs)
    (noise,) = drawn
    assert not (noise.h == noise.c).any()
    state = LSTM.initial()
    for t, u in enumerate(LSTM.project(xs)):
        state = jax.tree.map(lambda after, noise, t=t: after + noise[t], LSTM.step(state, u), noise)
    grid.assert_close(last, state)


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("around", [rnnjax.Zoneout, rnnjax.NoisyStates])
def test_a_counter_counts_on(around, key):
    (steps, _), ys = run(around(grid.Counted(GRU), 0.4), grid.inputs(grid.T), key)
    assert steps == grid.T
    if key is None:
        grid.assert_close(ys, run(around(GRU, 0.4), grid.inputs(grid.T), None)[1])


@pytest.mark.parametrize(
    "around",
    [
        lambda cell, rate: rnnjax.VariationalDropout(cell, inputs=rate, recurrent=rate, outputs=rate),
        rnnjax.RecurrentDropout,
        rnnjax.Zoneout,
        rnnjax.NoisyStates,
        lambda cell, rate: rnnjax.drop_weights(cell, rate, key=KEY),
        lambda cell, rate: rnnjax.add_noise(cell, rate, key=KEY),
    ],
)
def test_numbers_of_numpy_widen_nothing(around):
    regulariser = around(grid.build("gru", "float16"), np.float64(0.4))
    for key in (KEY, None):
        last, ys = run(regulariser, grid.inputs(grid.T, dtype="float16"), key)
        assert (last.h.dtype, ys.dtype) == ("float32", "float16")


def test_networks_of_regularised_parts():
    layer = lambda inputs: rnnjax.Zoneout(rnnjax.GRU(inputs, 4, key=KEY), 0.2)  # noqa: E731
    network = rnnjax.Stack(
        [rnnjax.Bidirectional(layer(grid.I), layer(grid.I)), rnnjax.VariationalDropout(layer(8), inputs=0.3)]
    )
    xs = grid.inputs(grid.T, dtype="float32")
    assert run(network, xs)[1].shape == (grid.T, 4)
    assert not np.allclose(run(network, xs)[1], run(network, xs, None)[1])


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_dropped_weights_run_under_every_engine(engine):
    dropped = rnnjax.drop_weights(LSTM, 0.5, key=KEY)
    ratio = np.unique(np.round(dropped.recurrent_weight / LSTM.recurrent_weight, 12))
    np.testing.assert_array_equal(ratio, [0.0, 2.0])
    xs = grid.inputs(grid.T)
    state = LSTM.initial()
    for u in LSTM.project(xs):
        state = LSTM.pointwise(None, u, recur(dropped.recurrent_weight, state.h), state)
    grid.assert_close(rnnjax.unroll(dropped, None, xs, engine=grid.ENGINES[engine])[0], state)


def test_dropped_weights_of_a_model():
    model = {"network": grid.build("stack_of_bidirectional"), "other": jnp.ones(3)}
    dropped = rnnjax.drop_weights(model, 0.5, key=KEY)
    cells = lambda model: [  # noqa: E731
        cell
        for cell in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, rnnjax.AbstractGatedCell))
        if isinstance(cell, rnnjax.AbstractGatedCell)
    ]
    masks = [one.recurrent_weight == 0 for one in cells(dropped)]
    assert len(masks) == 3
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    assert not (masks[1] == masks[2]).all()
    np.testing.assert_array_equal(dropped["other"], model["other"])
    same = rnnjax.drop_weights(model, 0.0, key=KEY)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(model), strict=True))
    gradient = jax.grad(
        lambda weight: rnnjax.drop_weights(
            eqx.tree_at(lambda cell: cell.recurrent_weight, LSTM, weight), 0.5, key=KEY
        ).recurrent_weight.sum()
    )(LSTM.recurrent_weight)
    np.testing.assert_array_equal(np.unique(gradient), [0.0, 2.0])


def test_dropped_embedding_drops_words():
    dropped = rnnjax.drop_embedding(jnp.ones((4000, 5)), 0.25, key=KEY)
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1], dropped.shape))
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=3 * np.sqrt(0.25 / 0.75 / 4000))


def test_noise_has_its_deviation():
    noisy = rnnjax.add_noise({"weight": jnp.ones(20000), "count": jnp.arange(3)}, 0.5, key=KEY)
    np.testing.assert_allclose(noisy["weight"].mean(), 1.0, atol=0.02)
    np.testing.assert_allclose(noisy["weight"].std(), 0.5, atol=0.02)
    np.testing.assert_array_equal(noisy["count"], jnp.arange(3))


def test_penalties_are_their_formulas():
    model = {"weight": jnp.asarray([[1.0, -2.0], [3.0, 0.0]]), "count": jnp.arange(9), "bias": jnp.asarray([-1.0])}
    assert rnnjax.l1_penalty(model) == 7.0
    assert rnnjax.l2_penalty(model) == 15.0
    assert rnnjax.l1_penalty({}) == 0.0
    ys = jnp.asarray([[1.0, 0.0], [3.0, 2.0], [0.0, 0.0], [jnp.nan, jnp.nan]])
    assert rnnjax.activation_penalty(ys[:3]) == 14 / 6
    assert rnnjax.activation_penalty(ys, length=2) == 14 / 4
    assert rnnjax.temporal_activation_penalty(ys[:3]) == (8 + 13) / 4
    assert rnnjax.temporal_activation_penalty(ys, length=2) == 8 / 2
    assert rnnjax.temporal_activation_penalty(ys, length=1) == 0.0
    assert rnnjax.activation_penalty(ys, length=0) == 0.0
    gradient = jax.grad(lambda ys: rnnjax.activation_penalty(ys, length=2))(ys)
    np.testing.assert_array_equal(gradient, [[0.5, 0.0], [1.5, 1.0], [0.0, 0.0], [0.0, 0.0]])
    gradient = jax.grad(lambda ys: rnnjax.temporal_activation_penalty(ys, length=2))(ys)
    np.testing.assert_array_equal(gradient, [[-2.0, -2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_penalties_of_sixteen_bits_are_summed_in_thirty_two(dtype):
    values = jnp.full((3000, 2), 300, dtype).at[1::2].set(-300)
    value = float(values[0, 0])
    for penalty, expected in {
        rnnjax.l1_penalty: 6000 * value,
        rnnjax.l2_penalty: 6000 * value**2,
        rnnjax.activation_penalty: value**2,
        rnnjax.temporal_activation_penalty: 4 * value**2,
    }.items():
        got = penalty(values)
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert jnp.isfinite(jax.grad(lambda values, penalty=penalty: penalty(values) / 6000)(values)).all()


class OwnStep(rnnjax.GRU):
    """A GRU that does something else with R h."""

    def step(self, state, u):
        return rnnjax.Hidden(state.h + super().step(state, u).h)


class OwnPointwise(rnnjax.GRU):
    """A GRU that does something else with what it wrote."""

    def pointwise(self, gains, u, v, state):
        return rnnjax.Hidden(-super().pointwise(gains, u, v, state).h)


BAD = {
    "VariationalDropout(OWN_STEP, recurrent=0.1)": "part: expected the step of AbstractGatedCell.*got OwnStep",
    "RecurrentDropout(OWN_STEP, 0.1)": "part: expected the step of AbstractGatedCell.*got OwnStep",
    "RecurrentDropout(OWN_POINTWISE, 0.1)": "part: expected the pointwise of AbstractCandidateCell.*got OwnPointwise",
    "RecurrentDropout(LSTM, '0.1')": "rate: expected the probability of dropping.*a Python number.*got '0.1'",
    "RecurrentDropout(LSTM, True)": "rate: expected the probability of dropping.*got True",
    "NoisyStates(LSTM, jax.numpy.ones(3))": "deviation: expected a standard deviation, a Python number",
    "jax.jit(lambda rate: rnnjax.drop_weights(LSTM, rate, key=KEY))(0.5)": "rate: expected .* known before tracing",
    "unroll(rnnjax.VariationalDropout(WORDS, inputs=0.5), None, INDICES, key=KEY)": "inputs: expected .* got int",
    "drop_embedding(jax.numpy.ones((3, 2, 2)), 0.5, key=KEY)": r"embedding: expected floating vectors \[V, E\]",
    "drop_embedding(INDICES, 0.5, key=KEY)": "embedding: expected floating vectors",
    "Zoneout(LSTM, rnnjax.LSTMState(h=0.1, c=1.0))": r"rates\.c: expected the probability of keeping",
    "VariationalDropout(LSTM, inputs=1.0)": "inputs: expected the probability of dropping.*from 0 up to",
    "VariationalDropout(LSTM, recurrent=-0.1)": "recurrent: expected the probability",
    "VariationalDropout(LRU, recurrent=0.1)": "part: expected an AbstractGatedCell.*got LRU",
    "VariationalDropout(len, inputs=0.1)": "part: expected a cell or a network, got len",
    "RecurrentDropout(LRU, 0.1)": "part: expected an AbstractCandidateCell, such as LSTM or GRU, got LRU",
    "RecurrentDropout(LSTM, float('nan'))": "rate: expected the probability",
    "Zoneout(LSTM, (0.1, 0.2, 0.3))": "rates: expected one probability, or one for each of",
    "Zoneout(LSTM, 1)": "rates: expected the probability of keeping",
    "Zoneout(STACK, 0.1)": "part: expected a cell, got Stack",
    "NoisyStates(LSTM, -1.0)": "deviation: expected a standard deviation",
    "add_noise(LSTM, float('nan'), key=KEY)": "deviation: expected",
    "drop_weights(LRU, 0.5, key=KEY)": "model: expected an AbstractGatedCell in it",
    "drop_weights(LSTM, 1.5, key=KEY)": "rate: expected the probability",
    "drop_embedding(jax.numpy.ones((3, 2)), 1.0, key=KEY)": "rate: expected the probability",
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    words = rnnjax.TimeDistributed(rnnjax.linear, 1, dtype="int32")
    names = {"LSTM": LSTM, "LRU": grid.build("lru"), "STACK": grid.build("stack"), "KEY": KEY, "jax": jax}
    names |= {"OWN_STEP": OwnStep(3, 4, key=KEY), "OWN_POINTWISE": OwnPointwise(3, 4, key=KEY)}
    names |= {"WORDS": words, "INDICES": jnp.zeros((5, 1), "int32")}
    with pytest.raises((ValueError, TypeError), match=BAD[call]):
        eval(call if call.startswith("jax.") else f"rnnjax.{call}", {"rnnjax": rnnjax, **names})
