"""Regularisers: what is dropped, when, and under which key; the masks are read off and the steps redone by hand."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.regularise.steps import masked

T, H = grid.T, grid.H
RATE = 0.4
RANDOM = {  # built at the rate given
    "inputs": lambda rate: rnnjax.regularise.VariationalDropout(grid.build("lstm"), inputs=rate),
    "recurrent": lambda rate: rnnjax.regularise.VariationalDropout(grid.build("gru"), recurrent=rate),
    "outputs": lambda rate: rnnjax.regularise.VariationalDropout(grid.build("stack_of_bidirectional"), outputs=rate),
    "all_three": lambda rate: rnnjax.regularise.VariationalDropout(
        grid.build("gru"), inputs=rate, recurrent=rate, outputs=rate
    ),
    "recurrent_dropout": lambda rate: rnnjax.regularise.RecurrentDropout(grid.build("gru"), rate),
    "recurrent_dropout_lstm": lambda rate: rnnjax.regularise.RecurrentDropout(grid.build("lstm"), rate),
    "zoneout": lambda rate: rnnjax.regularise.Zoneout(grid.build("elman"), rate),
    "zoneout_lstm": lambda rate: rnnjax.regularise.Zoneout(
        grid.build("lstm"), rnnjax.cells.LSTMState(h=rate, c=rate / 2)
    ),
    "zoneout_linear": lambda rate: rnnjax.regularise.Zoneout(grid.build("lru"), rate),
    "noise": lambda rate: rnnjax.regularise.NoisyStates(grid.build("elman"), rate),
    "noise_lstm": lambda rate: rnnjax.regularise.NoisyStates(grid.build("lstm"), rate),
}
IN_THE_STEP = ("recurrent", "recurrent_dropout", "zoneout", "noise")
ENGINES = {"scan": rnnjax.Scan(), "checkpointed": rnnjax.Checkpointed(segment=5), "newton": rnnjax.Newton()}


@grid.once
def key(seed: int = 3) -> jax.Array:
    """A key as users have it, where it matters how what is drawn is distributed."""
    return jax.random.key(seed)


@grid.once
def plain_key(seed: int = 3) -> jax.Array:
    """A key of a generator that hashes a counter: a tenth of a second less to compile at each draw."""
    return jax.random.key(seed, impl=_plain_generator())


@lru_cache
def _plain_generator() -> Any:
    odd = np.uint32(0x9E3779B9)

    def scramble(x: jax.Array) -> jax.Array:
        x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
        x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
        return x ^ x >> np.uint32(16)

    def count(shape: Any) -> jax.Array:
        return jnp.arange(np.prod(shape, dtype=int), dtype="uint32").reshape(shape) * odd

    def random_bits(key: jax.Array, width: int, shape: Any) -> jax.Array:
        low = scramble(count(shape) + key[0])
        wide = scramble(low + odd).astype("uint64") << np.uint64(32) | low.astype("uint64")
        return wide.astype(f"uint{width}")

    return jax.extend.random.define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: scramble(seed.astype("uint32"))[None],
        split=lambda key, shape: scramble(count((*shape, 1)) + scramble(key)),
        random_bits=random_bits,
        fold_in=lambda key, data: scramble(scramble(key) + data.astype("uint32") * odd),
        name="plain",
        tag="plain",
    )


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def run(part: Any, xs: Any, key: Any, **options: Any) -> Any:
    return rnnjax.unroll(part, None, xs, key=key, **{"engine": rnnjax.Scan(), **options})


class Run(NamedTuple):
    """What a regulariser does: its last state and outputs, and the masks over time that its steps were given."""

    last: Any
    ys: Any
    masks: list[Any]


def watched(regulariser: Any, xs: Any, key: Any, **options: Any) -> Run:
    seen, unroll = [], masked.unroll

    def spy(cell, state, xs, **options):
        seen.append(xs[1])
        return unroll(cell, state, xs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked, "unroll", spy)
        return Run(*run(regulariser, xs, key, **options), seen)


@lru_cache
def forward() -> Any:
    return eqx.filter_jit(watched)


def observe(name: str, seed: int = 3, xs: Any = None, **marks: Any) -> Run:
    """What a regulariser does at the rate of 0.4, as a compiled program that serves all keys, inputs and marks."""
    xs = grid.inputs(T) if xs is None else xs
    return jax.tree.map(np.asarray, forward()(RANDOM[name](RATE), xs, plain_key(seed), **marks))


class Slope(NamedTuple):
    """Value and gradient of a loss on the last state and on the outputs from some step on, and these outputs."""

    value: Any
    gradient: Any
    last: Any
    ys: Any


@lru_cache
def backward(engine: str, remat: bool) -> Any:
    @eqx.filter_jit
    def compiled(regulariser: Any, xs: Any, key: Any, resets: Any, first: Any) -> Slope:
        weights, static = eqx.partition((regulariser, xs), eqx.is_inexact_array)

        def loss(weights: Any) -> Any:
            regulariser, xs = eqx.combine(weights, static)
            last, ys = run(regulariser, xs, key, resets=resets, engine=ENGINES[engine])
            counted = jnp.where(jnp.arange(T)[:, None] >= first, ys, jnp.zeros_like(ys))
            return grid.contract((last, counted)), (last, ys)

        loss = jax.checkpoint(loss) if remat else loss
        (value, made), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return Slope(value, gradient, *made)

    return compiled


def differentiate(
    name: str, engine: str = "scan", remat: bool = False, xs: Any = None, resets: Any = None, first: int = 0
) -> Slope:
    """The same as `observe`, and the gradient by the weights and the inputs."""
    xs = grid.inputs(T) if xs is None else xs
    slope = backward(engine, remat)(RANDOM[name](RATE), xs, plain_key(), resets, np.asarray(first))
    return jax.tree.map(np.asarray, slope)


class Still(NamedTuple):
    """Last states and outputs where nothing is dropped: without a key, at a rate of zero, of the part itself."""

    keyless: Any
    at_zero: Any
    at_zero_keyless: Any
    part: Any


@lru_cache
def still(name: str) -> Still:
    @eqx.filter_jit
    def compiled(regulariser: Any, idle: Any, xs: Any, key: Any) -> Still:
        parts = (regulariser, None), (idle, key), (idle, None), (idle.layer, None)
        return Still(*(run(part, xs, key) for part, key in parts))

    return jax.tree.map(np.asarray, compiled(RANDOM[name](RATE), RANDOM[name](0.0), grid.inputs(T), plain_key()))


QUICK = ("all_three", "zoneout")  # one that is its part where it has no key, and one that is not
EVERY = [*QUICK, *slow(*(name for name in RANDOM if name not in QUICK))]


@pytest.mark.parametrize("name", EVERY)
def test_rate_zero_changes_nothing(name):
    _, keyed, keyless, expected = still(name)
    for got in (keyed, keyless):
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", EVERY)
def test_the_key_says_all(name):
    once = observe(name).ys
    np.testing.assert_array_equal(once, observe(name).ys)
    assert not np.allclose(once, observe(name, seed=4).ys)
    assert not np.allclose(once, still(name).keyless[1])


def test_variational_masks_are_shared_over_time():
    nothing, ones = rnnjax.TimeDistributed(rnnjax.cells.linear, grid.I, dtype="float64"), np.ones((5, grid.I))

    @jax.jit
    def many(key: Any) -> Any:
        """Outputs of 2,000 draws where inputs are dropped, and where outputs are."""
        around = [rnnjax.regularise.VariationalDropout(nothing, **{place: 0.5}) for place in ("inputs", "outputs")]
        return [jax.vmap(lambda key: run(one, ones, key)[1])(jax.random.split(key, 2000)) for one in around]  # noqa: B023

    for ys in map(np.asarray, many(key())):
        assert set(np.unique(ys)) == {0.0, 2.0}
        np.testing.assert_array_equal(ys, np.broadcast_to(ys[:, :1], ys.shape))
        np.testing.assert_allclose(ys[:, 0].mean(0), 1.0, atol=3 / np.sqrt(2000))


# The steps by hand


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def project(cell: Any) -> np.ndarray:
    us = np.asarray(grid.inputs(T)) @ np.asarray(cell.input_weight)
    return (us if cell.bias is None else us + np.asarray(cell.bias)).reshape(T, len(cell.gates), H)


def recur(weight: Any, h: np.ndarray) -> np.ndarray:
    return (h @ np.asarray(weight)).reshape(-1, H)


def lstm_by_hand(cell: Any, u: np.ndarray, state: Any, kept: Any = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The state after a step, of whose candidate only a share is kept."""
    i, f, g, o = u + recur(cell.recurrent_weight, state[0])
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g) * kept
    return sigmoid(o) * np.tanh(c), c


