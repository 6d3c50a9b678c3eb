"""Sequence to sequence: attention and decoders against their equations, losses, and search against all sequences."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Stack
from rnnjax.models import (
    Additive,
    BahdanauDecoder,
    ContextDecoder,
    Dot,
    General,
    LuongDecoder,
    Pairs,
    Seq2Seq,
    beam_search,
    greedy,
    sample_sequence,
    seq2seq_loss,
)
from rnnjax.models.attention import align, remember
from rnnjax.models.search import at_temperature

E, D, H, A = 4, 3, 5, 2  # features of a source token, of a target token, units of the encoder, attentional features
M, V, W = 2 * H, 7, 8  # features of the memory, source tokens, target tokens
F64 = jnp.float64
START, END = 1, 2

SOURCE = np.array([1, 4, 3, 6, 5])
PADDED = np.array([*SOURCE, -7, 99])  # the padding holds no tokens at all
TARGET = np.array([START, 5, 3, 7])


@lru_cache
def key() -> Any:
    with jax.ensure_compile_time_eval():  # kept beyond the program that may be the first to ask
        return jax.random.key(31)


def filled(make: Callable[[], Any], by: float = 0.5) -> Any:
    """What `make` makes, every weight a normal number: biases are not zero, and no initialiser is compiled."""
    random = np.random.default_rng(3)
    form = eqx.filter_eval_shape(make)
    draw = lambda leaf: grid.place((by * random.normal(size=leaf.shape)).astype(leaf.dtype))  # noqa: E731
    with jax.ensure_compile_time_eval():
        return jax.tree.map(draw, form)


def changed(tokens: np.ndarray, place: int, token: int) -> np.ndarray:
    """The tokens, but for one."""
    return np.where(np.arange(len(tokens)) == place, token, tokens)


def additive(query_size: int, dtype: Any = F64) -> Additive:
    return Additive(query_size, M, 6, key=key(), dtype=dtype)


def luong(cell: Any, score: Any, memory_size: int = M) -> LuongDecoder:
    return LuongDecoder(cell, score, memory_size=memory_size, attentional_size=A, key=key())


def gru(inputs: int, size: int = 4, dtype: Any = F64) -> GRU:
    return GRU(inputs, size, key=key(), dtype=dtype)


def lstm(inputs: int, size: int = 4) -> LSTM:
    return LSTM(inputs, size, key=key(), dtype=F64)


def general(query_size: int) -> General:
    return General(query_size, M, key=key(), dtype=F64)


def encoder(dtype: Any = F64) -> Bidirectional:
    return Bidirectional(gru(E, H, dtype), gru(E, H, dtype))


def stack(inputs: int) -> Stack:
    return Stack([gru(inputs, 4), lstm(4, 5)])


DECODERS = {
    "bahdanau_additive": lambda: BahdanauDecoder(gru(D + M), additive(4)),
    "bahdanau_general": lambda: BahdanauDecoder(lstm(D + M), general(4)),
    "bahdanau_dot": lambda: BahdanauDecoder(gru(D + M, M), Dot()),
    "bahdanau_stack": lambda: BahdanauDecoder(stack(D + M), additive(5)),
    "bahdanau_deep": lambda: BahdanauDecoder(
        gru(D + M), additive(4), eqx.nn.Linear(4 + M + D, 3, key=key(), dtype=F64)
    ),
    "luong_additive": lambda: luong(gru(D + A), additive(4)),
    "luong_general": lambda: luong(stack(D + A), general(5)),
    "luong_dot": lambda: luong(lstm(D + A, M), Dot()),
    "context": lambda: ContextDecoder(lstm(D + M)),
    "context_stack": lambda: ContextDecoder(stack(D + M)),
}
WITH_ATTENTION = [name for name in DECODERS if not name.startswith("context")]


def slow(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


@grid.once
def build(name: str, dropout: float = 0.0) -> Seq2Seq:
    """A decoder of `DECODERS`, with an encoder of two directions, or of one for those of Luong."""
    encode = (lambda: gru(E, M)) if name.startswith("luong") else encoder
    return filled(lambda: Seq2Seq(V, W, encode(), DECODERS[name](), key=key(), dropout=dropout))


class Forced(NamedTuple):
    """What a model says of a target that it is fed, and the gradient of `weighed`, if that was asked for."""

    logits: np.ndarray
    alignments: np.ndarray | None
    gradient: Seq2Seq | None


def at_once(model: Seq2Seq, source: Any, target: Any, length: Any, mask: Any) -> Any:
    return model.logits(source, target, length=length, mask=mask)


def step_by_step(model: Seq2Seq, source: Any, target: Any, length: Any, mask: Any) -> Any:
    step, state, _ = model.decoding(source, length=length, mask=mask)
    return jax.lax.scan(lambda state, token: (lambda a, *b: (a, b))(*step(state, token)), state, target)[1]


def weighed(logits: Any) -> Any:
    """A number to differentiate."""
    return (logits * np.cos(np.arange(logits.size)).reshape(logits.shape)).sum()


@lru_cache
def compiled(run: Callable[..., Any], differentiated: bool) -> Callable[..., Any]:
    """One program for all lengths and masks."""

    def with_gradient(model: Seq2Seq, *given: Any) -> Any:
        def loss(model: Seq2Seq) -> Any:
            made = run(model, *given)
            return weighed(made[0]), made

        gradient, made = jax.grad(loss, has_aux=True)(model)
        return *made, gradient

    return eqx.filter_jit(with_gradient if differentiated else lambda *given: (*run(*given), None))


def run_on(
    name: str,
    length: int = len(SOURCE),
    mask: Any = None,
    *,
    source: np.ndarray = PADDED,
    by: Callable[..., Any] = at_once,
    differentiated: bool = False,
) -> Forced:
    """What a model of `DECODERS` says, of the first `length` tokens of the source; with the gradient if asked for."""
    mask = np.ones(len(source), bool) if mask is None else np.asarray(mask)
    shared = name == "bahdanau_additive" and by is at_once and len(source) > 1  # with the tests of its gradient
    made = compiled(by, differentiated or shared)(build(name), source, TARGET, np.asarray(length), mask)
    return jax.tree.map(np.asarray, Forced(*made))


# The equations, in NumPy


def numpy_encode(model: Seq2Seq, source: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs [S, M], and the last states, of both directions where there are two."""
    encoder, xs = model.encoder, np.asarray(model.source_embedding.weight)[np.asarray(source)]
    both = isinstance(encoder, Bidirectional)
    zeros = (np.zeros(H if both else M),)
    if not len(xs):
        return np.zeros((0, M)), [*zeros, *zeros] if both else [*zeros]
    if not both:
        (last,), ys = oracle.run(encoder, zeros, xs)
        return ys, [last]
    (forward,), right = oracle.run(encoder.forward, zeros, xs)
    (backward,), left = oracle.run(encoder.backward, zeros, xs[::-1])
    return np.concatenate([right, left[::-1]], 1), [forward, backward]


