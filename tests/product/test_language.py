"""Language models: logits, loss, tied weights, and sampling token by token."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import LanguageModel, batch_of_states, language_loss, sample, streams

V, E, H, B, T = 5, 4, 6, 3, 7
KEY = jax.random.key(21)
PROMPT = jnp.array([3, 0, 4])


def cell(hidden_size: int = H, dtype: Any = jnp.float64) -> rnnjax.GRU:
    return rnnjax.GRU(E, hidden_size, key=KEY, dtype=dtype)


@eqx.filter_jit
def build(hidden_size: int, tied: bool) -> LanguageModel:
    """A model whose output bias is not zero."""
    model = LanguageModel(V, cell(hidden_size), key=KEY, tied=tied)
    return eqx.tree_at(lambda model: model.output_bias, model, jnp.linspace(-1.0, 1.0, V))


MODEL, TIED = build(H, False), build(E, True)
CHUNK = streams(np.random.default_rng(2).integers(0, V, B * T + 1), B, T)(0)


def states() -> rnnjax.Hidden:
    return rnnjax.Hidden(0.5 * jax.random.normal(jax.random.key(1), (B, H)))


@jax.jit
def loss_and_states(model: LanguageModel, state: Any, chunk: Any) -> tuple[jax.Array, Any]:
    return language_loss(model, state, chunk, None)


# Logits and loss


@pytest.mark.parametrize("length", [0, 1, T])
def test_logits_are_one_row_of_scores_per_token(length):
    state, logits = MODEL.logits(MODEL.initial(), jnp.zeros(length, int))
    assert (logits.shape, logits.dtype, state.h.shape) == ((length, V), jnp.float64, (H,))


@pytest.mark.parametrize("token", [-1, V])
def test_a_token_that_is_unknown_is_not_a_number(token):
    _, logits = MODEL.logits(MODEL.initial(), jnp.array([3, token, 1]))
    assert jnp.isfinite(logits[0]).all()
    assert jnp.isnan(logits[1:]).all()
    loss, _ = loss_and_states(MODEL, states(), CHUNK._replace(targets=np.full((B, T), token)))
    assert jnp.isnan(loss)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
def test_tokens_may_come_in_few_bits(dtype):
    """Where the vocabulary's size, or what is said, does not fit into them."""
    model = jax.tree.map(jnp.zeros_like, LanguageModel(300, cell(), key=KEY))
    model = eqx.tree_at(lambda model: model.output_bias, model, jnp.arange(300.0))
    few = CHUNK._replace(inputs=CHUNK.inputs.astype(dtype), targets=CHUNK.targets.astype(dtype))
    assert language_loss(model, states(), few, None)[0] == language_loss(model, states(), CHUNK, None)[0]
    assert sample(model, PROMPT.astype(dtype), 2, key=KEY, temperature=0.0).tolist() == [299, 299]


@pytest.mark.usefixtures("annotations_unchecked")
def test_tokens_are_integers():
    with pytest.raises(TypeError, match=r"tokens: expected integers, got f64\[3\]"):
        MODEL.logits(MODEL.initial(), PROMPT.astype(float))
    with pytest.raises(TypeError, match=r"labels: expected integers, got f64\[2\]"):
        rnnjax.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))


def test_a_model_is_of_the_dtype_of_its_network():
    model = LanguageModel(V, cell(dtype=jnp.bfloat16), key=KEY)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {"bfloat16"}
    assert model.logits(model.initial(), PROMPT)[1].dtype == jnp.float32  # eight bits are too few for a loss


def test_logits_are_embedding_network_and_output():
    state = rnnjax.Hidden(states().h[0])
    last, logits = MODEL.logits(state, PROMPT)
    expected, ys = rnnjax.unroll(MODEL.network, state, MODEL.embedding[PROMPT])
    np.testing.assert_array_equal(last.h, expected.h)
    by_hand = np.stack([MODEL.output_weight @ y + MODEL.output_bias for y in ys])
    np.testing.assert_allclose(logits, by_hand, rtol=1e-12, atol=1e-14)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """By hand, from probabilities [N, V]."""
    scores = np.exp(np.asarray(logits))
    probabilities = scores / scores.sum(-1, keepdims=True)
    return -np.mean([np.log(row[target]) for row, target in zip(probabilities, targets, strict=True)])