def gru_by_hand(u: np.ndarray, v: np.ndarray, h: np.ndarray, kept: Any = 1.0) -> np.ndarray:
    r, z = sigmoid(u[:2] + v[:2])
    return z * h + (1 - z) * np.tanh(u[2] + r * v[2]) * kept


def test_the_recurrent_mask_is_shared_over_time_and_on_what_recurs_alone():
    gru, (_, ys, (masks,)) = grid.build("gru"), observe("recurrent", seed=5)
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[0], masks.shape))
    assert 0 < masks[0].sum() < H
    h = np.asarray(gru.initial_state.h)
    for u, y in zip(project(gru), ys, strict=True):
        h = gru_by_hand(u, recur(gru.recurrent_weight, h * masks[0] / (1 - RATE)), h)
        np.testing.assert_allclose(h, y, atol=1e-12)


def test_recurrent_dropout_is_fresh_and_on_what_is_written_alone():
    lstm, (last, ys, (masks,)) = grid.build("lstm"), observe("recurrent_dropout_lstm")
    assert not (masks == masks[0]).all()
    state = np.zeros((2, H))
    for u, mask, y in zip(project(lstm), masks, ys, strict=True):
        state = lstm_by_hand(lstm, u, state, mask / (1 - RATE))
        np.testing.assert_allclose(state[0], y, atol=1e-12)
    np.testing.assert_allclose(last, state, atol=1e-12)