def numpy_scores(score: Any, query: np.ndarray, values: np.ndarray) -> np.ndarray:
    if isinstance(score, Dot):
        return np.array([query @ value for value in values])
    if isinstance(score, General):
        return np.array([value @ np.asarray(score.weight) @ query for value in values])
    w, u, v = map(np.asarray, (score.query_weight, score.memory_weight, score.output_weight))
    return np.array([v @ np.tanh(query @ w + value @ u) for value in values])


def numpy_attend(score: Any, query: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(values):
        return np.zeros(M), np.zeros(0)
    weights = np.exp(numpy_scores(score, query, values))
    weights = weights / weights.sum()
    return weights @ values, weights


def numpy_layers(recurrence: Any, states: list[Any], x: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """One step of a cell, or of a stack of cells."""
    after = []
    for layer, state in zip(getattr(recurrence, "layers", (recurrence,)), states, strict=True):
        state, x = oracle.step(layer, state, x)
        after.append(state)
    return after, x


def numpy_bridge(model: Seq2Seq, last: list[np.ndarray]) -> list[Any]:
    layers = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in model.bridge.layers]
    made = iter(np.tanh(weight @ np.concatenate(last) + bias) for weight, bias in layers)
    layers = getattr(model.decoder.recurrence, "layers", (model.decoder.recurrence,))
    return [tuple(next(made) for _ in jax.eval_shape(layer.initial)) for layer in layers]


def numpy_readout(readout: Any, seen: np.ndarray) -> np.ndarray:
    """A linear layer, or nothing."""
    if not isinstance(readout, eqx.nn.Linear):
        return seen
    return np.asarray(readout.weight) @ seen + np.asarray(readout.bias)


def numpy_logits(model: Seq2Seq, source: Any, target: Any, seen: Any = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Logits and alignments of a source without padding, of which attention may look at the steps `seen`."""
    ys, last = numpy_encode(model, source)
    values, states = ys[seen], numpy_bridge(model, last)
    decoder, attentional = model.decoder, np.zeros(A)
    rows, alignments = [], []
    for token in np.asarray(target):
        e, alignment = np.asarray(model.target_embedding.weight)[token], np.zeros(0)
        if isinstance(decoder, LuongDecoder):
            states, y = numpy_layers(decoder.recurrence, states, np.concatenate([e, attentional]))
            context, alignment = numpy_attend(decoder.score, y, values)
            features = attentional = np.tanh(np.concatenate([context, y]) @ np.asarray(decoder.attentional_weight))
        else:
            context = np.concatenate(last)
            if isinstance(decoder, BahdanauDecoder):
                context, alignment = numpy_attend(decoder.score, states[-1][0], values)
            states, y = numpy_layers(decoder.recurrence, states, np.concatenate([e, context]))
            features = numpy_readout(getattr(decoder, "readout", None), np.concatenate([y, context, e]))
        rows.append(np.asarray(model.output.weight) @ features + np.asarray(model.output.bias))
        alignments.append(alignment)
    return np.stack(rows), np.stack(alignments)


def assert_close(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


class Twice(GRU):
    """A GRU that puts out twice its state."""

    def emit(self, state: Any, before: Any, u: Any) -> Any:
        del before, u
        return type(state)(2 * state.h)


def test_a_decoder_reads_what_its_cell_emits():
    decoder = BahdanauDecoder(Twice(D + M, 4, key=key(), dtype=F64), additive(4))
    generator = np.random.default_rng(5)
    memory = remember(decoder.score, generator.normal(size=(3, M)), np.ones(3, bool))
    state, embedded = decoder.recurrence.initial(), generator.normal(size=(4, D))
    _, once, _ = decoder.run(memory, state, jnp.asarray(embedded), engine=rnnjax.Scan(), key=None)
    for features, one in zip(once, embedded, strict=True):
        state, stepped, _ = decoder.step(memory, state, jnp.asarray(one), key=None)
        assert_close(features, stepped)


QUICK = ("bahdanau_additive", "bahdanau_stack", "bahdanau_deep", "luong_dot", "context")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in DECODERS])
def test_logits_and_alignments_are_those_of_the_equations(name):
    made = run_on(name)
    by_hand, weights = numpy_logits(build(name), SOURCE, TARGET)
    assert_close(made.logits, by_hand)
    if name in WITH_ATTENTION:
        assert_close(made.alignments[:, : len(SOURCE)], weights)
        assert not made.alignments[:, len(SOURCE) :].any()
    else:
        assert made.alignments is None


@pytest.mark.parametrize("name", ["bahdanau_additive", slow("luong_dot"), slow("context")])
def test_the_gradient_is_that_of_the_equations(name):
    """By central differences, along a direction in which every weight changes."""
    model, slope = build(name), run_on(name, differentiated=True).gradient
    weights = [np.cos(np.arange(leaf.size)).reshape(leaf.shape) for leaf in jax.tree.leaves(model)]
    direction, by = jax.tree.unflatten(jax.tree.structure(model), weights), 1e-5

    def number(step: float) -> float:
        moved = jax.tree.map(lambda leaf, along: np.asarray(leaf) + step * along, model, direction)
        return float(weighed(numpy_logits(moved, SOURCE, TARGET)[0]))

    along = sum(np.sum(leaf * weight) for leaf, weight in zip(jax.tree.leaves(slope), weights, strict=True))
    assert along == pytest.approx((number(by) - number(-by)) / (2 * by), rel=1e-7)


@pytest.mark.parametrize(
    "name", ["bahdanau_additive", slow("bahdanau_general"), slow("bahdanau_deep"), slow("context_stack")]
)  # which have a run of their own
def test_a_step_at_a_time_is_teacher_forcing(name):
    once, stepped = run_on(name, 3), run_on(name, 3, by=step_by_step)
    assert_close(stepped.logits, once.logits)
    if name in WITH_ATTENTION:
        assert_close(stepped.alignments, once.alignments)


@pytest.mark.slow
def test_the_gradient_of_all_of_time_is_that_of_the_steps():
    once, stepped = (run_on("bahdanau_additive", 3, by=by, differentiated=True) for by in (at_once, step_by_step))
    jax.tree.map(assert_close, stepped.gradient, once.gradient)


@pytest.mark.parametrize("source", [PADDED, slow(SOURCE[:1])], ids=["padded", "whole"])
def test_attention_to_one_step_is_the_plain_context(source):
    attentive = build("bahdanau_additive")
    plain = eqx.tree_at(lambda model: model.decoder, attentive, ContextDecoder(attentive.decoder.recurrence))
    made = run_on("bahdanau_additive", 1, source=source)
    assert_close(made.logits, numpy_logits(plain, source[:1], TARGET)[0])
    assert_close(made.alignments, np.eye(1, len(source)).repeat(len(TARGET), 0))


# What is masked, and what is empty


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot"])
def test_a_mask_hides_steps_from_attention_and_not_from_the_encoder(name):
    mask = np.array([True, False, True, True, False, True, True])
    made = run_on(name, mask=mask)
    seen = mask & (np.arange(len(PADDED)) < len(SOURCE))
    by_hand, weights = numpy_logits(build(name), SOURCE, TARGET, mask[: len(SOURCE)])
    assert_close(made.logits, by_hand)
    assert_close(made.alignments[:, seen], weights)
    assert not made.alignments[:, ~seen].any()


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot", "context"])
def test_a_source_of_length_zero_is_a_context_of_zeros(name):
    made = run_on(name, 0)
    assert_close(made.logits, numpy_logits(build(name), SOURCE[:0], TARGET)[0])
    assert made.alignments is None or not made.alignments.any()


@pytest.mark.parametrize("name", ["bahdanau_additive", slow("luong_dot"), slow("context")])
def test_a_source_of_no_steps_is_a_context_of_zeros(name):
    made = run_on(name, 0, source=SOURCE[:0])
    assert_close(made.logits, numpy_logits(build(name), SOURCE[:0], TARGET)[0])
    assert (made.alignments is None) == (name == "context")
    assert name == "context" or made.alignments.shape == (len(TARGET), 0)


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot"])
def test_a_source_all_masked_is_a_context_of_zeros(name):
    made = run_on(name, mask=np.zeros(len(PADDED), bool))
    assert_close(made.logits, numpy_logits(build(name), SOURCE, TARGET, slice(0))[0])
    assert not made.alignments.any()


@pytest.mark.parametrize("name", ["bahdanau_additive", slow("luong_dot"), slow("context")])
def test_a_source_of_which_nothing_is_seen_has_a_finite_gradient(name):
    for length, mask in ((0, None), (len(SOURCE), np.zeros(len(PADDED), bool))):
        gradient = run_on(name, length, mask, differentiated=True).gradient
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), length


SCORES = {"additive": lambda: additive(M), "general": lambda: general(M), "dot": Dot}


@pytest.mark.parametrize("score", SCORES)
def test_nan_that_is_masked_changes_neither_context_nor_gradient(score):
    """And the context is that of the equations."""
    random, mask = np.random.default_rng(7), np.array([True, False, True, False])

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def both(score: Any, query: Any, values: Any) -> Any:
        return (
            rnnjax.models.attend(score, query, rnnjax.models.remember(score, values, mask))[0]
            * np.arange(M, dtype=float)
        ).sum()

    query, values = random.normal(size=M), random.normal(size=(4, M))
    bad = values.copy()
    bad[1], bad[3] = np.nan, np.inf
    one, other = (both(filled(SCORES[score]), query, given) for given in (bad, values))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    by_hand, _ = numpy_attend(filled(SCORES[score]), query, values[mask])
    assert float(one[0]) == pytest.approx(by_hand @ np.arange(M), rel=1e-12)


def test_weights_of_large_scores_are_finite_and_those_of_16_bits_in_32():
    values, query = np.eye(M, dtype=jnp.bfloat16)[:3], 30000 * np.eye(M, dtype=np.float32)[1]
    attend = jax.jit(
        lambda query, values: rnnjax.models.attend(
            Dot(), query, rnnjax.models.remember(Dot(), values, np.ones(3, bool))
        )
    )
    context, weights = attend(query, values)
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(weights, [0, 1, 0])


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_one_score_that_is_not_finite_makes_all_weights_nan(score):
    values = np.ones((100, M), np.float32)
    values[7, 0] = score
    memory = rnnjax.models.remember(Dot(), values, np.ones(100, bool))
    assert np.isnan(jax.jit(align)(Dot(), np.ones(M, np.float32), memory)).all()


# Scheduled sampling

DRAWS = 400


@lru_cache
def sampling() -> Callable[..., Any]:
    """Logits where the likeliest token is fed; and drawn many times over, the true one with the probability `share`."""

    @jax.jit
    def both(model: Seq2Seq, share: Any) -> Any:
        drawn = lambda key: model.logits(SOURCE, TARGET, teacher_forcing=share, key=key)[0]  # noqa: E731
        free = model.logits(SOURCE, TARGET, teacher_forcing=0)[0]
        return free, jax.lax.map(drawn, jax.random.split(key(), DRAWS))

    return both


def fed_by_itself(model: Seq2Seq) -> list[int]:
    """The tokens that are fed where the likeliest one always is."""
    fed = [START]
    for _ in TARGET[1:]:
        fed.append(int(numpy_logits(model, SOURCE, fed)[0][-1].argmax()))
    return fed


@pytest.mark.parametrize("name", ["luong_dot", slow("bahdanau_additive"), slow("context")])
def test_without_teacher_forcing_the_likeliest_token_is_fed(name):
    model, fed = build(name), fed_by_itself(build(name))
    assert fed != TARGET.tolist()
    free, never = map(np.asarray, sampling()(model, 0.0))
    assert_close(free, numpy_logits(model, SOURCE, fed)[0])
    np.testing.assert_array_equal(never, np.broadcast_to(free, never.shape))
    always = sampling()(model, 1.0)[1]
    assert_close(always, np.broadcast_to(numpy_logits(model, SOURCE, TARGET)[0], always.shape))


def test_a_share_of_the_tokens_is_forced_and_each_sequence_draws_its_own():
    model = build("luong_dot")
    seconds = np.asarray(sampling()(model, 0.3)[1])[:, 1]
    options = [numpy_logits(model, SOURCE, [START, token])[0][1] for token in (TARGET[1], fed_by_itself(model)[1])]
    is_forced, is_free = (np.abs(seconds - option).max(1) < 1e-10 for option in options)
    np.testing.assert_array_equal(is_forced, ~is_free)
    assert is_forced.mean() == pytest.approx(0.3, abs=0.08)


# The loss


BATCH = Pairs(
    np.stack([SOURCE, SOURCE[::-1], SOURCE]),
    np.array([5, 2, 0]),
    np.array([[START, 5, 3, END], [START, 4, END, 0], [START, END, 0, 0]]),
    np.array([4, 3, 2], np.uint8),  # from which, at 0, no 1 can be taken
)


def littered() -> Pairs:
    """The same batch, with what is no token in its padding."""
    in_source = np.arange(5) < BATCH.source_length[:, None]
    in_target = np.arange(4) < BATCH.target_length[:, None]
    return BATCH._replace(source=np.where(in_source, BATCH.source, -3), target=np.where(in_target, BATCH.target, 77))


@lru_cache
def differentiated_loss() -> Callable[..., Any]:
    return eqx.filter_jit(jax.value_and_grad(lambda model, batch: seq2seq_loss(model, None, batch, None)[0]))


def loss_and_gradient(batch: Pairs) -> Any:
    return jax.tree.map(np.asarray, differentiated_loss()(build("luong_additive"), batch))


def test_loss_is_the_mean_cross_entropy_of_the_valid_tokens():
    model, losses = build("luong_additive"), []
    for source, length, target, end in zip(*BATCH, strict=True):
        logits = numpy_logits(model, source[:length], target[: end - 1])[0]
        normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-row[token] for row, token in zip(normalised, target[1:end], strict=True)]
    loss, gradient = loss_and_gradient(BATCH)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-12)
    jax.tree.map(np.testing.assert_array_equal, loss_and_gradient(littered()), (loss, gradient))


def test_loss_of_no_tokens_is_zero():
    loss, gradient = loss_and_gradient(BATCH._replace(target_length=np.array([1, 0, 1], np.uint8)))
    assert loss == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_an_unknown_token_that_is_traced_is_an_error_when_run():
    with pytest.raises(eqx.EquinoxRuntimeError, match="source: expected tokens from 0 to 6, of a vocabulary of 7"):
        run_on("bahdanau_additive", source=changed(PADDED, 1, 99))
    unknown = np.array([changed(row, 1, W) if number == 1 else row for number, row in enumerate(BATCH.target)])
    with pytest.raises(eqx.EquinoxRuntimeError, match="target: expected tokens from 0 to 7"):
        loss_and_gradient(BATCH._replace(target=unknown))


def test_tokens_may_come_in_few_bits():
    """Where the vocabulary's size, or what is said and fed, does not fit into them."""
    elman = lambda inputs: rnnjax.Elman(inputs, H, key=key(), dtype=F64)  # noqa: E731
    large = filled(lambda: Seq2Seq(300, 300, elman(E), ContextDecoder(elman(D + H)), key=key()))
    large = eqx.tree_at(lambda model: model.output.bias, large, grid.place(np.arange(300.0) * 100))  # says 299
    few = BATCH._replace(source=BATCH.source.astype("uint8"), target=BATCH.target.astype("uint8"))
    lose = lambda model, batch: seq2seq_loss(model, None, batch, None, teacher_forcing=0)[0]  # noqa: E731
    losses = jax.jit(lambda *batches: [lose(large, batch) for batch in batches])(BATCH, few)
    assert losses[0].tolist() == losses[1].tolist()


def layered() -> Seq2Seq:
    """A model whose decoder has a layer without a state above those with one."""
    network = Stack([stack(D + M), rnnjax.TimeDistributed(jnp.tanh, 5, dtype=F64)])
    return Seq2Seq(V, W, encoder(), BahdanauDecoder(network, additive(5)), key=key())


def test_attention_asks_the_topmost_layer_that_has_a_state():
    network = layered().decoder.recurrence
    state = filled(network.initial)
    np.testing.assert_array_equal(network.hidden(state), state[0][1].h)


@pytest.mark.slow
def test_a_layer_without_a_state_may_be_the_topmost_of_a_decoder():
    _, alignments, _ = compiled(at_once, False)(filled(layered), SOURCE, TARGET, None, None)
    assert_close(alignments.sum(1), np.ones(4))


def test_dropout_differs_between_sequences():
    model = build("luong_dot", 0.5)
    dropped = jax.jit(jax.vmap(lambda key: model.logits(SOURCE, TARGET, key=key)[0]))
    first, second = np.asarray(dropped(jax.random.split(key(), 2)))
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_dropout_ends_with_the_key():
    model = build("luong_dot", 0.5)
    assert_close(jax.jit(lambda: model.logits(SOURCE, TARGET)[0])(), numpy_logits(model, SOURCE, TARGET)[0])


# Search


def tables(seed: int, vocabulary_size: int, max_length: int, allowed: Any = slice(None)) -> tuple[Any, Any]:
    """Logits and alignments to 3 steps for all that may have been said before."""
    size = sum(vocabulary_size**length for length in range(max_length + 1))
    random = np.random.default_rng(seed)
    logits = np.full((size, vocabulary_size), -np.inf)
    logits[:, allowed] = 2 * random.normal(size=(size, vocabulary_size))[:, allowed]
    return logits, random.dirichlet(np.ones(3) / 2, size)


def table_step(logits: Any, alignments: Any) -> Any:
    """A model that looks its answers up; its state is the place of all that was said before, -1 before anything is."""

    def step(place: Any, token: Any) -> Any:
        place = jnp.where(place < 0, 0, place * logits.shape[1] + token + 1)
        return place, logits[place], alignments[place]

    return step


@lru_cache
def searching(width: int, max_length: int, **options: Any) -> Callable[..., Any]:
    """Searches of many tables, by one program for all penalties."""

    def search(logits: Any, alignments: Any, alpha: Any, beta: Any) -> Any:
        limits = {"width": width, "start": START, "end": END, "max_length": max_length}
        penalties = {"length_penalty": alpha, "coverage_penalty": beta}
        return beam_search(table_step(logits, alignments), jnp.asarray(-1), **limits, **penalties, **options)

    return jax.jit(jax.vmap(search, (0, 0, None, None)))


def beams(
    drawn: list[Any], width: int, max_length: int, penalties: tuple[float, float], **options: Any
) -> list[rnnjax.models.Hypothesis]:
    return rows(searching(width, max_length, **options)(*map(np.stack, zip(*drawn, strict=True)), *penalties))


def rows(found: Any) -> list[rnnjax.models.Hypothesis]:
    """A batch of hypotheses, one by one."""
    found = jax.tree.map(np.asarray, found)
    return [jax.tree.map(lambda leaf, row=row: leaf[row], found) for row in range(len(found.length))]


def rescore(tokens: Any, logits: np.ndarray, alignments: np.ndarray, alpha: float, beta: float) -> float:
    """The penalised log-probability of tokens, from the tables."""
    place, total, coverage = 0, 0.0, np.zeros(3)
    for token in tokens:
        total += logits[place][token] - np.log(np.exp(logits[place]).sum())
        coverage += alignments[place]
        place = place * logits.shape[1] + token + 1
    return total / ((5 + len(tokens)) / 6) ** alpha + beta * np.log(np.minimum(coverage, 1)).sum()


def sequences(tokens: Any, end: int, max_length: int) -> Iterator[tuple[int, ...]]:
    """All that can be said."""
    others = [token for token in tokens if token != end]
    for length in range(1, max_length + 1):
        for said in product(others, repeat=length - 1):
            yield (*said, end)
    yield from product(others, repeat=max_length)


def said(found: rnnjax.models.Hypothesis) -> tuple[int, ...]:
    return tuple(found.tokens.tolist()[: int(found.length)])


PENALTIES = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.5), (0.7, 0.4)]


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_beam_that_holds_all_sequences_finds_the_best_of_them(penalties):
    few = [0, 2, 3]  # 15 sequences of up to 3 tokens, and a beam of 16
    drawn = [tables(seed, 16, 3, few) for seed in range(6)]
    for one, table in zip(beams(drawn, 16, 3, penalties), drawn, strict=True):
        best = max(sequences(few, END, 3), key=lambda tokens, table=table: rescore(tokens, *table, *penalties))
        assert said(one) == best
        assert float(one.score) == pytest.approx(rescore(best, *table, *penalties), rel=1e-12)
        assert one.tokens.tolist() == [*best, *[END] * (3 - len(best))]


