"""Sequence to sequence: attention and decoders against their equations, losses, and search against all sequences."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import rnnjax
from rnnjax import (
    GRU,
    LSTM,
    Additive,
    BahdanauDecoder,
    Bidirectional,
    ContextDecoder,
    Dot,
    General,
    LuongDecoder,
    Pairs,
    Seq2Seq,
    Stack,
    beam_search,
    greedy,
    sample_sequence,
    seq2seq_loss,
)

E, D, H, A = 4, 3, 5, 2  # features of a source token, of a target token, units of the encoder, attentional features
M, V, W = 2 * H, 7, 8  # features of the memory, source tokens, target tokens
KEY = jax.random.key(31)
F64 = jnp.float64
START, END = 1, 2

SOURCE = jnp.array([1, 4, 3, 6, 5])
TARGET = jnp.array([START, 5, 3, 7])


def filled(make: Callable[[], Any], by: float = 0.5) -> Any:
    """What `make` makes, every weight a normal number: biases are not zero, and no initialiser is compiled."""
    random = np.random.default_rng(3)
    form = eqx.filter_eval_shape(make)
    return jax.tree.map(lambda leaf: jnp.asarray(by * random.normal(size=leaf.shape), leaf.dtype), form)


def encoder(dtype: Any = F64) -> Bidirectional:
    return Bidirectional(GRU(E, H, key=KEY, dtype=dtype), GRU(E, H, key=KEY, dtype=dtype))


def additive(query_size: int) -> Additive:
    return Additive(query_size, M, 6, key=KEY, dtype=F64)


def luong(cell: Any, score: Any, memory_size: int = M) -> LuongDecoder:
    return LuongDecoder(cell, score, memory_size=memory_size, attentional_size=A, key=KEY)


def stack(inputs: int) -> Stack:
    return Stack([GRU(inputs, 4, key=KEY, dtype=F64), LSTM(4, 5, key=KEY, dtype=F64)])


DECODERS = {
    "bahdanau_additive": lambda: BahdanauDecoder(GRU(D + M, 4, key=KEY, dtype=F64), additive(4)),
    "bahdanau_general": lambda: BahdanauDecoder(LSTM(D + M, 4, key=KEY, dtype=F64), General(4, M, key=KEY, dtype=F64)),
    "bahdanau_dot": lambda: BahdanauDecoder(GRU(D + M, M, key=KEY, dtype=F64), Dot()),
    "bahdanau_stack": lambda: BahdanauDecoder(stack(D + M), additive(5)),
    "bahdanau_deep": lambda: BahdanauDecoder(
        GRU(D + M, 4, key=KEY, dtype=F64), additive(4), eqx.nn.Linear(4 + M + D, 3, key=KEY, dtype=F64)
    ),
    "luong_additive": lambda: luong(GRU(D + A, 4, key=KEY, dtype=F64), additive(4)),
    "luong_general": lambda: luong(stack(D + A), General(5, M, key=KEY, dtype=F64)),
    "luong_dot": lambda: luong(LSTM(D + A, M, key=KEY, dtype=F64), Dot()),
    "context": lambda: ContextDecoder(LSTM(D + M, 4, key=KEY, dtype=F64)),
    "context_stack": lambda: ContextDecoder(stack(D + M)),
}
WITH_ATTENTION = [name for name in DECODERS if not name.startswith("context")]


@lru_cache
def build(name: str, dropout: float = 0.0) -> Seq2Seq:
    return filled(lambda: Seq2Seq(V, W, encoder(), DECODERS[name](), key=KEY, dropout=dropout))


@jax.jit
def forced(model: Seq2Seq, source: Any, target: Any, length: Any = None, mask: Any = None) -> Any:
    return model.logits(source, target, length=length, mask=mask)


# The equations, in NumPy


def numpy_encode(model: Seq2Seq, source: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs [S, M], and the last states of both directions."""
    encoder, xs = model.encoder, np.asarray(model.source_embedding)[np.asarray(source)]
    zeros = (np.zeros(H),)
    if not len(xs):
        return np.zeros((0, M)), [*zeros, *zeros]
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
    made = iter(np.tanh(np.asarray(layer.weight) @ np.concatenate(last) + layer.bias) for layer in model.bridge.layers)
    layers = getattr(model.decoder.recurrence, "layers", (model.decoder.recurrence,))
    return [tuple(next(made) for _ in layer.initial()) for layer in layers]


