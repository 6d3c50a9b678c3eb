"""The regularised language models of Zaremba et al. and Merity et al., against their formulas with the same masks."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import oracle
import pytest

import rnnjax
from rnnjax import LSTM, LanguageModel, Stack, TimeDistributed, VariationalDropout, awd_loss, language_loss

V, E, H, B, T = 7, 4, 5, 3, 6
KEY = jax.random.key(51)
F64 = jnp.float64
RATES = {"weights": 0.4, "words": 0.5, "outputs": 0.5, "activation": 2.0, "temporal": 3.0}
NOTHING = dict.fromkeys(RATES, 0.0)
CHUNK = rnnjax.streams(np.random.default_rng(2).integers(0, V, B * T * 2 + 1), B, T)(1)  # the second: no resets


def filled(model: Any) -> Any:
    """The model with normal numbers for weights."""
    random = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * random.normal(size=leaf.shape), leaf.dtype), model)


def awd_network(dtype: Any = F64) -> Stack:
    first, second = LSTM(E, H, key=KEY, dtype=dtype), LSTM(H, E, key=KEY, dtype=dtype)
    return Stack([VariationalDropout(first, inputs=0.4, outputs=0.3), second])


def zaremba_network() -> Stack:
    same = TimeDistributed(jax.nn.identity, E, dtype=F64)
    return Stack([same, LSTM(E, E, key=KEY, dtype=F64), LSTM(E, E, key=KEY, dtype=F64), same], dropout=0.4)


build = eqx.filter_jit(lambda network, tied: LanguageModel(V, network, key=KEY, tied=tied))
TIED, UNTIED = (filled(build(awd_network(), tied)) for tied in (True, False))
ZAREMBA = filled(build(zaremba_network(), False))


def states(model: LanguageModel) -> Any:
    return filled(rnnjax.batch_of_states(model, B))


# The formulas, in NumPy


def kept(key: Any, rate: float, shape: tuple[int, ...]) -> np.ndarray:
    """A mask, scaled."""
    return np.asarray(jax.random.bernoulli(key, 1 - rate, shape)) / (1 - rate)


def cross_entropy(model: LanguageModel, ys: np.ndarray, targets: Any) -> float:
    weight = np.asarray(model.embedding if model.output_weight is None else model.output_weight)
    logits = ys @ weight.T + np.asarray(model.output_bias)
    normalised = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -normalised[np.arange(T), np.asarray(targets)].mean()


def layer_keys(key: Any, number: int) -> Any:
    """Of layer `number` of a stack: what drops its inputs, and what is its own."""
    return jax.random.split(jax.random.fold_in(key, number))


def last_of(state: Any, stream: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(leaf)[stream] for leaf in state)


def numpy_zaremba(model: LanguageModel, state: Any, key: Any) -> float:
    losses = []
    for stream, key_of_stream in enumerate(jax.random.split(key, B)):
        xs = np.asarray(model.embedding)[CHUNK.inputs[stream]]
        for number in (1, 2):
            xs = xs * kept(layer_keys(key_of_stream, number)[0], 0.4, xs.shape)
            _, xs = oracle.run(model.network.layers[number], last_of(state[number], stream), xs)
        xs = xs * kept(layer_keys(key_of_stream, 3)[0], 0.4, xs.shape)
        losses.append(cross_entropy(model, xs, CHUNK.targets[stream]))
    return float(np.mean(losses))


def masked_model(model: LanguageModel, weights_key: Any, words_key: Any) -> tuple[np.ndarray, list[LSTM]]:
    """The embedding and the cells under the masks that all streams share."""
    words = np.asarray(model.embedding) * kept(words_key, RATES["words"], (V, 1))
    assert 0 < np.count_nonzero(words.any(1)) < V
    is_cell = lambda node: isinstance(node, LSTM)  # noqa: E731
    cells = []
    for number, leaf in enumerate(jax.tree.leaves(model, is_leaf=is_cell)):
        if is_cell(leaf):
            R = leaf.recurrent_weight
            mask = kept(jax.random.fold_in(weights_key, number), RATES["weights"], R.shape)
            cells.append(eqx.tree_at(lambda cell: cell.recurrent_weight, leaf, R * mask))
    return words, cells


def numpy_awd(model: LanguageModel, state: Any, key: Any) -> tuple[float, list[np.ndarray]]:
    """The loss, and the last h of the upper layer in each stream."""
    weights_key, words_key, streams_key = jax.random.split(key, 3)
    words, cells = masked_model(model, weights_key, words_key)
    losses, ends = [], []
    for stream, key_of_stream in enumerate(jax.random.split(streams_key, B)):
        network_key, outputs_key = jax.random.split(key_of_stream)
        inputs_key, _, between_key, _ = jax.random.split(layer_keys(network_key, 0)[1], 4)
        drop = lambda key, rate, size: kept(jax.random.split(key, 1)[0], rate, (size,))  # noqa: E731
        xs = words[CHUNK.inputs[stream]] * drop(inputs_key, 0.4, E)
        _, xs = oracle.run(cells[0], last_of(state[0], stream), xs)
        last, ys = oracle.run(cells[1], last_of(state[1], stream), xs * drop(between_key, 0.3, H))
        left = ys * drop(outputs_key, RATES["outputs"], E)
        penalties = 2.0 * (left**2).mean() + 3.0 * ((ys[1:] - ys[:-1]) ** 2).mean()
        losses.append(cross_entropy(model, left, CHUNK.targets[stream]) + penalties)
        ends.append(last[0])
    return float(np.mean(losses)), ends


regularised = jax.jit(partial(awd_loss, **RATES))
plain = jax.jit(language_loss)


def test_zaremba_drops_embeddings_between_layers_and_outputs():
    loss, _ = plain(ZAREMBA, states(ZAREMBA), CHUNK, KEY)
    assert float(loss) == pytest.approx(numpy_zaremba(ZAREMBA, states(ZAREMBA), KEY), rel=1e-12)
    assert loss != plain(ZAREMBA, states(ZAREMBA), CHUNK, None)[0]


@pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
def test_awd_is_its_formula_and_hands_the_states_on(model):
    for key in jax.random.split(KEY, 2):
        loss, after = regularised(model, states(model), CHUNK, key)
        expected, ends = numpy_awd(model, states(model), key)
        assert float(loss) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(after[1].h, ends, rtol=1e-12, atol=1e-14)


def test_without_a_key_the_penalties_stay_and_without_them_nothing_does():
    arguments = TIED, states(TIED), CHUNK, None
    quiet = jax.jit(partial(awd_loss, **NOTHING))
    np.testing.assert_array_equal(quiet(*arguments)[0], plain(*arguments)[0])
    ys = jax.vmap(lambda state, tokens: TIED.outputs(state, tokens)[1])(arguments[1], jnp.asarray(CHUNK.inputs))
    ys = np.asarray(ys)
    penalties = 2.0 * (ys**2).mean() + 3.0 * ((ys[:, 1:] - ys[:, :-1]) ** 2).mean()
    assert float(regularised(*arguments)[0]) == pytest.approx(float(plain(*arguments)[0]) + penalties, rel=1e-12)


def test_a_dropped_word_is_learned_as_what_is_said_alone():
    """Of tied weights: the gradient of its row is that of the output weight."""
    both = jax.jit(lambda model: jax.grad(lambda model: regularised(model, states(TIED), CHUNK, KEY)[0])(model))
    untied = eqx.tree_at(lambda model: model.output_weight, TIED, TIED.embedding, is_leaf=lambda leaf: leaf is None)
    together, apart = both(TIED), both(untied)
    np.testing.assert_allclose(together.embedding, apart.embedding + apart.output_weight, rtol=1e-10, atol=1e-14)
    read = np.isin(np.arange(V), CHUNK.inputs)
    dropped = kept(jax.random.split(KEY, 3)[1], RATES["words"], (V, 1))[:, 0] == 0
    assert (dropped & read).any()
    np.testing.assert_array_equal(np.asarray(apart.embedding).any(1), read & ~dropped)
    assert np.asarray(apart.output_weight).any(1).all()


def test_weights_need_a_gated_cell_unless_nothing_is_dropped_of_them():
    model = filled(build(Stack([rnnjax.MinGRU(E, E, key=KEY, dtype=F64)]), True))
    lose = lambda **rates: awd_loss(model, states(model), CHUNK, KEY, **rates)[0]  # noqa: E731
    with pytest.raises(ValueError, match="model: expected an AbstractGatedCell in it"):
        jax.eval_shape(lose)
    assert jax.eval_shape(partial(lose, weights=0.0)).dtype == F64


MISUSES = [
    ({"weights": 1.0}, ValueError, "^weights: expected the probability of dropping"),
    ({"words": -0.1}, ValueError, "^words: expected the probability of dropping"),
    ({"outputs": "0.4"}, TypeError, "^outputs: expected the probability of dropping"),
    ({"activation": -1.0}, ValueError, "^activation: expected the weight of a penalty, 0 or more and finite, got -1.0"),
    ({"temporal": float("nan")}, ValueError, "^temporal: expected the weight of a penalty, 0 or more"),
]


@pytest.mark.parametrize(("rates", "kind", "message"), MISUSES, ids=[next(iter(row[0])) for row in MISUSES])
def test_misused(monkeypatch, rates, kind, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(kind, match=message):
        awd_loss(TIED, None, CHUNK, KEY, **rates)


def test_a_pattern_is_learned_in_chunks():
    """Truncated BPTT in 16 bits: the states that are carried keep their dtype, and the loss falls."""
    model = build(awd_network(jnp.bfloat16), True)
    pattern = np.tile([0, 1, 2, 1, 3, 4, 4], 40)
    chunks, carry = rnnjax.streams(pattern, B, T), rnnjax.batch_of_states(model, B)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        fitted = rnnjax.fit(
            model, partial(awd_loss, weights=0.1, words=0.1, outputs=0.1, activation=0.1, temporal=0.1), chunks,
            optax.adam(0.03), steps=100, key=KEY, carry=carry, progress=False,
        )  # fmt: skip
    before, after = (float(plain(each, carry, chunks(0), None)[0]) for each in (model, fitted.model))
    assert before > 1.5
    assert after < 0.8
