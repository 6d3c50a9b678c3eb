"""The regularised language models of Zaremba et al. and Merity et al., against their formulas with the same masks."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import oracle
import pytest

import rnnjax
from rnnjax import LSTM, Stack, TimeDistributed, random
from rnnjax.models import LanguageModel, awd_loss, batch_of_states, language_loss
from rnnjax.regularise import VariationalDropout

V, E, H, B, T = 7, 4, 5, 3, 6
F64 = jnp.float64
RATES = {"weight_dropout": 0.4, "embedding_dropout": 0.5, "output_dropout": 0.5, "activation": 2.0, "temporal": 3.0}
CHUNK = rnnjax.training.streams(np.random.default_rng(2).integers(0, V, B * T * 2 + 1), B, T)(
    1
)  # the second: no resets


@lru_cache
def key() -> Any:
    return jax.random.key(51)


def filled(model: Any) -> Any:
    """The model, or its form, with normal numbers for weights."""
    generator = np.random.default_rng(3)
    draw = lambda leaf: grid.place((0.7 * generator.normal(size=leaf.shape)).astype(leaf.dtype))  # noqa: E731
    return jax.tree.map(draw, model)


def awd_network(dtype: Any = F64) -> Stack:
    first, second = LSTM(E, H, key=key(), dtype=dtype), LSTM(H, E, key=key(), dtype=dtype)
    return Stack([VariationalDropout(first, inputs=0.4, outputs=0.3), second])


def zaremba_network() -> Stack:
    same = TimeDistributed(jax.nn.identity, E, dtype=F64)
    return Stack([same, LSTM(E, E, key=key(), dtype=F64), LSTM(E, E, key=key(), dtype=F64), same], dropout=0.4)


def forgetful_network() -> TimeDistributed:
    """One that remembers nothing: its programs are small."""
    return TimeDistributed(jnp.tanh, E, dtype=F64)


@grid.once
def build(network: Callable[[], Any], tied: bool = True) -> LanguageModel:
    return filled(LanguageModel(V, network(), key=key(), tied=tied))


def states(model: LanguageModel) -> Any:
    return filled(jax.eval_shape(partial(batch_of_states, model, B)))


@lru_cache
def compiled(loss: Callable[..., Any], **rates: float) -> Callable[..., Any]:
    return jax.jit(partial(loss, **rates))


def run(loss: Callable[..., Any], model: LanguageModel, key: Any, **rates: float) -> Any:
    """The loss and the states after the chunk, as arrays of NumPy."""
    return jax.tree.map(np.asarray, compiled(loss, **rates)(model, states(model), CHUNK, key))


# The formulas, in NumPy


def kept(key: Any, rate: float, shape: tuple[int, ...]) -> np.ndarray:
    """A mask, scaled: `jax.random.bernoulli`, as NumPy draws it."""
    return (random.uniform(key, shape, F64) < 1 - rate) / (1 - rate)


def cross_entropy(model: LanguageModel, ys: np.ndarray, targets: np.ndarray) -> float:
    weight = np.asarray(model.embedding.weight if model.output.weight is None else model.output.weight)
    logits = ys @ weight.T + np.asarray(model.output.bias)
    normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -normalised[np.arange(T), targets].mean()


def layer_keys(key: Any, number: int) -> Any:
    """Of layer `number` of a stack: what drops its inputs, and what is its own."""
    return random.split(jax.random.fold_in(key, number), 2)


def last_of(state: Any, stream: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(leaf)[stream] for leaf in state)


def numpy_zaremba(model: LanguageModel, state: Any, key: Any, rate: float = 0.4) -> float:
    losses = []
    for stream, key_of_stream in enumerate(random.split(key, B)):
        xs = np.asarray(model.embedding.weight)[CHUNK.inputs[stream]]
        for number in (1, 2):
            xs = xs * kept(layer_keys(key_of_stream, number)[0], rate, xs.shape)
            _, xs = oracle.run(model.network.layers[number], last_of(state[number], stream), xs)
        xs = xs * kept(layer_keys(key_of_stream, 3)[0], rate, xs.shape)
        losses.append(cross_entropy(model, xs, CHUNK.targets[stream]))
    return float(np.mean(losses))


def masked_model(model: LanguageModel, weights_key: Any, words_key: Any) -> tuple[np.ndarray, list[LSTM]]:
    """The embedding and the cells under the masks that all streams share."""
    words = np.asarray(model.embedding.weight) * kept(words_key, RATES["embedding_dropout"], (V, 1))
    assert 0 < np.count_nonzero(words.any(1)) < V
    is_cell = lambda node: isinstance(node, LSTM)  # noqa: E731
    cells = []
    for number, leaf in enumerate(jax.tree.leaves(model, is_leaf=is_cell)):
        if is_cell(leaf):
            R = np.asarray(leaf.recurrent_weight)
            mask = kept(jax.random.fold_in(weights_key, number), RATES["weight_dropout"], R.shape)
            cells.append(eqx.tree_at(lambda cell: cell.recurrent_weight, leaf, R * mask))
    return words, cells


def penalties(left: np.ndarray, ys: np.ndarray) -> float:
    """Of the outputs that are left, and of all."""
    return 2.0 * (left**2).mean() + 3.0 * ((ys[1:] - ys[:-1]) ** 2).mean()


def numpy_awd(model: LanguageModel, state: Any, key: Any) -> tuple[float, list[np.ndarray]]:
    """The loss, and the last h of the upper layer in each stream."""
    weights_key, words_key, streams_key = random.split(key, 3)
    words, cells = masked_model(model, weights_key, words_key)
    losses, ends = [], []
    for stream, key_of_stream in enumerate(random.split(streams_key, B)):
        network_key, outputs_key = random.split(key_of_stream, 2)
        inputs_key, _, between_key, _ = random.split(layer_keys(network_key, 0)[1], 4)
        drop = lambda key, rate, size: kept(random.split(key, 1)[0], rate, (size,))  # noqa: E731
        xs = words[CHUNK.inputs[stream]] * drop(inputs_key, 0.4, E)
        _, xs = oracle.run(cells[0], last_of(state[0], stream), xs)
        last, ys = oracle.run(cells[1], last_of(state[1], stream), xs * drop(between_key, 0.3, H))
        left = ys * drop(outputs_key, RATES["output_dropout"], E)
        losses.append(cross_entropy(model, left, CHUNK.targets[stream]) + penalties(left, ys))
        ends.append(last[0])
    return float(np.mean(losses)), ends


def numpy_outputs(model: LanguageModel, state: Any) -> np.ndarray:
    """What the network puts out where nothing is dropped, [B, T, E]."""
    first, second = model.network.layers
    between = [
        oracle.run(first.layer, last_of(state[0], stream), np.asarray(model.embedding.weight)[CHUNK.inputs[stream]])[1]
        for stream in range(B)
    ]
    return np.stack([oracle.run(second, last_of(state[1], stream), xs)[1] for stream, xs in enumerate(between)])


def test_zaremba_drops_embeddings_between_layers_and_outputs():
    model = build(zaremba_network, False)
    loss, _ = run(language_loss, model, key())
    assert float(loss) == pytest.approx(numpy_zaremba(model, states(model), key()), rel=1e-12)
    assert abs(loss - numpy_zaremba(model, states(model), key(), 0.0)) > 1e-3


@pytest.mark.slow
def test_zaremba_drops_nothing_without_a_key():
    model = build(zaremba_network, False)
    expected = numpy_zaremba(model, states(model), key(), 0.0)
    assert float(run(language_loss, model, None)[0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_awd_is_its_formula_and_hands_the_states_on(tied):
    model = build(awd_network, tied)
    for each in random.split(key(), 2):
        loss, after = run(awd_loss, model, each, **RATES)
        expected, ends = numpy_awd(model, states(model), each)
        assert float(loss) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(after[1].h, ends, rtol=1e-12, atol=1e-14)


def test_without_a_key_the_penalties_stay():
    model = build(awd_network)
    ys = numpy_outputs(model, states(model))
    each = [cross_entropy(model, y, targets) + penalties(y, y) for y, targets in zip(ys, CHUNK.targets, strict=True)]
    assert float(run(awd_loss, model, None, **RATES)[0]) == pytest.approx(np.mean(each), rel=1e-12)


@pytest.mark.slow
def test_without_a_key_and_penalties_nothing_is_regularised():
    model = build(awd_network)
    quiet = run(awd_loss, model, None, **dict.fromkeys(RATES, 0.0))
    np.testing.assert_array_equal(quiet[0], run(language_loss, model, None)[0])


def test_a_dropped_word_is_learned_as_what_is_said_alone():
    """Of tied weights: the gradient of its row is that of the output weight."""
    tied = build(forgetful_network)
    untied = eqx.tree_at(
        lambda model: model.output.weight, tied, tied.embedding.weight, is_leaf=lambda leaf: leaf is None
    )
    lose = partial(awd_loss, **RATES | {"weight_dropout": 0.0})
    slope = jax.grad(lambda model, key: lose(model, (), CHUNK, key)[0])
    both = jax.jit(lambda key: [slope(model, key) for model in (tied, untied)])
    together, apart = jax.tree.map(np.asarray, both(key()))
    np.testing.assert_allclose(
        together.embedding.weight, apart.embedding.weight + apart.output.weight, rtol=1e-10, atol=1e-14
    )
    read = np.isin(np.arange(V), CHUNK.inputs)
    dropped = kept(random.split(key(), 3)[1], RATES["embedding_dropout"], (V, 1))[:, 0] == 0
    assert (dropped & read).any()
    np.testing.assert_array_equal(apart.embedding.weight.any(1), read & ~dropped)
    assert apart.output.weight.any(1).all()


def test_weights_need_a_gated_cell_unless_nothing_is_dropped_of_them():
    model = build(lambda: Stack([rnnjax.MinGRU(E, E, key=key(), dtype=F64)]))
    lose = lambda **rates: awd_loss(model, states(model), CHUNK, key(), **rates)[0]  # noqa: E731
    with pytest.raises(ValueError, match="model: expected an AbstractGatedCell in it"):
        jax.eval_shape(lose)
    assert jax.eval_shape(partial(lose, weight_dropout=0.0)).dtype == F64


MISUSES = [
    ({"weight_dropout": 1.0}, ValueError, "^weight_dropout: expected the probability of dropping"),
    ({"embedding_dropout": -0.1}, ValueError, "^embedding_dropout: expected the probability of dropping"),
    ({"output_dropout": "0.4"}, TypeError, "^output_dropout: expected the probability of dropping"),
    ({"activation": -1.0}, ValueError, "^activation: expected the weight of a penalty, 0 or more and finite, got -1.0"),
    ({"temporal": float("nan")}, ValueError, "^temporal: expected the weight of a penalty, 0 or more"),
]


@pytest.mark.parametrize(("rates", "kind", "message"), MISUSES, ids=[next(iter(row[0])) for row in MISUSES])
def test_misused(monkeypatch, rates, kind, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind, match=message):
        awd_loss(build(forgetful_network), None, CHUNK, key(), **rates)


@pytest.mark.slow
def test_a_pattern_is_learned_in_chunks():
    """Truncated BPTT in 16 bits: the states that are carried keep their dtype, and the loss falls."""
    model = LanguageModel(V, awd_network(jnp.bfloat16), key=key(), tied=True)
    chunks = rnnjax.training.streams(np.tile([0, 1, 2, 1, 3, 4, 4], 40), B, T)
    carry = jax.jit(lambda model: batch_of_states(model, B))(model)
    loss = partial(
        awd_loss, weight_dropout=0.1, embedding_dropout=0.1, output_dropout=0.1, activation=0.1, temporal=0.1
    )
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        options = {"steps": 100, "key": key(), "carry": carry, "progress": False}
        fitted = rnnjax.training.fit(model, loss, chunks, optax.adam(0.03), **options)
    judge = jax.jit(lambda model: language_loss(model, carry, chunks(0), None)[0])
    before, after = float(judge(model)), float(judge(fitted.model))
    assert before > 1.5
    assert after < 0.8