def numpy_logits(model: Seq2Seq, source: Any, target: Any, seen: Any = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Logits and alignments of a source without padding, of which attention may look at the steps `seen`."""
    ys, last = numpy_encode(model, source)
    values, states = ys[seen], numpy_bridge(model, last)
    decoder, attentional = model.decoder, np.zeros(A)
    rows, alignments = [], []
    for token in np.asarray(target):
        e, alignment = np.asarray(model.target_embedding)[token], np.zeros(0)
        if isinstance(decoder, LuongDecoder):
            states, y = numpy_layers(decoder.recurrence, states, np.concatenate([e, attentional]))
            context, alignment = numpy_attend(decoder.score, y, values)
            features = attentional = np.tanh(np.concatenate([context, y]) @ np.asarray(decoder.attentional_weight))
        else:
            context = np.concatenate(last)
            if isinstance(decoder, BahdanauDecoder):
                context, alignment = numpy_attend(decoder.score, states[-1][0], values)
            states, y = numpy_layers(decoder.recurrence, states, np.concatenate([e, context]))
            features = np.asarray(getattr(decoder, "readout", np.asarray)(np.concatenate([y, context, e])))
        rows.append(np.asarray(model.output_weight) @ features + model.output_bias)
        alignments.append(alignment)
    return np.stack(rows), np.stack(alignments)


def assert_close(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_alignments_are_those_of_the_equations(name):
    model = build(name)
    padded = jnp.concatenate([SOURCE, jnp.array([-7, 99])])  # what stands in the padding is no token at all
    logits, alignments = forced(model, padded, TARGET, len(SOURCE))
    by_hand, weights = numpy_logits(model, SOURCE, TARGET)
    assert_close(logits, by_hand)
    if name in WITH_ATTENTION:
        assert_close(alignments[:, : len(SOURCE)], weights)
        assert not alignments[:, len(SOURCE) :].any()
    else:
        assert alignments is None


@pytest.mark.parametrize(
    "name", ["bahdanau_additive", "bahdanau_general", "bahdanau_deep", "context_stack"]
)  # which have a run of their own
def test_a_step_at_a_time_is_teacher_forcing(name):
    model = build(name)

    @jax.jit
    def stepped(model: Seq2Seq) -> Any:
        step, state, _ = model.decoding(SOURCE)
        return jax.lax.scan(lambda state, token: (lambda a, *b: (a, b))(*step(state, token)), state, TARGET)[1]

    logits, alignments = stepped(model)
    expected, weights = forced(model, SOURCE, TARGET)
    assert_close(logits, expected)
    if name in WITH_ATTENTION:
        assert_close(alignments, weights)


def gradient_of_logits(model: Seq2Seq, source: Any, length: Any, mask: Any = None) -> Any:
    def loss(model: Seq2Seq) -> Any:
        logits, _ = model.logits(source, TARGET, length=length, mask=mask)
        return jnp.sum(logits * jnp.cos(jnp.arange(logits.size, dtype=F64)).reshape(logits.shape))

    return jax.grad(loss)(model)


def test_the_gradient_of_all_of_time_is_that_of_the_steps(monkeypatch):
    fast = jax.jit(lambda model: gradient_of_logits(model, SOURCE, 3))(build("bahdanau_additive"))
    monkeypatch.setattr(BahdanauDecoder, "run", rnnjax.AbstractDecoder.run)
    slow = jax.jit(lambda model: gradient_of_logits(model, SOURCE, 3))(build("bahdanau_additive"))
    jax.tree.map(assert_close, fast, slow)


def test_attention_to_one_step_is_the_plain_context():
    attentive = build("bahdanau_additive")
    decoder = ContextDecoder(attentive.decoder.recurrence)
    plain = eqx.tree_at(lambda model: model.decoder, attentive, decoder)
    for source, length in ((SOURCE[:1], None), (SOURCE, 1)):
        logits, alignments = forced(attentive, source, TARGET, length)
        assert_close(logits, forced(plain, source, TARGET, length)[0])
        assert_close(alignments, np.eye(1, len(source)).repeat(len(TARGET), 0))


# What is masked, and what is empty


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot"])
def test_a_mask_hides_steps_from_attention_and_not_from_the_encoder(name):
    mask = jnp.array([True, False, True, True, False])
    logits, alignments = forced(build(name), SOURCE, TARGET, None, mask)
    by_hand, weights = numpy_logits(build(name), SOURCE, TARGET, np.asarray(mask))
    assert_close(logits, by_hand)
    assert_close(alignments[:, np.asarray(mask)], weights)
    assert not alignments[:, ~np.asarray(mask)].any()


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot", "context"])
def test_an_empty_source_is_a_context_of_zeros(name):
    model = build(name)
    by_hand, _ = numpy_logits(model, SOURCE[:0], TARGET)
    for source in (SOURCE, SOURCE[:0]):
        logits, alignments = forced(model, source, TARGET, 0)
        assert_close(logits, by_hand)
        assert alignments is None or not alignments.any()
    gradient = jax.jit(lambda model, length: gradient_of_logits(model, SOURCE, length))(model, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot"])
def test_a_source_all_masked_is_a_context_of_zeros(name):
    model, nothing = build(name), jnp.zeros(len(SOURCE), bool)
    logits, alignments = forced(model, SOURCE, TARGET, None, nothing)
    assert_close(logits, numpy_logits(model, SOURCE, TARGET, slice(0))[0])
    assert not alignments.any()
    gradient = jax.jit(lambda model, mask: gradient_of_logits(model, SOURCE, None, mask))(model, nothing)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "score", [additive(M), General(M, M, key=KEY, dtype=F64), Dot()], ids=lambda s: type(s).__name__
)
def test_nan_that_is_masked_changes_neither_context_nor_gradient(score):
    def context(score: Any, query: Any, values: Any) -> Any:
        return (rnnjax.attend(score, query, rnnjax.remember(score, values, mask))[0] * jnp.arange(M, dtype=F64)).sum()

    query, values = jax.random.normal(KEY, (M,), F64), jax.random.normal(KEY, (4, M), F64)
    mask = jnp.array([True, False, True, False])
    both = jax.jit(jax.value_and_grad(context, (0, 1, 2)))
    bad = values.at[1].set(jnp.nan).at[3].set(jnp.inf)
    jax.tree.map(np.testing.assert_array_equal, both(score, query, bad), both(score, query, values))
    assert np.isfinite(both(score, query, bad)[0])


def test_weights_of_large_scores_are_finite_and_those_of_16_bits_in_32():
    values = jnp.eye(M, dtype=jnp.bfloat16)[:3]
    query = jnp.zeros(M, jnp.float32).at[1].set(30000.0)
    context, weights = rnnjax.attend(Dot(), query, rnnjax.remember(Dot(), values, jnp.ones(3, bool)))
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(weights, [0, 1, 0])


# Scheduled sampling


@jax.jit
def scheduled(model: Seq2Seq, share: Any, key: Any) -> Any:
    return model.logits(SOURCE, TARGET, teacher_forcing=share, key=key)


@pytest.mark.parametrize("name", ["bahdanau_additive", "luong_dot", "context"])
def test_without_teacher_forcing_the_likeliest_token_is_fed(name):
    model, fed = build(name), [START]
    for _ in TARGET[1:]:
        logits = numpy_logits(model, SOURCE, fed)[0]
        fed.append(int(logits[-1].argmax()))
    assert fed != TARGET.tolist()
    free = jax.jit(lambda model: model.logits(SOURCE, TARGET, teacher_forcing=0))(model)[0]
    assert_close(free, numpy_logits(model, SOURCE, fed)[0])
    np.testing.assert_array_equal(scheduled(model, 0.0, KEY)[0], free)
    assert_close(scheduled(model, 1.0, KEY)[0], forced(model, SOURCE, TARGET)[0])


def test_a_share_of_the_tokens_is_forced_and_each_sequence_draws_its_own():
    model = build("bahdanau_additive")
    many = jax.jit(jax.vmap(lambda key: model.logits(SOURCE, TARGET[:2], teacher_forcing=0.3, key=key)[0][1]))
    seconds = np.asarray(many(jax.random.split(KEY, 400)))
    likeliest = int(forced(model, SOURCE, TARGET[:1])[0][0].argmax())
    options = [numpy_logits(model, SOURCE, [START, token])[0][1] for token in (int(TARGET[1]), likeliest)]
    is_forced, is_free = (np.abs(seconds - option).max(1) < 1e-10 for option in options)
    np.testing.assert_array_equal(is_forced, ~is_free)
    assert is_forced.mean() == pytest.approx(0.3, abs=0.08)


# The loss


BATCH = Pairs(
    jnp.stack([SOURCE, SOURCE[::-1], SOURCE]),
    jnp.array([5, 2, 0]),
    jnp.stack([jnp.array([START, 5, 3, END]), jnp.array([START, 4, END, 0]), jnp.array([START, END, 0, 0])]),
    jnp.array([4, 3, 2]),
)


def littered() -> Pairs:
    """The same batch, with what is no token in its padding."""
    in_source = np.arange(5) < np.asarray(BATCH.source_length)[:, None]
    in_target = np.arange(4) < np.asarray(BATCH.target_length)[:, None]
    return BATCH._replace(source=jnp.where(in_source, BATCH.source, -3), target=jnp.where(in_target, BATCH.target, 77))


@jax.jit
def loss_and_gradient(model: Seq2Seq, batch: Any, key: Any = None) -> Any:
    return jax.value_and_grad(lambda model: seq2seq_loss(model, None, batch, key)[0])(model)


def test_loss_is_the_mean_cross_entropy_of_the_valid_tokens():
    model, losses = build("luong_additive"), []
    for source, length, target, end in zip(*map(np.asarray, BATCH), strict=True):
        logits = numpy_logits(model, source[:length], target[: end - 1])[0]
        normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-row[token] for row, token in zip(normalised, target[1:end], strict=True)]
    loss, gradient = loss_and_gradient(model, BATCH)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-12)
    jax.tree.map(np.testing.assert_array_equal, loss_and_gradient(model, littered()), (loss, gradient))


def test_tokens_may_come_in_few_bits():
    """Where the vocabulary's size, or what is said and fed, does not fit into them."""
    large = filled(lambda: Seq2Seq(300, 300, encoder(), DECODERS["context"](), key=KEY))
    large = eqx.tree_at(lambda model: model.output_bias, large, jnp.arange(300.0) * 100)  # says 299
    few = BATCH._replace(source=BATCH.source.astype("uint8"), target=BATCH.target.astype("uint8"))
    losses = [seq2seq_loss(large, None, batch, None, teacher_forcing=0)[0] for batch in (BATCH, few)]
    assert losses[0] == losses[1]


def test_attention_asks_the_topmost_layer_that_has_a_state():
    network = rnnjax.Stack([stack(D + M), rnnjax.TimeDistributed(jnp.tanh, 5, dtype=F64)])
    state = filled(network.initial)
    np.testing.assert_array_equal(rnnjax.hidden(state), state[0][1].h)
    model = filled(lambda: Seq2Seq(V, W, encoder(), BahdanauDecoder(network, additive(5)), key=KEY))
    assert_close(forced(model, SOURCE, TARGET)[1].sum(1), np.ones(4))


def test_loss_of_no_tokens_is_zero():
    empty = BATCH._replace(target_length=jnp.array([1, 0, 1], jnp.uint8))
    loss, gradient = loss_and_gradient(build("luong_additive"), empty)
    assert loss == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_dropout_differs_between_sequences_and_ends_with_the_key():
    model = build("bahdanau_additive", 0.5)
    first, second = jax.jit(jax.vmap(lambda key: model.logits(SOURCE, TARGET, key=key)[0]))(jax.random.split(KEY, 2))
    assert not np.array_equal(first, second)
    assert_close(forced(model, SOURCE, TARGET)[0], numpy_logits(model, SOURCE, TARGET)[0])


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


@partial(jax.jit, static_argnums=(2, 3))
@partial(jax.vmap, in_axes=(0, 0, None, None, None, None))
def beams(logits: Any, alignments: Any, width: int, max_length: int, alpha: Any, beta: Any) -> Any:
    return beam_search(
        table_step(logits, alignments),
        jnp.asarray(-1),
        width=width,
        start=START,
        end=END,
        max_length=max_length,
        length_penalty=alpha,
        coverage_penalty=beta,
    )


def rows(found: Any) -> list[rnnjax.Hypothesis]:
    """A batch of hypotheses, one by one."""
    return [jax.tree.map(lambda leaf, row=row: np.asarray(leaf)[row], found) for row in range(len(found.length))]


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


def said(found: rnnjax.Hypothesis) -> tuple[int, ...]:
    return tuple(found.tokens.tolist()[: int(found.length)])


PENALTIES = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.5), (0.7, 0.4)]


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_beam_that_holds_all_sequences_finds_the_best_of_them(penalties):
    few = [0, 2, 3]  # 15 sequences of up to 3 tokens, and a beam of 16
    drawn = [tables(seed, 16, 3, few) for seed in range(6)]
    found = beams(*map(np.stack, zip(*drawn, strict=True)), 16, 3, *penalties)
    for one, table in zip(rows(found), drawn, strict=True):
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


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_narrow_beam_keeps_the_likeliest_and_what_has_ended(width):
    drawn = [tables(seed, 5, 4) for seed in range(20)]
    stacked = list(map(np.stack, zip(*drawn, strict=True)))
    for penalties in ((0.0, 0.0), (0.8, 0.5)):
        found = rows(beams(*stacked, width, 4, *penalties))
        for one, table in zip(found, drawn, strict=True):
            assert said(one) == numpy_beam(*table, width, 4, *penalties)
            assert float(one.score) == pytest.approx(rescore(said(one), *table, *penalties), rel=1e-12)
        assert len({int(one.length) for one in found}) > 1