def numpy_beam(logits: Any, alignments: Any, width: int, max_length: int, alpha: float, beta: float) -> Any:
    """Hypotheses that have ended keep their places, the likeliest of the others' continuations take the rest."""
    log_probability = lambda tokens: rescore(tokens, logits, alignments, 0.0, 0.0)  # noqa: E731
    ended, live = [], [()]
    for _ in range(max_length):
        grown = [(*tokens, token) for tokens in live for token in range(logits.shape[1])]
        kept = sorted(grown, key=log_probability, reverse=True)[: width - len(ended)]
        ended += [tokens for tokens in kept if tokens[-1] == END]
        live = [tokens for tokens in kept if tokens[-1] != END]
    return max(ended + live, key=lambda tokens: rescore(tokens, logits, alignments, alpha, beta))


@pytest.mark.parametrize("width", [slow(1), 2, slow(4)])
def test_a_narrow_beam_keeps_the_likeliest_and_what_has_ended(width):
    drawn = [tables(seed, 5, 4) for seed in range(20)]
    for penalties in ((0.0, 0.0), (0.8, 0.5)):
        found = beams(drawn, width, 4, penalties)
        for one, table in zip(found, drawn, strict=True):
            assert said(one) == numpy_beam(*table, width, 4, *penalties)
            assert float(one.score) == pytest.approx(rescore(said(one), *table, *penalties), rel=1e-12)
        assert len({int(one.length) for one in found}) > 1