def test_recurrent_dropout_of_a_gru_keeps_what_is_kept():
    gru, (_, ys, (masks,)) = grid.build("gru"), observe("recurrent_dropout")
    assert not (masks == masks[0]).all()
    h = np.asarray(gru.initial_state.h)
    for u, mask, y in zip(project(gru), masks, ys, strict=True):
        h = gru_by_hand(u, recur(gru.recurrent_weight, h), h, mask / (1 - RATE))
        np.testing.assert_allclose(h, y, atol=1e-12)


def test_zoneout_keeps_the_unit_as_it_was():
    lstm, (last, _, (masks,)) = grid.build("lstm"), observe("zoneout_lstm")
    assert not (masks.c == masks.c[0]).all()
    assert not (masks.c == masks.h).all()
    state = np.zeros((2, H))
    for t, u in enumerate(project(lstm)):
        state = np.where([masks.h[t], masks.c[t]], state, lstm_by_hand(lstm, u, state))
    np.testing.assert_allclose(last, state, atol=1e-12)


def test_noise_is_added_to_the_state():
    lstm, (last, _, (noise,)) = grid.build("lstm"), observe("noise_lstm")
    assert not (noise.h == noise.c).any()
    state = np.zeros((2, H))
    for t, u in enumerate(project(lstm)):
        state = np.add(lstm_by_hand(lstm, u, state), [noise.h[t], noise.c[t]])
    np.testing.assert_allclose(last, state, rtol=0, atol=1e-11)


def test_zoneout_rates_are_probabilities_of_keeping(monkeypatch):
    def no_steps(cell, state, xs, **options):
        del cell, options
        return state, xs[1]

    monkeypatch.setattr(masked, "unroll", no_steps)
    zoneout = rnnjax.regularise.Zoneout(grid.build("lstm"), rnnjax.cells.LSTMState(h=0.1, c=0.7))
    masks = jax.tree.map(np.asarray, jax.jit(lambda xs, key: run(zoneout, xs, key)[1])(grid.inputs(5000), key()))
    error = 3 * 0.5 / np.sqrt(masks.h.size)
    np.testing.assert_allclose(masks.h.mean(), 0.1, atol=error)
    np.testing.assert_allclose(masks.c.mean(), 0.7, atol=error)


@pytest.mark.parametrize("name", ["zoneout", *slow("recurrent_dropout_lstm", "noise")])
def test_evaluation_is_the_mean_of_one_step(name):
    """Of an LSTM, whose c is linear in every mask, as its h is not, the c."""
    regulariser = RANDOM[name](0.3)
    state, linear = grid.random_state(regulariser), "c" if name == "recurrent_dropout_lstm" else "h"

    @jax.jit
    def draws_and_mean(state: Any, x: Any, key: Any) -> Any:
        one = lambda key: getattr(  # noqa: E731
            rnnjax.unroll(regulariser, state, x, key=key, engine=rnnjax.Scan())[0], linear
        )
        return jax.vmap(one)(jax.random.split(key, 4000)), one(None)

    draws, mean = map(np.asarray, draws_and_mean(state, grid.inputs(1), key()))
    assert (draws.std(0) > 0).any()
    np.testing.assert_array_less(abs(draws.mean(0) - mean), 4 * draws.std(0) / np.sqrt(4000) + 1e-12)