@pytest.mark.parametrize("at", [None, 0, 4], ids=["no_reset", "first", "inside"])
def test_loss_is_the_mean_cross_entropy_in_nats(at):
    resets = np.zeros((B, T), bool)
    resets[1, at if at is not None else 0] = at is not None
    loss, last = loss_and_states(MODEL, states(), CHUNK._replace(resets=resets))
    rows, ends = [], []
    for stream in range(B):
        state, logits = rnnjax.Hidden(states().h[stream]), []
        for token, reset in zip(CHUNK.inputs[stream], resets[stream], strict=True):
            state, (row,) = one_token(MODEL.initial() if reset else state, token[None])
            logits.append(row)
        rows.extend(logits)
        ends.append(state.h)
    assert float(loss) == pytest.approx(cross_entropy(rows, CHUNK.targets.ravel()), rel=1e-12)
    np.testing.assert_allclose(last.h, ends, rtol=1e-12, atol=1e-14)


@jax.jit
def one_token(state: rnnjax.Hidden, token: jax.Array) -> tuple[rnnjax.Hidden, jax.Array]:
    return MODEL.logits(state, token)


def test_know_nothing_lose_the_logarithm_of_the_vocabulary():
    blank = jax.tree.map(jnp.zeros_like, MODEL)
    assert float(loss_and_states(blank, states(), CHUNK)[0]) == pytest.approx(np.log(V))


def test_batch_of_states_is_the_initial_state_many_times():
    model = LanguageModel(V, rnnjax.LSTM(E, H, key=KEY, learn_initial=True), key=KEY)
    model = eqx.tree_at(lambda model: model.network.start.c, model, jnp.arange(1.0 * H, dtype=jnp.float32))
    many = batch_of_states(model, 3)
    np.testing.assert_array_equal(many.c, np.tile(np.arange(H), (3, 1)))
    np.testing.assert_array_equal(many.h, np.zeros((3, H)))


def test_dropout_differs_between_streams_and_ends_with_the_key():
    layers = [cell(), rnnjax.MinGRU(H, H, key=KEY, dtype=jnp.float64)]
    model = LanguageModel(V, rnnjax.Stack(layers, dropout=0.5), key=KEY)
    alike = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), CHUNK)
    loss = jax.jit(lambda key: language_loss(model, batch_of_states(model, B), alike, key))
    dropped, whole = loss(KEY)[1][1].h, loss(None)[1][1].h
    assert not np.array_equal(dropped[0], dropped[1])
    np.testing.assert_array_equal(whole, np.broadcast_to(whole[0], whole.shape))
    assert loss(KEY)[0] == loss(KEY)[0] != loss(jax.random.key(22))[0]


# Tied weights


def test_tied_weights_are_one_array():
    assert TIED.output_weight is None
    assert sorted(leaf.shape for leaf in jax.tree.leaves(TIED) if V in leaf.shape) == [(V,), (V, E)]
    state, logits = TIED.logits(TIED.initial(), PROMPT)
    np.testing.assert_allclose(logits[-1], TIED.embedding @ state.h + TIED.output_bias, rtol=1e-12, atol=1e-14)


def test_tied_gradient_is_the_sum_of_both_uses():
    untied = eqx.tree_at(lambda model: model.output_weight, TIED, TIED.embedding, is_leaf=lambda leaf: leaf is None)
    gradient = jax.jit(jax.grad(lambda model: language_loss(model, batch_of_states(model, B), CHUNK, None)[0]))
    one, two = gradient(TIED), gradient(untied)
    assert jnp.abs(two.embedding).max() > 1e-3 < jnp.abs(two.output_weight).max()
    np.testing.assert_allclose(one.embedding, two.embedding + two.output_weight, rtol=1e-10, atol=1e-14)


def test_tied_needs_an_output_of_the_size_of_the_input():
    with pytest.raises(ValueError, match=rf"^tied: expected an output size that is the input size {E}, got {H}$"):
        LanguageModel(V, cell(), key=KEY, tied=True)


# Sampling


def scores_along(model: LanguageModel, tokens: jax.Array) -> np.ndarray:
    """The logits from which each token after the prompt was drawn, the whole of it read anew."""
    _, logits = model.logits(model.initial(), jnp.concatenate([PROMPT, tokens.astype(PROMPT.dtype)]))
    return np.asarray(logits)[len(PROMPT) - 1 : -1]


def lively() -> LanguageModel:
    """A model with weights so large that what it has read matters, and greed does not repeat one token for ever."""
    return jax.tree.map(lambda leaf: 3 * leaf, LanguageModel(V, cell(), key=jax.random.key(0)))


def memoryless(logits: Any) -> LanguageModel:
    """A model with the same next token's distribution whatever it has read."""
    blank = jax.tree.map(jnp.zeros_like, MODEL)
    return eqx.tree_at(lambda model: model.output_bias, blank, jnp.asarray(logits, float))


def test_same_key_same_tokens():
    draw = lambda key: sample(MODEL, PROMPT, 30, key=key).tolist()  # noqa: E731
    assert draw(KEY) == draw(KEY) != draw(jax.random.key(22))
    assert set(draw(KEY)) <= set(range(V))