@pytest.mark.parametrize("keep_width", [False, True])
def test_the_best_hypotheses_come_in_order(keep_width):
    """A beam that holds all sequences finds them all; of one row more, nothing has a probability."""
    few = [0, 2, 3]
    drawn = [tables(seed, 16, 3, few) for seed in range(6)]
    for penalties in PENALTIES:
        found = beams(drawn, 16, 3, penalties, number=16, keep_width=keep_width)
        for several, table in zip(found, drawn, strict=True):
            scores = {tokens: rescore(tokens, *table, *penalties) for tokens in sequences(few, END, 3)}
            expected = sorted(scores, key=scores.__getitem__, reverse=True)
            *hypotheses, none = rows(several)
            assert [said(one) for one in hypotheses] == expected
            np.testing.assert_allclose(several.score[:-1], sorted(scores.values(), reverse=True), rtol=1e-12)
            assert none.score == -np.inf


def numpy_full_beam(
    logits: Any, alignments: Any, width: int, max_length: int, alpha: float, beta: float
) -> list[tuple[int, ...]]:
    """Hypotheses that end leave the beam, if they are among the likeliest, which others fill up again; best first."""
    log_probability = lambda tokens: rescore(tokens, logits, alignments, 0.0, 0.0)  # noqa: E731
    ended, live = [], [()]
    for _ in range(max_length):
        grown = [(*tokens, token) for tokens in live for token in range(logits.shape[1])]
        ordered = sorted(grown, key=log_probability, reverse=True)
        ended += [tokens for tokens in ordered[:width] if tokens[-1] == END]
        live = [tokens for tokens in ordered if tokens[-1] != END][:width]
    return sorted(ended + live, key=lambda tokens: rescore(tokens, logits, alignments, alpha, beta), reverse=True)