# How they are run

PAIRS = [(name, engine) for name in IN_THE_STEP for engine in ("checkpointed", "newton")]
QUICK_PAIR = ("zoneout", "checkpointed")
SLOW_PAIRS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS if pair != QUICK_PAIR]


@pytest.mark.parametrize(("name", "engine"), [QUICK_PAIR, *SLOW_PAIRS])
def test_every_engine_gives_the_same_numbers(name, engine):
    grid.assert_close(differentiate(name, engine), differentiate(name))


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_fused_refuses_what_it_cannot_trace(name):
    regulariser = RANDOM[name](RATE)
    with pytest.raises(ValueError, match=f"{type(regulariser).__name__} of .*AbstractGatedCell"):
        eqx.filter_eval_shape(run, regulariser, grid.inputs(T), key(), engine=rnnjax.Fused())


@pytest.mark.parametrize("name", ["recurrent_dropout", *slow("recurrent", "zoneout", "noise")])
def test_vmap_draws_for_each_sequence_by_its_key(name):
    regulariser, xs, seeds = RANDOM[name](RATE), grid.inputs(grid.B, T), range(grid.B)
    keys = [plain_key(seed) for seed in seeds]
    together = jax.jit(lambda xs, keys: jax.vmap(lambda xs, key: run(regulariser, xs, key))(xs, jnp.stack(keys)))(
        xs, keys
    )
    apart = [observe(name, seed=seed, xs=one)[:2] for seed, one in zip(seeds, np.asarray(xs), strict=True)]
    grid.assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *apart))


@pytest.mark.parametrize("name", ["zoneout", *slow("recurrent", "recurrent_dropout", "noise")])
def test_remat_draws_the_same_again(name):
    grid.assert_close(differentiate(name, remat=True), differentiate(name))


@pytest.mark.parametrize("name", ["recurrent_dropout", *slow("all_three", "recurrent", "zoneout", "noise")])
def test_reverse_with_a_length_is_the_flipped_run(name):
    xs, length = np.asarray(grid.inputs(T)), 8
    padded = np.where(np.arange(T)[:, None] < length, xs, np.nan)
    reverse = eqx.filter_jit(
        lambda regulariser, xs, key, length: run(regulariser, xs, key, length=length, reverse=True)
    )
    last, ys = reverse(RANDOM[name](RATE), padded, plain_key(), np.asarray(length))
    flipped = observe(name, xs=np.concatenate([xs[:length][::-1], xs[length:]]), length=np.asarray(length))
    ys = np.asarray(ys)
    grid.assert_close((last, ys[:length]), (flipped.last, flipped.ys[:length][::-1]))
    assert not ys[length:].any()


@pytest.mark.parametrize("name", ["zoneout", *slow("all_three", "recurrent", "recurrent_dropout", "noise")])
def test_what_comes_before_a_reset_ends_there(name):
    xs, at_four = np.asarray(grid.inputs(T)), np.arange(T)[:, None] == 4
    spoiled, harmless = (np.where(at_four, value, xs) for value in (np.nan, 0.0))
    resets = np.arange(T) == 6
    got, expected = (differentiate(name, xs=xs, resets=resets, first=6) for xs in (spoiled, harmless))
    assert np.isnan(got.ys[4:6]).any(1).all()
    assert np.isfinite(got.ys[:4]).all()
    grid.assert_close(got._replace(ys=got.ys[6:]), expected._replace(ys=expected.ys[6:]))