@pytest.mark.parametrize("name", ["luong_dot", "context"])
def test_a_beam_of_one_is_greedy(name):
    @jax.jit
    def both(model: Seq2Seq, sources: Any) -> Any:
        def one(source: Any) -> Any:
            step, state, mask = model.decoding(source, length=4)
            options = {"start": START, "end": END, "max_length": 6}
            return greedy(step, state, **options), beam_search(step, state, width=1, mask=mask, **options)

        return jax.vmap(one)(sources)

    likeliest, first = both(build(name), jax.random.randint(KEY, (10, 5), 0, V))
    jax.tree.map(assert_close, first, likeliest)
    assert len({tuple(tokens) for tokens in likeliest.tokens.tolist()}) > 1


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


def test_the_score_of_a_beam_is_that_of_its_tokens_fed_to_the_model():
    model, mask = build("bahdanau_additive"), jnp.array([True, True, False, True, True])
    alpha, beta = 0.9, 0.3

    @jax.jit
    def translate(model: Seq2Seq, source: Any, length: Any) -> Any:
        step, state, seen = model.decoding(source, length=length, mask=mask)
        found = beam_search(
            step, state, width=4, start=START, end=END, max_length=5,
            length_penalty=alpha, coverage_penalty=beta, mask=seen,
        )  # fmt: skip
        return found, model.logits(
            source, jnp.concatenate([jnp.array([START]), found.tokens[:-1]]), length=length, mask=mask
        )

    sources = jax.random.randint(KEY, (6, 5), 0, V)
    found, (logits, alignments) = jax.vmap(translate, (None, 0, None))(model, sources, 4)
    for row in range(6):
        n = int(found.length[row])
        tokens, scores = np.asarray(found.tokens[row])[:n], np.asarray(logits[row])[:n]
        total = (scores[np.arange(n), tokens] - np.log(np.exp(scores).sum(1))).sum()
        covered = np.asarray(alignments[row])[:n].sum(0)[[0, 1, 3]]
        expected = total / ((5 + n) / 6) ** alpha + beta * np.log(np.minimum(covered, 1)).sum()
        assert float(found.score[row]) == pytest.approx(expected, rel=1e-11)
        assert_close(found.alignments[row, :n], alignments[row, :n])
        assert not found.alignments[row, n:].any()