@pytest.mark.parametrize("width", [slow(1), 3])
def test_a_beam_that_keeps_its_width_moves_what_has_ended_to_a_list(width):
    drawn = [tables(seed, 5, 4) for seed in range(20)]
    differ = 0
    for penalties in ((0.0, 0.0), (0.8, 0.5), (-0.5, 0.0), (1.5, -0.3)):
        found = beams(drawn, width, 4, penalties, number=width, keep_width=True)
        for several, table in zip(found, drawn, strict=True):
            expected = numpy_full_beam(*table, width, 4, *penalties)[:width]
            assert [said(one) for one in rows(several)] == expected
            scores = [rescore(tokens, *table, *penalties) for tokens in expected]
            np.testing.assert_allclose(several.score, scores, rtol=1e-12)
            differ += expected[0] != numpy_beam(*table, width, 4, *penalties)
    assert differ > 0
    for one, several in zip(beams(drawn, width, 4, penalties, keep_width=True), found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, jax.tree.map(lambda leaf: leaf[0], several))


def counted(options: dict[str, Any]) -> tuple[Any, Any]:
    """A search for up to 50 tokens, each of which is `end` by 3/4, and how many steps it takes."""
    logits = jnp.log(jnp.asarray([1 / 12, 1 / 12, 3 / 4, 1 / 12]))
    step = lambda steps, token: (steps + 1, logits, None)  # noqa: ARG005, E731
    carried = []

    def counting(steps: Any, token: Any) -> Any:
        jax.debug.callback(lambda steps: carried.append(int(steps)), steps)
        return step(steps, token)

    found = jax.jit(partial(beam_search, counting, end=2, start=0, max_length=50, width=2, **options))(jnp.asarray(0))
    jax.effects_barrier()
    return found, 1 + max(carried)