@pytest.mark.parametrize("around", [rnnjax.regularise.Zoneout, rnnjax.regularise.NoisyStates])
def test_a_counter_counts_on(around):
    """And evaluation is not disturbed by it: of `Zoneout` the mean of both states, of noise the part itself."""
    gru = grid.build("gru")
    counted = around(grid.Counted(gru), RATE)
    keyed, (last, ys) = jax.jit(lambda xs, key: (run(counted, xs, key)[0], run(counted, xs, None)))(
        grid.inputs(T), plain_key()
    )
    assert (keyed[0], last[0]) == (T, T)
    h, kept = np.asarray(gru.initial_state.h), RATE if around is rnnjax.regularise.Zoneout else 0.0
    for u, y in zip(project(gru), ys, strict=True):
        h = kept * h + (1 - kept) * gru_by_hand(u, recur(gru.recurrent_weight, h), h)
        np.testing.assert_allclose(h, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "around",
    [
        lambda cell, rate: rnnjax.regularise.VariationalDropout(cell, inputs=rate, recurrent=rate, outputs=rate),
        rnnjax.regularise.RecurrentDropout,
        rnnjax.regularise.Zoneout,
        rnnjax.regularise.NoisyStates,
        lambda cell, rate: rnnjax.regularise.drop_weights(cell, rate, key=key()),
        lambda cell, rate: rnnjax.regularise.add_noise(cell, rate, key=key()),
    ],
)
def test_numbers_of_numpy_widen_nothing(around):
    gru = grid.build("gru", "float16")
    made = lambda xs, key: run(around(gru, np.float64(RATE)), xs, key)  # noqa: E731
    for given in (key(), None):
        last, ys = eqx.filter_eval_shape(made, grid.inputs(T, dtype="float16"), given)
        assert (last.h.dtype, ys.dtype) == ("float32", "float16")


def test_networks_of_regularised_parts():
    layer = lambda inputs: rnnjax.regularise.Zoneout(rnnjax.Elman(inputs, 4, key=key()), 0.2)  # noqa: E731
    both_ways = rnnjax.Bidirectional(layer(grid.I), rnnjax.regularise.VariationalDropout(layer(grid.I), inputs=0.3))
    network = rnnjax.Stack(
        [both_ways, rnnjax.regularise.VariationalDropout(rnnjax.TimeDistributed(rnnjax.cells.linear, 8), outputs=0.3)]
    )
    both = jax.jit(lambda xs, key: [run(network, xs, key)[1] for key in (key, None)])
    keyed, keyless = both(grid.inputs(T, dtype="float32"), plain_key())
    assert keyed.shape == keyless.shape == (T, 8)
    assert not np.allclose(keyed, keyless)


# Zoneout of a QRNN, whose pooling has a mask of its own


def qrnn(rate: float, input_gate: bool = False) -> Any:
    """One whose outputs are its c, so that a mask can be read off them."""
    options = {"zoneout": rate, "input_gate": input_gate, "output_gate": False, "learn_initial": True}
    made = rnnjax.QRNN(grid.I, H, key=grid.KEY, dtype=jnp.dtype("float64"), **options)
    return eqx.tree_at(lambda made: made.initial_state.h, made, grid.place(np.linspace(-1, 1, H)))


def qrnn_by_hand(part: Any, xs: Any, c: Any, updated: Any) -> np.ndarray:
    """c over time, of a window of two steps, where it is updated."""
    W, before = np.asarray(part.input_weight), np.concatenate([np.zeros((1, grid.I)), xs[:-1]])
    over_time = []
    for x, past, change in zip(xs, before, updated, strict=True):
        u = dict(zip(part.gates, (x @ W[0] + past @ W[1]).reshape(-1, H), strict=True))
        f = sigmoid(u["f"])
        write = sigmoid(u["i"]) if "i" in u else 1 - f
        c = np.where(change, f * c + write * np.tanh(u["g"]), c)
        over_time.append(c)
    return np.stack(over_time)


def changed(ys: Any, start: Any) -> np.ndarray:
    """Where c is another one than at the step before."""
    return np.diff(np.concatenate([np.asarray(start)[None], ys]), axis=0) != 0