def test_search_ends_with_its_last_hypothesis():
    calls = []

    def step(state: Any, token: Any) -> Any:
        jax.debug.callback(lambda token: calls.append(int(token)), token)
        return state + 1, jnp.where(state == 1, jnp.array([0.0, 0.0, 9.0]), jnp.array([9.0, 0.0, -99.0])), None

    found = greedy(step, jnp.asarray(0), start=0, end=2, max_length=50)
    jax.effects_barrier()
    assert (said(found), calls, found.alignments) == ((0, 2), [0, 0], None)


def test_draws_have_the_frequencies_of_the_model_at_that_temperature():
    logits = jnp.array([0.0, -1.0, 1.5, 0.5])
    step = lambda state, token: (state, logits, None)  # noqa: ARG005, E731

    def draw(key: Any) -> Any:
        return sample_sequence(step, (), start=0, end=3, max_length=3, key=key, temperature=2.0)

    found = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 4000))
    weights = np.exp(np.asarray(logits) / 2)
    np.testing.assert_allclose(np.bincount(found.tokens[:, 0], minlength=4) / 4000, weights / weights.sum(), atol=0.03)
    going_on = np.asarray(found.tokens)[np.asarray(found.length) > 1][:, 1]
    assert np.bincount(going_on, minlength=4)[0] / len(going_on) == pytest.approx(
        (weights / weights.sum())[0], abs=0.03
    )
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    for tokens, length, score in list(zip(*map(np.asarray, found[:3]), strict=True))[:20]:
        assert score == pytest.approx(log_probabilities[tokens[:length]].sum(), rel=1e-12)