def test_greedy_takes_the_likeliest_after_the_whole_prefix():
    model = lively()
    tokens = sample(model, PROMPT, 30, key=KEY, temperature=0.0)
    assert tokens.tolist() == scores_along(model, tokens).argmax(-1).tolist()
    assert len(set(tokens.tolist())) > 2
    assert tokens.tolist() == sample(model, PROMPT, 30, key=jax.random.key(22), temperature=0.0).tolist()
    assert tokens.tolist() == sample(model, PROMPT, 30, key=KEY, top_k=1).tolist()


def test_top_k_draws_from_the_k_likeliest():
    tokens = sample(MODEL, PROMPT, 200, key=KEY, top_k=2)
    likeliest = np.argsort(scores_along(MODEL, tokens), -1)[:, -2:]
    kept = [row.tolist().index(token) for row, token in zip(likeliest, tokens.tolist(), strict=True)]
    assert set(kept) == {0, 1}


@pytest.mark.parametrize("top_k", [1, 2, V])
def test_top_k_draws_from_k_tokens_where_all_are_alike(top_k):
    tokens = sample(memoryless(np.zeros(V)), PROMPT, 200, key=KEY, top_k=top_k)
    assert set(tokens.tolist()) == set(range(top_k))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 3])
def test_frequencies_are_the_probabilities_at_that_temperature(temperature, top_k):
    logits = np.array([0.0, -1.0, 1.5, 0.5, -0.5])
    tokens = sample(memoryless(logits), PROMPT, 5000, key=KEY, temperature=temperature, top_k=top_k)
    weights = np.exp(logits / temperature)
    weights[np.argsort(logits)[: V - (top_k or V)]] = 0
    np.testing.assert_allclose(np.bincount(tokens, minlength=V) / 5000, weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize("length", [0, 1])
def test_few_tokens(length):
    assert sample(MODEL, PROMPT, length, key=KEY).shape == (length,)


class Counting(rnnjax.GRU):
    """A GRU that knows how often it was traced."""

    traced = 0

    def pointwise(self, *arguments: Any) -> rnnjax.Hidden:
        Counting.traced += 1
        return super().pointwise(*arguments)


def test_sampling_is_compiled_once():
    model = LanguageModel(V, Counting(E, H, key=KEY, dtype=jnp.float64), key=KEY)
    sample(model, PROMPT, 4, key=KEY)
    once = Counting.traced
    for seed in (1, 2):
        sample(jax.tree.map(jnp.sin, model), (PROMPT + seed) % V, 4, key=jax.random.key(seed))
    assert 0 < once == Counting.traced


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (PROMPT[:0], {}, r"^prompt: expected at least one token, \[P\], got \[0\]$"),
        (PROMPT[None], {}, r"^prompt: expected the tokens of one sequence, \[T\], got \[1, 3\]"),
        (PROMPT.at[1].set(V), {}, r"^prompt: expected tokens from 0 to 4, of a vocabulary of 5, got 5$"),
        (PROMPT.at[1].set(-1), {}, r"^prompt: expected tokens from 0 to 4, of a vocabulary of 5, got -1$"),
        (PROMPT, {"temperature": float("nan")}, r"^temperature: expected 0 or more, got nan$"),
        (PROMPT, {"temperature": -0.5}, r"^temperature: expected 0 or more, got -0\.5$"),
        (PROMPT, {"top_k": 0}, r"^top_k: expected from 1 to the vocabulary's 5, got 0$"),
        (PROMPT, {"top_k": V + 1}, r"^top_k: expected from 1 to the vocabulary's 5, got 6$"),
    ],
    ids=["no_prompt", "batch", "unknown", "negative", "no_temperature", "temperature", "top_k_zero", "top_k_over"],
)
def test_sampling_misused(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        sample(MODEL, prompt, 3, key=KEY, **options)


# Learning

PATTERN = np.array([0, 1, 2, 1, 3, 4, 4])


@pytest.mark.usefixtures("promoting")
def test_a_pattern_is_learned_and_continued():
    options = {"steps": 120, "key": KEY, "carry": batch_of_states(MODEL, B), "progress": False}
    chunks = streams(np.tile(PATTERN, 30), B, T)
    fitted = rnnjax.fit(MODEL, language_loss, chunks, optax.adam(0.03), **options)
    assert loss_and_states(MODEL, states(), chunks(1))[0] > 1.0
    assert loss_and_states(fitted.model, fitted.carry, chunks(120))[0] < 0.05
    tokens = sample(fitted.model, jnp.asarray(PATTERN), 14, key=KEY, temperature=0.0)
    assert tokens.tolist() == [*PATTERN, *PATTERN]