@pytest.mark.parametrize("input_gate", [False, True])
def test_zoneout_of_a_qrnn_keeps_its_memory(input_gate):
    part, idle, steps = qrnn(RATE, input_gate), qrnn(0.0, input_gate), 40
    xs = np.random.default_rng(5).normal(size=(steps, grid.I))

    @jax.jit
    def compiled(xs: Any, *keys: Any) -> Any:
        options = {"engine": rnnjax.Associative()}
        drawn = [run(part, xs, key) for key in keys]
        return drawn, run(part, xs, keys[0], **options), [run(part, xs, None), run(idle, xs, keys[0])]

    drawn, associative, still = jax.tree.map(np.asarray, compiled(xs, plain_key(), plain_key(), plain_key(4)))
    start = np.asarray(part.initial_state.h)
    (last, ys), again, (_, other) = drawn
    updated = changed(ys, start)
    np.testing.assert_allclose(ys, qrnn_by_hand(part, xs, start, updated), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(last.c, ys[-1])
    np.testing.assert_allclose(updated.mean(), 1 - RATE, atol=4 * np.sqrt(RATE * (1 - RATE) / updated.size))
    assert not (updated == updated[0]).all()
    assert not (updated == changed(other, start)).all()
    jax.tree.map(np.testing.assert_array_equal, (last, ys), again)
    grid.assert_close(associative, (last, ys))
    jax.tree.map(np.testing.assert_array_equal, *still)
    assert changed(still[0][1], start).all()


def test_zoneout_of_a_qrnn_obeys_the_marks():
    """In reverse with a length and NaN in padding; behind a reset; in chunks, each with a key; in a batch of keys."""
    part, length, clean = qrnn(RATE), 8, np.asarray(grid.inputs(T))
    start, padding, at = np.asarray(part.initial_state.h), np.arange(T)[:, None] >= length, np.arange(T)
    flipped = np.concatenate([clean[:length][::-1], clean[length:]])

    @jax.jit
    def compiled(clean: Any, flipped: Any, padded: Any, spoiled: Any, *keys: Any) -> Any:
        first = rnnjax.unroll(part, None, clean[:5], key=keys[0])
        second = rnnjax.unroll(part, first[0], clean[5:], key=keys[1])
        resets = {"resets": at == 6}
        return {
            "reverse": [run(part, padded, keys[0], length=length, reverse=True)],
            "flipped": [run(part, flipped, keys[0], length=length)],
            "reset": [jax.grad(partial(loss, keys[0], resets))(xs) for xs in (clean, spoiled)],
            "spoiled": [run(part, spoiled, keys[0], **resets)[1]],
            "chunks": [first[1], second[1]],
            "batch": [jax.vmap(lambda key: run(part, clean, key)[1])(jnp.stack(keys))],
            "apart": [jnp.stack([run(part, clean, key)[1] for key in keys])],
        }

    def loss(key: Any, resets: Any, xs: Any) -> Any:
        last, ys = run(part, xs, key, **resets)
        return grid.contract((last, ys[6:]))

    padded, spoiled = np.where(padding, np.nan, clean), np.where(at[:, None] == 3, np.nan, clean)
    made = jax.tree.map(np.asarray, compiled(clean, flipped, padded, spoiled, plain_key(), plain_key(4)))
    ((last, ys),), ((flipped_last, flipped_ys),) = made["reverse"], made["flipped"]
    grid.assert_close((last, ys[:length], ys[length:]), (flipped_last, flipped_ys[:length][::-1], 0 * ys[length:]))
    assert 0 < changed(flipped_ys[:length], start).mean() < 1
    grid.assert_close(*made["reset"])
    assert np.isnan(made["spoiled"][0][3:6]).any(1).all()
    assert np.isfinite(made["spoiled"][0][6:]).all()
    chunks = np.concatenate(made["chunks"])
    grid.assert_close(chunks, qrnn_by_hand(part, clean, start, changed(chunks, start)))
    grid.assert_close(made["batch"], made["apart"])
    assert not np.allclose(*made["batch"][0])


# Weights


def test_dropped_weights_run_under_every_engine():
    lstm, engines = grid.build("lstm"), ("scan", "fused")

    @jax.jit
    def drop_and_run(xs: Any, key: Any) -> Any:
        dropped = rnnjax.regularise.drop_weights(lstm, 0.5, key=key)
        return dropped.recurrent_weight, [run(dropped, xs, None, engine=grid.ENGINES[name])[0] for name in engines]

    weight, states = drop_and_run(grid.inputs(T), plain_key())
    ratio = np.unique(np.round(np.asarray(weight) / np.asarray(lstm.recurrent_weight), 12))
    np.testing.assert_array_equal(ratio, [0.0, 2.0])
    expected, dropped = np.zeros((2, H)), eqx.tree_at(lambda cell: cell.recurrent_weight, lstm, weight)
    for u in project(lstm):
        expected = lstm_by_hand(dropped, u, expected)
    for state, engine in zip(states, engines, strict=True):
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-11, err_msg=engine)