def test_a_language_model_is_searched_as_well():
    model = filled(lambda: rnnjax.LanguageModel(V, GRU(E, H, key=KEY, dtype=F64), key=KEY))

    def step(state: Any, token: Any) -> Any:
        state, logits = model.logits(state, token[None])
        return state, logits[0], None

    likeliest = rnnjax.sample(model, jnp.array([START]), 6, key=KEY, temperature=0.0)
    found = jax.jit(lambda: greedy(step, model.initial(), start=START, end=END, max_length=6))()
    assert list(said(found)) == likeliest.tolist()[: int(found.length)]
    wide = jax.jit(lambda: beam_search(step, model.initial(), width=V, start=START, end=END, max_length=6))()
    assert wide.score >= found.score - 1e-12


# Learning


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
        decoder = LuongDecoder(
            GRU(24, 16, key=KEY), General(16, 32, key=KEY), memory_size=32, attentional_size=16, key=KEY
        )
        return Seq2Seq(V, V, Bidirectional(GRU(8, 16, key=KEY), GRU(8, 16, key=KEY)), decoder, key=KEY)

    model = filled(reverser, by=0.3)
    fitted = rnnjax.fit(model, seq2seq_loss, batch, optax.adam(0.02), steps=200, key=KEY, progress=False).model

    @jax.jit
    def translate(source: Any, length: Any) -> Any:
        step, state, mask = fitted.decoding(source, length=length)
        return beam_search(step, state, width=3, start=START, end=END, max_length=5, mask=mask)

    held_out = batch(0)
    found = jax.vmap(translate)(jnp.asarray(held_out.source), jnp.asarray(held_out.source_length))
    assert (np.asarray(found.tokens) == held_out.target[:, 1:]).all(1).mean() > 0.9