def test_a_beam_that_keeps_its_width_stops_when_nothing_better_can_come():
    found, steps = counted({"keep_width": True})
    assert (said(found), steps) == ((2,), 1)
    several, steps = counted({"keep_width": True, "number": 2})
    assert [said(one) for one in rows(several)] == [(2,), (0, 2)]
    assert steps == 2
    _, steps = counted({"keep_width": True, "number": 2, "length_penalty": 3.0})  # long ones may be better
    assert steps == 50


def test_a_beam_that_keeps_its_width_shows_nan():
    step = lambda state, token: (state, jnp.full(5, jnp.nan), None)  # noqa: ARG005, E731
    found = jax.jit(partial(beam_search, step, width=2, start=START, end=END, max_length=3, keep_width=True))(())
    assert np.isnan(found.score)
    assert found.tokens.tolist()[0] == -1


SOURCES = np.random.default_rng(11).integers(0, V, (10, 5))
SEEN = np.array([True, True, False, True, True])
LIMITS = {"start": START, "end": END, "max_length": 6}


@pytest.mark.slow  # as a quick test has it of captions
@pytest.mark.parametrize("name", ["luong_additive", "context"])
def test_a_beam_of_one_is_greedy(name):
    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def both(model: Seq2Seq, source: Any) -> Any:
        step, state, mask = model.decoding(source, length=4)
        return greedy(step, state, **LIMITS), beam_search(step, state, width=1, mask=mask, **LIMITS)

    likeliest, first = both(build(name), SOURCES)
    jax.tree.map(assert_close, first, likeliest)
    assert len({tuple(tokens) for tokens in likeliest.tokens.tolist()}) > 1


@pytest.mark.parametrize("name", ["luong_additive", slow("bahdanau_additive")])
def test_the_score_of_a_beam_is_that_of_its_tokens_fed_to_the_model(name):
    alpha, beta = 0.9, 0.3

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def translate(model: Seq2Seq, source: Any) -> Any:
        step, state, seen = model.decoding(source, length=4, mask=SEEN)
        penalties = {"length_penalty": alpha, "coverage_penalty": beta}
        return beam_search(step, state, width=4, mask=seen, **LIMITS, **penalties)

    hypotheses, seen = rows(translate(build(name), SOURCES)), SEEN[:4]
    assert len({said(found) for found in hypotheses}) > 1
    for source, found in zip(SOURCES, hypotheses, strict=True):
        n = int(found.length)
        tokens = found.tokens[:n]
        logits, alignments = numpy_logits(build(name), source[:4], [START, *tokens[:-1]], seen)
        total = (logits[np.arange(n), tokens] - np.log(np.exp(logits).sum(1))).sum()
        expected = total / ((5 + n) / 6) ** alpha + beta * np.log(np.minimum(alignments.sum(0), 1)).sum()
        assert float(found.score) == pytest.approx(expected, rel=1e-11)
        assert_close(found.alignments[:n, :4][:, seen], alignments)
        assert not found.alignments[:n, ~SEEN].any()
        assert not found.alignments[:n, 4:].any()
        assert not found.alignments[n:].any()


def test_greedy_says_the_likeliest_until_the_end():
    drawn = [tables(seed, 5, 5) for seed in range(20)]
    options = {"start": START, "end": END, "max_length": 5}
    many = jax.jit(jax.vmap(lambda *table: greedy(table_step(*table), jnp.asarray(-1), **options)))
    found = rows(many(*map(np.stack, zip(*drawn, strict=True))))
    for one, (logits, alignments) in zip(found, drawn, strict=True):
        expected, place = [], 0
        while len(expected) < 5 and END not in expected:
            expected.append(int(logits[place].argmax()))
            place = place * 5 + expected[-1] + 1
        assert one.tokens.tolist() == [*expected, *[END] * (5 - len(expected))]
        assert one.length == len(expected)
        assert float(one.score) == pytest.approx(rescore(expected, logits, alignments, 0.0, 0.0), rel=1e-12)
        assert not one.alignments[len(expected) :].any()


def test_search_ends_with_its_last_hypothesis():
    calls = []

    def step(state: Any, token: Any) -> Any:
        jax.debug.callback(lambda token: calls.append(int(token)), token)
        return state + 1, jnp.where(state == 1, np.array([0.0, 0.0, 9.0]), np.array([9.0, 0.0, -99.0])), None

    found = jax.jit(lambda: greedy(step, jnp.asarray(0), start=0, end=2, max_length=50))()
    jax.effects_barrier()
    assert (said(found), calls, found.alignments) == ((0, 2), [0, 0], None)