def test_dropped_weights_of_a_model():
    lstm = grid.build("lstm")
    model = {"network": grid.build("stack_of_bidirectional"), "other": grid.place(np.ones(3))}

    @jax.jit
    def drop(model: Any, weight: Any, key: Any) -> Any:
        one = lambda weight: rnnjax.regularise.drop_weights(  # noqa: E731
            eqx.tree_at(lambda cell: cell.recurrent_weight, lstm, weight), 0.5, key=key
        ).recurrent_weight.sum()
        return *(rnnjax.regularise.drop_weights(model, rate, key=key) for rate in (0.5, 0.0)), jax.grad(one)(weight)

    dropped, same, gradient = jax.tree.map(np.asarray, drop(model, lstm.recurrent_weight, plain_key()))
    cells = [
        cell
        for cell in jax.tree.leaves(dropped, is_leaf=lambda node: isinstance(node, rnnjax.AbstractGatedCell))
        if isinstance(cell, rnnjax.AbstractGatedCell)
    ]
    masks = [cell.recurrent_weight == 0 for cell in cells]
    assert len(masks) == 3
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    assert not (masks[1] == masks[2]).all()
    np.testing.assert_array_equal(dropped["other"], model["other"])
    jax.tree.map(np.testing.assert_array_equal, same, model)
    np.testing.assert_array_equal(np.unique(gradient), [0.0, 2.0])


def test_dropped_embedding_drops_words():
    drop = jax.jit(lambda embedding, key: rnnjax.regularise.drop_embedding(embedding, 0.25, key=key))
    dropped = np.asarray(drop(np.ones((4000, 5)), key()))
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=3 * np.sqrt(0.25 / 0.75 / 4000))


def test_noise_has_its_deviation():
    add = jax.jit(lambda tree, key: rnnjax.regularise.add_noise(tree, 0.5, key=key))
    noisy = jax.tree.map(np.asarray, add({"weight": np.ones(20000), "count": np.arange(3)}, key()))
    np.testing.assert_allclose(noisy["weight"].mean(), 1.0, atol=0.02)
    np.testing.assert_allclose(noisy["weight"].std(), 0.5, atol=0.02)
    np.testing.assert_array_equal(noisy["count"], np.arange(3))


# Penalties


def test_penalties_of_weights_are_their_formulas():
    @jax.jit
    def penalties(model: Any) -> Any:
        return (
            rnnjax.regularise.l1_penalty(model),
            rnnjax.regularise.l2_penalty(model),
            rnnjax.regularise.l1_penalty({}),
        )

    model = {"weight": np.asarray([[1.0, -2.0], [3.0, 0.0]]), "count": np.arange(9), "bias": np.asarray([-1.0])}
    assert penalties(model) == (7.0, 15.0, 0.0)