# Misuse


def search(**options: Any) -> Any:
    return beam_search(
        table_step(*map(jnp.asarray, tables(0, 5, 2))),
        jnp.asarray(-1),
        **({"width": 2, "start": START, "end": END, "max_length": 2} | options),
    )


def plain_search(**options: Any) -> Any:
    step = lambda state, token: (state, jnp.zeros(5), None)  # noqa: ARG005, E731
    return beam_search(step, (), **({"width": 2, "start": START, "end": END, "max_length": 2} | options))


def read(source: Any = SOURCE, target: Any = TARGET, **options: Any) -> Any:
    return build("bahdanau_additive").logits(source, target, **options)


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
        score = Additive(query_size, memory_size, 6, key=KEY, dtype=F64)
        decoder = BahdanauDecoder(GRU(inputs, 4, key=KEY, dtype=F64), score)
        return Seq2Seq(vocabulary_size, W, encoder(dtype), decoder, key=KEY, **options)

    return lambda: eqx.filter_eval_shape(make)


MISUSES = {
    "unknown_source": (lambda: read(source=SOURCE.at[2].set(V)), ValueError, ["source", "from 0 to 6", "got 7"]),
    "negative_source": (lambda: read(source=SOURCE.at[2].set(-1)), ValueError, ["source", "got -1"]),
    "unknown_target": (lambda: read(target=TARGET.at[0].set(W)), ValueError, ["target", "from 0 to 7", "got 8"]),
    "floating_source": (lambda: read(source=SOURCE.astype(F64)), TypeError, ["source", "integer", "f64[5]"]),
    "batch_of_sources": (lambda: read(source=SOURCE[None]), ValueError, ["source", "[T]", "[1, 5]", "vmap"]),
    "length_over": (lambda: read(length=6), ValueError, ["length", "T=5", "6"]),
    "mask_shape": (lambda: read(mask=jnp.ones(4, bool)), ValueError, ["mask", "[5]", "bool[4]"]),
    "mask_dtype": (lambda: read(mask=jnp.ones(5)), ValueError, ["mask", "booleans", "f64[5]"]),
    "forcing_over": (lambda: read(teacher_forcing=1.5), ValueError, ["teacher_forcing", "1.5"]),
    "forcing_without_key": (lambda: read(teacher_forcing=0.5), ValueError, ["key", "teacher_forcing", "None"]),
    "beam_over": (lambda: search(width=6), ValueError, ["width", "vocabulary of 5", "6"]),
    "beam_of_none": (lambda: search(width=0), ValueError, ["width", "positive", "0"]),
    "no_length": (lambda: search(max_length=0), ValueError, ["max_length", "positive", "0"]),
    "unknown_end": (lambda: search(end=5), ValueError, ["end", "from 0 to 4", "5"]),
    "unknown_start": (lambda: search(start=-1), ValueError, ["start", "-1"]),
    "start_of_two": (lambda: search(start=jnp.array([1, 1])), TypeError, ["start", "integer"]),
    "cover_nothing": (lambda: plain_search(coverage_penalty=0.2), ValueError, ["coverage_penalty", "no alignments"]),
    "step_of_two": (
        lambda: greedy(lambda state, token: (state, token), (), start=0, end=1, max_length=2),
        ValueError,
        ["step", "(state, logits [V], alignment [S] or None)"],
    ),
    "temperature": (
        lambda: sample_sequence(None, (), start=0, end=1, max_length=2, key=KEY, temperature=0),
        ValueError,
        ["temperature", "more than 0", "greedy"],
    ),
    "query_misfit": (made(query_size=5), ValueError, ["query", "5", "4"]),
    "luong_memory_misfit": (
        lambda: eqx.filter_eval_shape(
            lambda: Seq2Seq(V, W, encoder(), luong(GRU(D + A, M + 1, key=KEY, dtype=F64), Dot(), M + 1), key=KEY)
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
        lambda: rnnjax.Bridge(rnnjax.LRU(E, H, key=KEY).initial(), GRU(E, H, key=KEY).initial(), key=KEY),
        ValueError,
        ["encoded", "real numbers", "function of your own"],
    ),
    "bridge_of_more": (
        lambda: rnnjax.Bridge(jnp.zeros(3), jnp.zeros(4), key=KEY)(jnp.zeros((2, 3))),
        ValueError,
        ["encoded", "3 numbers in all", "f64[2,3]", "vmap"],
    ),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("call", "kind", "fragments"), MISUSES.values(), ids=MISUSES)
def test_error_names_what_was_expected_and_what_came(call, kind, fragments):
    grid.assert_error(call, kind, fragments)


def test_an_unknown_token_that_is_traced_is_an_error_when_run():
    read = eqx.filter_jit(lambda model, source: model.logits(source, TARGET)[0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="source: expected tokens from 0 to 6, of a vocabulary of 7"):
        read(build("bahdanau_additive"), SOURCE.at[1].set(99))
    lose = eqx.filter_jit(lambda model, batch: jax.grad(lambda model: seq2seq_loss(model, None, batch, None)[0])(model))
    with pytest.raises(eqx.EquinoxRuntimeError, match="target: expected tokens from 0 to 7"):
        lose(build("luong_additive"), BATCH._replace(target=BATCH.target.at[1, 1].set(W)))


@pytest.mark.parametrize("name", ["bahdanau", "luong", "context"])
def test_a_model_of_16_bits_scores_in_32(name):
    cell = lambda inputs, size: GRU(inputs, size, key=KEY, dtype=jnp.bfloat16)  # noqa: E731
    score = lambda: Additive(4, H, 6, key=KEY, dtype=jnp.bfloat16)  # noqa: E731
    decoders = {
        "bahdanau": lambda: BahdanauDecoder(cell(D + H, 4), score()),
        "luong": lambda: LuongDecoder(cell(D + A, 4), score(), memory_size=H, attentional_size=A, key=KEY),
        "context": lambda: ContextDecoder(cell(D + H, 4)),
    }
    model = filled(lambda: Seq2Seq(V, W, cell(E, H), decoders[name](), key=KEY))

    @jax.jit
    def run(model: Seq2Seq) -> Any:
        found = greedy(*model.decoding(SOURCE)[:2], start=START, end=END, max_length=3)
        return model.logits(SOURCE, TARGET), found.score

    (logits, alignments), score_of_found = run(model)
    assert logits.dtype == score_of_found.dtype == jnp.float32
    assert alignments is None or alignments.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    np.testing.assert_allclose(logits, run(wide)[0][0], atol=0.1)