def test_draws_have_the_frequencies_of_the_model_at_that_temperature():
    logits = np.array([0.0, -1.0, 1.5, 0.5])
    step = lambda state, token: (state, jnp.asarray(logits), None)  # noqa: ARG005, E731

    @jax.jit
    @jax.vmap
    def draw(key: Any) -> Any:
        return sample_sequence(step, (), start=0, end=3, max_length=3, key=key, temperature=2.0)

    found = jax.tree.map(np.asarray, draw(jax.random.split(key(), 4000)))
    weights = np.exp(logits / 2)
    np.testing.assert_allclose(np.bincount(found.tokens[:, 0], minlength=4) / 4000, weights / weights.sum(), atol=0.03)
    going_on = found.tokens[found.length > 1][:, 1]
    assert np.bincount(going_on, minlength=4)[0] / len(going_on) == pytest.approx(
        (weights / weights.sum())[0], abs=0.03
    )
    log_probabilities = logits - np.log(np.exp(logits).sum())
    for tokens, length, score in list(zip(*found[:3], strict=True))[:20]:
        assert score == pytest.approx(log_probabilities[tokens[:length]].sum(), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
def test_near_a_temperature_of_0_the_likeliest_is_drawn(dtype):
    """One of them, where several are the likeliest. A negative temperature is shown as NaN."""
    logits = jnp.asarray(1e9 * np.array([0.5, 1.5, -1.0, 1.5, -np.inf]), dtype)
    step = lambda state, token: (state, logits, None)  # noqa: ARG005, E731

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def draw(temperature: Any, key: Any) -> Any:
        return sample_sequence(step, (), start=0, end=4, max_length=3, key=key, temperature=temperature)

    temperatures = jnp.asarray([1e-30, 1e-37, 1e-42, 0.0, -1.0, np.nan], dtype)
    found = draw(temperatures, jax.random.split(key(), 20))
    for tokens in np.asarray(found.tokens[:4]):
        assert set(tokens.ravel().tolist()) == {1, 3}
    assert set(np.asarray(found.tokens[4:])[..., 0].ravel().tolist()) == {-1}
    assert np.isnan(found.score[4:]).all()
    known = jax.jit(partial(sample_sequence, step, start=0, end=4, max_length=3, key=key(), temperature=1e-50))
    assert set(np.asarray(known(()).tokens).tolist()) <= {1, 3}


def test_logits_at_extreme_temperatures():
    """None is NaN, what cannot be drawn stays so, and equal ones stay equal, also beside rounding."""
    logits = jnp.asarray([3.0, 3.0, 0.0, -np.inf], "float32")
    np.testing.assert_array_equal(at_temperature(logits, np.inf), [0, 0, 0, -np.inf])
    np.testing.assert_allclose(at_temperature(logits, 1e-8), [0, 0, -3e8, -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(at_temperature(jnp.asarray([np.inf, 1.0]), 2.0), [0, -np.inf])
    assert np.isnan(at_temperature(jnp.asarray([np.nan, 1.0]), 2.0)).tolist() == [True, False]


@pytest.mark.slow  # as a quick test has it of captions
def test_a_language_model_is_searched_as_well():
    model = filled(lambda: rnnjax.models.LanguageModel(V, gru(E, H), key=key()))

    def step(state: Any, token: Any) -> Any:
        state, logits = model.logits(state, token[None])
        return state, logits[0], None

    @jax.jit
    def said_by(key: Any) -> Any:
        limits = {"start": START, "end": END, "max_length": 6}
        wide = beam_search(step, model.initial(), width=V, **limits)
        sampled = rnnjax.models.sample(model, jnp.asarray([START]), 6, key=key, temperature=0.0)
        return sampled, greedy(step, model.initial(), **limits), wide

    likeliest, found, wide = jax.tree.map(np.asarray, said_by(key()))
    assert list(said(found)) == likeliest.tolist()[: int(found.length)]
    assert wide.score >= found.score - 1e-12


# Learning


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_reversal_is_learned_and_said():
    random = np.random.default_rng(5)

    def batch(step: int) -> Pairs:
        del step
        lengths = random.integers(1, 5, 32)
        source = np.where(np.arange(4) < lengths[:, None], random.integers(3, V, (32, 4)), 0)
        target = np.full((32, 6), END)
        target[:, 0] = START
        for row, length in enumerate(lengths):
            target[row, 1 : length + 1] = source[row, :length][::-1]
        return Pairs(source, lengths, target, lengths + 2)

    def reverser() -> Seq2Seq:
        cell, score = GRU(24, 16, key=key()), General(16, 32, key=key())
        decoder = LuongDecoder(cell, score, memory_size=32, attentional_size=16, key=key())
        return Seq2Seq(V, V, Bidirectional(GRU(8, 16, key=key()), GRU(8, 16, key=key())), decoder, key=key())

    model = filled(reverser, by=0.3)
    fitted = rnnjax.training.fit(
        model, seq2seq_loss, batch, optax.adam(0.02), steps=200, key=key(), progress=False
    ).model

    @jax.jit
    @jax.vmap
    def translate(source: Any, length: Any) -> Any:
        step, state, mask = fitted.decoding(source, length=length)
        return beam_search(step, state, width=3, start=START, end=END, max_length=5, mask=mask)

    held_out = batch(0)
    found = translate(held_out.source, held_out.source_length)
    assert (np.asarray(found.tokens) == held_out.target[:, 1:]).all(1).mean() > 0.9


# Misuse


def search(**options: Any) -> Any:
    step = table_step(*map(jnp.asarray, tables(0, 5, 2)))
    return beam_search(step, np.asarray(-1), **({"width": 2, "start": START, "end": END, "max_length": 2} | options))


def plain_search(**options: Any) -> Any:
    step = lambda state, token: (state, jnp.zeros(5), None)  # noqa: ARG005, E731
    return beam_search(step, (), **({"width": 2, "start": START, "end": END, "max_length": 2} | options))


def read(source: Any = SOURCE, target: Any = TARGET, **options: Any) -> Any:
    """By form alone: tokens are not known."""
    return eqx.filter_eval_shape(lambda: build("bahdanau_additive").logits(source, target, **options))


def read_known(source: Any = SOURCE, target: Any = TARGET) -> Any:
    """Outside of any program: tokens are known."""
    return build("bahdanau_additive").logits(source, target)


def made(
    vocabulary_size: int = V,
    query_size: int = 4,
    memory_size: int = M,
    inputs: int = D + M,
    dtype: Any = F64,
    **options: Any,
) -> Callable[[], Any]:
    """The making of a model, by form alone."""

    def make() -> Seq2Seq:
        score = Additive(query_size, memory_size, 6, key=key(), dtype=F64)
        return Seq2Seq(vocabulary_size, W, encoder(dtype), BahdanauDecoder(gru(inputs), score), key=key(), **options)

    return lambda: eqx.filter_eval_shape(make)


MISUSES = {
    "unknown_source": (
        lambda: read_known(source=changed(SOURCE, 2, V)),
        ValueError,
        ["source", "from 0 to 6", "got 7"],
    ),
    "negative_source": (lambda: read_known(source=changed(SOURCE, 2, -1)), ValueError, ["source", "got -1"]),
    "floating_source": (lambda: read(source=SOURCE.astype(float)), TypeError, ["source", "integer", "f64[5]"]),
    "batch_of_sources": (lambda: read(source=SOURCE[None]), ValueError, ["source", "[T]", "[1, 5]", "vmap"]),
    "length_over": (lambda: read(length=6), ValueError, ["length", "T=5", "6"]),
    "mask_shape": (lambda: read(mask=np.ones(4, bool)), ValueError, ["mask", "[5]", "bool[4]"]),
    "mask_dtype": (lambda: read(mask=np.ones(5)), ValueError, ["mask", "booleans", "f64[5]"]),
    "forcing_over": (lambda: read(teacher_forcing=1.5), ValueError, ["teacher_forcing", "1.5"]),
    "forcing_without_key": (lambda: read(teacher_forcing=0.5), ValueError, ["key", "teacher_forcing", "None"]),
    "beam_over": (lambda: search(width=6), ValueError, ["width", "vocabulary of 5", "6"]),
    "beam_of_none": (lambda: search(width=0), ValueError, ["width", "positive", "0"]),
    "more_than_the_beam": (lambda: search(number=3), ValueError, ["number", "width=2", "3"]),
    "number_of_none": (lambda: search(number=0), ValueError, ["number", "0"]),
    "width_maybe_kept": (lambda: search(keep_width="yes"), TypeError, ["keep_width", "True or False", "yes"]),
    "no_length": (lambda: search(max_length=0), ValueError, ["max_length", "positive", "0"]),
    "unknown_end": (lambda: search(end=5), ValueError, ["end", "from 0 to 4", "5"]),
    "unknown_start": (lambda: search(start=-1), ValueError, ["start", "-1"]),
    "start_of_two": (lambda: search(start=np.array([1, 1])), TypeError, ["start", "integer"]),
    "cover_nothing": (lambda: plain_search(coverage_penalty=0.2), ValueError, ["coverage_penalty", "no alignments"]),
    "step_of_two": (
        lambda: greedy(lambda state, token: (state, token), (), start=0, end=1, max_length=2),
        ValueError,
        ["step", "(state, logits [V], alignment [S] or None)"],
    ),
    "temperature": (
        lambda: sample_sequence(None, (), start=0, end=1, max_length=2, key=key(), temperature=0),
        ValueError,
        ["temperature", "more than 0", "greedy"],
    ),
    "query_misfit": (made(query_size=5), ValueError, ["query", "5", "4"]),
    "luong_memory_misfit": (
        lambda: eqx.filter_eval_shape(
            lambda: Seq2Seq(V, W, encoder(), luong(gru(D + A, M + 1), Dot(), M + 1), key=key())
        ),
        ValueError,
        ["memory_size", "10", "got 11"],
    ),
    "memory_misfit": (made(memory_size=9), ValueError, ["memory", "9", "10"]),
    "no_room": (made(inputs=M), ValueError, ["decoder", "more than 10", "got 10"]),
    "bridge_misfit": (made(bridge=eqx.nn.Identity()), ValueError, ["bridge", "Hidden", "Directions"]),
    "dtypes": (made(dtype=jnp.float32), ValueError, ["decoder", "float32", "float64"]),
    "dropout": (made(dropout=1.0), ValueError, ["dropout", "1.0"]),
    "no_vocabulary": (made(vocabulary_size=0), ValueError, ["source_vocabulary_size", "0"]),
    "complex_state": (
        lambda: rnnjax.models.Bridge(
            *(jax.eval_shape(cell(E, H, key=key()).initial) for cell in (rnnjax.LRU, GRU)), key=key()
        ),
        ValueError,
        ["encoded", "real numbers", "function of your own"],
    ),
    "bridge_of_more": (
        lambda: jax.eval_shape(
            lambda xs: rnnjax.models.Bridge(np.zeros(3), np.zeros(4), key=key())(xs), np.zeros((2, 3))
        ),
        ValueError,
        ["encoded", "3 numbers in all", "f64[2,3]", "vmap"],
    ),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), MISUSES.values(), ids=MISUSES)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


@pytest.mark.usefixtures("annotations_unchecked")
def test_an_unknown_token_of_the_target_is_an_error(monkeypatch):
    monkeypatch.setattr(Seq2Seq, "encode", lambda *_, **__: (None, None, None))  # runs before tokens are looked at
    grid.assert_error(lambda: read_known(target=changed(TARGET, 0, W)), ValueError, ["target", "from 0 to 7", "got 8"])


def of_16_bits(name: str) -> Seq2Seq:
    half = jnp.bfloat16
    decoders = {
        "bahdanau": lambda: BahdanauDecoder(gru(D + M, 4, half), additive(4, half)),
        "luong": lambda: luong(gru(D + A, 4, half), additive(4, half)),
        "context": lambda: ContextDecoder(gru(D + M, 4, half)),
    }
    return filled(lambda: Seq2Seq(V, W, encoder(half), decoders[name](), key=key()))


@pytest.mark.parametrize("name", ["bahdanau", slow("luong"), slow("context")])
def test_a_model_of_16_bits_scores_in_32(name):
    def run(model: Seq2Seq) -> Any:
        found = greedy(*model.decoding(SOURCE)[:2], start=START, end=END, max_length=3)
        return *model.logits(SOURCE, TARGET), found.score

    logits, alignments, score_of_found = jax.eval_shape(run, of_16_bits(name))
    assert logits.dtype == score_of_found.dtype == jnp.float32
    assert alignments is None or alignments.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bahdanau", "luong", "context"])
def test_a_model_of_16_bits_says_what_a_wide_one_does(name):
    logits = jax.jit(lambda model: model.logits(SOURCE, TARGET)[0])(of_16_bits(name))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf).astype(float), of_16_bits(name))
    np.testing.assert_allclose(logits, numpy_logits(wide, SOURCE, TARGET)[0], atol=0.1)