def test_penalties_of_outputs_are_their_formulas():
    ys = np.asarray([[1.0, 0.0], [3.0, 2.0], [0.0, 0.0], [np.nan, np.nan]])
    both = rnnjax.regularise.activation_penalty, rnnjax.regularise.temporal_activation_penalty

    @jax.jit
    def of_all(ys: Any) -> Any:
        return rnnjax.regularise.activation_penalty(ys[:2]), rnnjax.regularise.temporal_activation_penalty(ys[:3])

    @jax.jit
    def of_some(ys: Any, length: Any) -> Any:
        return [jax.value_and_grad(lambda ys: penalty(ys, length=length))(ys) for penalty in both]  # noqa: B023

    assert of_all(ys) == (14 / 4, (8 + 13) / 4)
    values = lambda length: [float(value) for value, _ in of_some(ys, np.asarray(length))]  # noqa: E731
    assert values(3) == [14 / 6, (8 + 13) / 4]
    assert values(2) == [14 / 4, 8 / 2]
    assert values(1) == [1 / 2, 0.0]
    assert values(0) == [0.0, 0.0]
    gradient, temporal = (gradient for _, gradient in of_some(ys, np.asarray(2)))
    np.testing.assert_array_equal(gradient, [[0.5, 0.0], [1.5, 1.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(temporal, [[-2.0, -2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("dtype", ["float16", *slow("bfloat16")])
def test_penalties_of_sixteen_bits_are_summed_in_thirty_two(dtype):
    values = np.where(np.arange(3000)[:, None] % 2, -300, 300).astype(jnp.dtype(dtype)).repeat(2, 1)
    value = float(values[0, 0])
    expected = {
        rnnjax.regularise.l1_penalty: 6000 * value,
        rnnjax.regularise.l2_penalty: 6000 * value**2,
        rnnjax.regularise.activation_penalty: value**2,
        rnnjax.regularise.temporal_activation_penalty: 4 * value**2,
    }

    @jax.jit
    def values_and_gradients(values: Any) -> Any:
        small = lambda penalty: lambda values: penalty(values) / 6000  # noqa: E731
        return [(penalty(values), jax.grad(small(penalty))(values)) for penalty in expected]

    for (got, gradient), right in zip(values_and_gradients(values), expected.values(), strict=True):
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, right, rtol=1e-6)
        assert np.isfinite(np.asarray(gradient)).all()


# What does not fit


class OwnStep(rnnjax.GRU):
    """A GRU that does something else with R h."""

    def step(self, state, u):
        return rnnjax.Hidden(state.h + super().step(state, u).h)


class OwnPointwise(rnnjax.GRU):
    """A GRU that does something else with what it wrote."""

    def pointwise(self, parameters, u, v, state):
        return rnnjax.Hidden(-super().pointwise(parameters, u, v, state).h)


BAD = {
    "VariationalDropout(OWN_STEP, recurrent=0.1)": "layer: expected the step of AbstractGatedCell.*got OwnStep",
    "RecurrentDropout(OWN_STEP, 0.1)": "layer: expected the step of AbstractGatedCell.*got OwnStep",
    "RecurrentDropout(OWN_POINTWISE, 0.1)": "layer: expected the pointwise of AbstractCandidateCell.*got OwnPointwise",
    "RecurrentDropout(LSTM, '0.1')": "rate: expected the probability of dropping.*a Python number.*got '0.1'",
    "RecurrentDropout(LSTM, True)": "rate: expected the probability of dropping.*got True",
    "NoisyStates(LSTM, ROW)": "deviation: expected a standard deviation, a Python number",
    "jax.jit(lambda rate: drop_weights(LSTM, rate, key=KEY))(0.5)": "rate: expected .* known before tracing",
    "unroll(VariationalDropout(WORDS, inputs=0.5), None, INDICES, key=KEY)": "inputs: expected .* got int",
    "drop_embedding(CUBE, 0.5, key=KEY)": r"embedding: expected floating vectors \[V, E\]",
    "drop_embedding(INDICES, 0.5, key=KEY)": "embedding: expected floating vectors",
    "Zoneout(LSTM, rnnjax.cells.LSTMState(h=0.1, c=1.0))": r"rates\.c: expected the probability of keeping",
    "VariationalDropout(LSTM, inputs=1.0)": "inputs: expected the probability of dropping.*0 <= p < 1, got 1.0",
    "VariationalDropout(LSTM, recurrent=-0.1)": "recurrent: expected the probability",
    "VariationalDropout(LRU, recurrent=0.1)": "layer: expected an AbstractGatedCell.*got LRU",
    "VariationalDropout(len, inputs=0.1)": "layer: expected a cell or a network, got len",
    "RecurrentDropout(LRU, 0.1)": "layer: expected an AbstractCandidateCell, such as LSTM or GRU, got LRU",
    "RecurrentDropout(LSTM, float('nan'))": "rate: expected the probability",
    "Zoneout(LSTM, (0.1, 0.2, 0.3))": "rates: expected one probability, or one for each of",
    "Zoneout(LSTM, 1)": "rates: expected the probability of keeping",
    "Zoneout(STACK, 0.1)": "layer: expected a cell, got Stack",
    "NoisyStates(LSTM, -1.0)": "deviation: expected a standard deviation",
    "add_noise(LSTM, float('nan'), key=KEY)": "deviation: expected",
    "drop_weights(LRU, 0.5, key=KEY)": "model: expected an AbstractGatedCell in it",
    "drop_weights(LSTM, 1.5, key=KEY)": "rate: expected the probability",
    "drop_embedding(MATRIX, 1.0, key=KEY)": "rate: expected the probability",
}


@grid.once
def names() -> dict[str, Any]:
    """What the calls above speak of."""
    cells = {"LSTM": grid.build("lstm"), "LRU": grid.build("lru"), "STACK": grid.build("stack")}
    own = {"OWN_STEP": OwnStep(3, 4, key=key()), "OWN_POINTWISE": OwnPointwise(3, 4, key=key())}
    shapes = {"ROW": (3,), "MATRIX": (3, 2), "CUBE": (3, 2, 2)}
    arrays = {name: grid.place(np.ones(shape)) for name, shape in shapes.items()}
    words = {
        "WORDS": rnnjax.TimeDistributed(rnnjax.cells.linear, 1, dtype="int32"),
        "INDICES": grid.place(np.zeros((5, 1), "int32")),
    }
    return {"rnnjax": rnnjax, "jax": jax, "KEY": key()} | cells | own | arrays | words


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_named(call):
    with pytest.raises((ValueError, TypeError), match=BAD[call]):
        jax.eval_shape(partial(eval, call, vars(rnnjax) | vars(rnnjax.regularise) | names()))
