"""Language models: logits, loss, tied weights, and sampling token by token."""

from collections.abc import Callable
from functools import lru_cache
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
from rnnjax.models import LanguageModel, batch_of_states, language_loss, sample
from rnnjax.training import streams

V, E, H, B, T = 5, 4, 6, 3, 7
PROMPT = np.array([3, 0, 4])
CHUNK = streams(np.random.default_rng(2).integers(0, V, B * T + 1), B, T)(0)


@lru_cache
def key(seed: int = 21) -> Any:
    with jax.ensure_compile_time_eval():  # kept beyond the program that may be the first to ask
        return jax.random.key(seed)


def slow(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


def cell(hidden_size: int = H, dtype: Any = jnp.float64) -> rnnjax.GRU:
    return rnnjax.GRU(E, hidden_size, key=key(), dtype=dtype)


def each_step(function: Callable[[Any], Any] = jax.nn.identity) -> rnnjax.TimeDistributed:
    """A network that remembers nothing, where that does not matter: its programs are small."""
    return rnnjax.TimeDistributed(function, E, dtype=jnp.float64)


def with_bias(model: LanguageModel, bias: Any) -> LanguageModel:
    with jax.ensure_compile_time_eval():
        bias = grid.place(np.asarray(bias, float))
    return eqx.tree_at(lambda model: model.output.bias, model, bias)


def with_weights(function: Callable[[np.ndarray], np.ndarray], model: LanguageModel) -> LanguageModel:
    """The model with a function of each of its weights in their place."""
    return jax.tree.map(lambda leaf: grid.place(function(np.asarray(leaf))), model)


@grid.once
def build(hidden_size: int = H, tied: bool = False) -> LanguageModel:
    """A model whose output bias is not zero."""
    return with_bias(LanguageModel(V, cell(hidden_size), key=key(), tied=tied), np.linspace(-1.0, 1.0, V))


def states() -> rnnjax.Hidden:
    return rnnjax.Hidden(0.5 * np.random.default_rng(1).normal(size=(B, H)))


@lru_cache
def program(function: Callable[..., Any]) -> Callable[..., Any]:
    return eqx.filter_jit(function)


def loss_and_states(model: LanguageModel, state: Any, chunk: Any) -> Any:
    return language_loss(model, state, chunk, None)


def read(model: LanguageModel, state: Any, tokens: Any) -> Any:
    return model.logits(model.initial() if state is None else state, jnp.asarray(tokens))


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the one program of a function gives, as arrays of NumPy."""
    return jax.tree.map(np.asarray, program(function)(*arguments))


def by_form(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The forms of what comes out, whatever is known of what goes in."""
    return eqx.filter_eval_shape(lambda: function(*arguments, **options))


# The equations, in NumPy


def numpy_logits(model: LanguageModel, state: Any, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a GRU, the last h and the logits; from zeros where no state is given."""
    embedding = np.asarray(model.embedding.weight)
    start = np.zeros(model.network.hidden_size) if state is None else state
    (h,), ys = oracle.run(model.network, (start,), embedding[np.asarray(tokens)])
    weight = embedding if model.output.weight is None else np.asarray(model.output.weight)
    return h, ys @ weight.T + np.asarray(model.output.bias)


# Logits and loss


@pytest.mark.parametrize("length", [0, 1, T])
def test_logits_are_one_row_of_scores_per_token(length):
    state, logits = by_form(read, build(), None, np.zeros(length, int))
    assert (logits.shape, logits.dtype, state.h.shape) == ((length, V), jnp.float64, (H,))


@pytest.mark.parametrize("token", [-1, V])
def test_an_unknown_token_is_an_error_when_run(token):
    expected = rf"expected tokens from 0 to {V - 1}.*Give unknown words a token of their own"
    with pytest.raises(RuntimeError, match=f"tokens: {expected}"):
        run(read, build(), None, np.array([3, token, 1]))
    with pytest.raises(RuntimeError, match=f"targets: {expected}"):
        run(loss_and_states, build(), states(), CHUNK._replace(targets=np.full((B, T), token)))


def test_an_unknown_token_outside_of_jit_is_a_value_error():
    with pytest.raises(ValueError, match=f"^tokens: expected tokens from 0 to {V - 1}.*got {V}. Give unknown words"):
        build().logits((), grid.place(np.array([3, V])))


@pytest.mark.parametrize("dtype", ["uint8", slow("int8"), slow("uint16")])
def test_tokens_may_come_in_few_bits(dtype):
    """Where the vocabulary's size, or what is said, does not fit into them."""
    model = with_weights(np.zeros_like, LanguageModel(300, each_step(), key=key()))
    model = with_bias(model, np.arange(300.0))
    few = CHUNK._replace(inputs=CHUNK.inputs.astype(dtype), targets=CHUNK.targets.astype(dtype))

    @jax.jit
    def losses_and_tokens(few: Any, prompt: Any, key: Any) -> Any:
        losses = [language_loss(model, (), chunk, None)[0] for chunk in (few, CHUNK)]
        return losses, sample(model, prompt, 2, key=key, temperature=0.0)

    (one, other), tokens = losses_and_tokens(few, PROMPT.astype(dtype), key())
    assert one.tolist() == other.tolist()
    assert tokens.tolist() == [299, 299]


@pytest.mark.usefixtures("annotations_unchecked")
def test_tokens_are_integers():
    with pytest.raises(TypeError, match=r"tokens: expected integers, got f64\[3\]"):
        by_form(read, build(), None, PROMPT.astype(float))
    with pytest.raises(TypeError, match=r"labels: expected integers, got f64\[2\]"):
        by_form(rnnjax.models.cross_entropy, np.zeros((2, 3)), np.zeros(2))


def test_a_model_is_of_the_dtype_of_its_network():
    model = LanguageModel(V, cell(dtype=jnp.bfloat16), key=key())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {"bfloat16"}
    assert by_form(read, model, None, PROMPT)[1].dtype == jnp.float32  # eight bits are too few for a loss


def test_logits_are_embedding_network_and_output():
    state = states().h[0]
    last, logits = run(read, build(), rnnjax.Hidden(state), PROMPT)
    end, by_hand = numpy_logits(build(), state, PROMPT)
    np.testing.assert_allclose(last.h, end, rtol=1e-12, atol=1e-14)
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
    loss, last = run(loss_and_states, build(), states(), CHUNK._replace(resets=resets))
    rows, ends = [], []
    for stream, state in enumerate(states().h):
        for token, reset in zip(CHUNK.inputs[stream], resets[stream], strict=True):
            state, (row,) = numpy_logits(build(), None if reset else state, token[None])
            rows.append(row)
        ends.append(state)
    assert float(loss) == pytest.approx(cross_entropy(rows, CHUNK.targets.ravel()), rel=1e-12)
    np.testing.assert_allclose(last.h, ends, rtol=1e-12, atol=1e-14)


def test_know_nothing_lose_the_logarithm_of_the_vocabulary():
    blank = with_weights(np.zeros_like, build())
    assert float(run(loss_and_states, blank, states(), CHUNK)[0]) == pytest.approx(np.log(V))


def test_batch_of_states_is_the_initial_state_many_times():
    model = LanguageModel(V, rnnjax.LSTM(E, H, key=key(), learn_initial=True), key=key())
    start = grid.place(np.arange(H, dtype=np.float32))
    model = eqx.tree_at(lambda model: model.network.initial_state.c, model, start)
    many = jax.jit(lambda model: batch_of_states(model, 3))(model)
    np.testing.assert_array_equal(many.c, np.tile(np.arange(H), (3, 1)))
    np.testing.assert_array_equal(many.h, np.zeros((3, H)))


def test_dropout_differs_between_streams_and_ends_with_the_key():
    model = LanguageModel(V, rnnjax.Stack([each_step(), cell()], dropout=0.5), key=key())
    alike = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), CHUNK)

    @jax.jit
    def both(key: Any) -> Any:
        return [language_loss(model, batch_of_states(model, B), alike, key) for key in (key, None)]

    (one, (_, dropped)), (_, (_, whole)) = jax.tree.map(np.asarray, both(key()))
    assert not np.array_equal(dropped.h[0], dropped.h[1])
    np.testing.assert_array_equal(whole.h, np.broadcast_to(whole.h[0], whole.h.shape))
    assert both(key())[0][0].tolist() == one.tolist() != both(key(22))[0][0].tolist()


# Tied weights


def test_tied_weights_are_one_array():
    tied = build(E, True)
    assert tied.output.weight is None
    assert sorted(leaf.shape for leaf in jax.tree.leaves(tied) if V in leaf.shape) == [(V,), (V, E)]
    _, logits = run(read, tied, None, PROMPT)
    np.testing.assert_allclose(logits, numpy_logits(tied, None, PROMPT)[1], rtol=1e-12, atol=1e-14)


def test_tied_gradient_is_the_sum_of_both_uses():
    tied = with_bias(LanguageModel(V, each_step(jnp.tanh), key=key(), tied=True), np.linspace(-1.0, 1.0, V))
    untied = eqx.tree_at(
        lambda model: model.output.weight, tied, tied.embedding.weight, is_leaf=lambda leaf: leaf is None
    )
    gradient = jax.grad(lambda model: language_loss(model, (), CHUNK, None)[0])
    one, two = jax.tree.map(np.asarray, jax.jit(lambda *models: [gradient(model) for model in models])(tied, untied))
    assert np.abs(two.embedding.weight).max() > 1e-3 < np.abs(two.output.weight).max()
    np.testing.assert_allclose(one.embedding.weight, two.embedding.weight + two.output.weight, rtol=1e-10, atol=1e-14)


def test_tied_needs_an_output_of_the_size_of_the_input():
    with pytest.raises(
        ValueError, match=rf"^tied: expected an output size that is the input size {E}, got {H}\. Pass "
    ):
        LanguageModel(V, cell(), key=key(), tied=True)


# Sampling


def said(model: LanguageModel, length: int, seed: int = 21, **options: Any) -> list[int]:
    return sample(model, grid.place(PROMPT), length, key=key(seed), **options).tolist()


def scores_along(model: LanguageModel, tokens: list[int]) -> np.ndarray:
    """The logits from which each token after the prompt was drawn, the whole of it read anew."""
    _, logits = numpy_logits(model, None, [*PROMPT, *tokens])
    return logits[len(PROMPT) - 1 : -1]


def lively() -> LanguageModel:
    """A model with weights so large that what it has read matters, and greed does not repeat one token for ever."""
    return with_weights(lambda leaf: 3 * leaf, LanguageModel(V, cell(), key=key(0)))


def memoryless(logits: Any) -> LanguageModel:
    """A model with the same next token's distribution whatever it has read."""
    return with_bias(with_weights(np.zeros_like, LanguageModel(V, each_step(), key=key())), logits)


MANY = 5000  # draws of the memoryless, of which there is one program for each temperature and `top_k`
LOGITS = np.array([0.0, -1.0, 1.5, 0.5, -0.5])


def test_same_key_same_tokens():
    draw = lambda seed: said(memoryless(LOGITS), MANY, seed)  # noqa: E731
    assert draw(21) == draw(21) != draw(22)
    assert set(draw(21)) <= set(range(V))


def test_greedy_takes_the_likeliest_after_the_whole_prefix():
    tokens = said(lively(), 30, temperature=0.0)
    assert tokens == scores_along(lively(), tokens).argmax(-1).tolist()
    assert len(set(tokens)) > 2
    assert tokens == said(lively(), 30, 22, temperature=0.0)


@pytest.mark.parametrize("options", [{}, slow({"top_p": 0.9}), {"top_k": 3, "top_p": 0.9}], ids=str)
def test_a_tiny_temperature_takes_the_likeliest(options):
    """Though logits divided by it overflow, here all of those above 0, of which the first is not the likeliest."""
    logits = 1e9 * LOGITS[::-1]
    assert np.flatnonzero(logits > 0)[0] != logits.argmax()
    assert said(memoryless(logits), 20, temperature=1e-300, **options) == [int(logits.argmax())] * 20


@pytest.mark.slow
def test_the_one_likeliest_is_what_greedy_takes():
    assert said(lively(), 30, top_k=1) == said(lively(), 30, temperature=0.0)


def test_top_k_draws_from_the_k_likeliest():
    tokens = said(build(), 200, top_k=2)
    likeliest = np.argsort(scores_along(build(), tokens), -1)[:, -2:]
    kept = [row.tolist().index(token) for row, token in zip(likeliest, tokens, strict=True)]
    assert set(kept) == {0, 1}


@pytest.mark.parametrize("top_k", [slow(1), slow(2), 3, slow(V)])
def test_top_k_draws_from_k_tokens_where_all_are_alike(top_k):
    assert set(said(memoryless(np.zeros(V)), MANY, temperature=4.0, top_k=top_k)) == set(range(top_k))


@pytest.mark.parametrize(
    ("top_k", "temperature"),
    [(None, 0.25), (None, 1.0), slow(None, 4.0), slow(3, 0.25), slow(3, 1.0), (3, 4.0)],
)
def test_frequencies_are_the_probabilities_at_that_temperature(temperature, top_k):
    options = {} if (temperature, top_k) == (1.0, None) else {"temperature": temperature, "top_k": top_k}
    tokens = said(memoryless(LOGITS), MANY, **options)
    weights = np.exp(LOGITS / temperature)
    weights[np.argsort(LOGITS)[: V - (top_k or V)]] = 0
    np.testing.assert_allclose(np.bincount(tokens, minlength=V) / MANY, weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize("length", [0, 1])
def test_few_tokens(length):
    prompt = jax.ShapeDtypeStruct(PROMPT.shape, int)
    assert eqx.filter_eval_shape(lambda prompt: sample(build(), prompt, length, key=key()), prompt).shape == (length,)


def test_sampling_is_compiled_once():
    traced = []
    model = LanguageModel(V, each_step(lambda x: traced.append(x) or x), key=key())
    draw = lambda model, prompt, seed: sample(model, grid.place(prompt), 4, key=key(seed))  # noqa: E731
    traced.clear()
    draw(model, PROMPT, 0)
    once = len(traced)
    for seed in (1, 2):
        draw(with_weights(np.sin, model), (PROMPT + seed) % V, seed)
    assert 0 < once == len(traced)


def changed(place: int, token: int) -> np.ndarray:
    """The prompt, but for one token."""
    return np.where(np.arange(len(PROMPT)) == place, token, PROMPT)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (changed(1, V), r"^prompt: expected tokens from 0 to 4, of a vocabulary of 5, got 5\. Give unknown"),
        (changed(1, -1), r"^prompt: expected tokens from 0 to 4, of a vocabulary of 5, got -1\. Give unknown"),
    ],
    ids=["unknown", "negative"],
)
def test_a_prompt_of_unknown_tokens(prompt, message):
    with pytest.raises(ValueError, match=message):
        sample(build(), prompt, 3, key=key())


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (PROMPT[:0], {}, r"(?m)^prompt: expected at least one token, \[P\], got \[0\]\. Pass .*$"),
        (PROMPT[None], {}, r"^prompt: expected the tokens of one sequence, \[T\], got \[1, 3\]"),
        (PROMPT, {"temperature": float("nan")}, r"(?m)^temperature: expected 0 or more, got nan\. Pass .*$"),
        (PROMPT, {"temperature": -0.5}, r"(?m)^temperature: expected 0 or more, got -0\.5\. Pass .*$"),
        (PROMPT, {"top_k": 0}, r"(?m)^top_k: expected 1 or more, got 0$"),
        (PROMPT, {"top_k": V + 1}, r"(?m)^top_k: expected from 1 to the vocabulary's 5, got 6\. Pass .*$"),
    ],
    ids=["no_prompt", "batch", "no_temperature", "temperature", "top_k_zero", "top_k_over"],
)
def test_sampling_misused(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        by_form(sample, build(), prompt, 3, key=key(), **options)


# Learning

PATTERN = np.array([0, 1, 2, 1, 3, 4, 4])


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_a_pattern_is_learned_and_continued():
    start = jax.jit(lambda model: batch_of_states(model, B))(build())
    options = {"steps": 120, "key": key(), "carry": start, "progress": False}
    chunks = streams(np.tile(PATTERN, 30), B, T)
    fitted = rnnjax.training.fit(build(), language_loss, chunks, optax.adam(0.03), **options)
    assert run(loss_and_states, build(), states(), chunks(1))[0] > 1.0
    assert run(loss_and_states, fitted.model, fitted.carry, chunks(120))[0] < 0.05
    tokens = sample(fitted.model, grid.place(PATTERN), 14, key=key(), temperature=0.0)
    assert tokens.tolist() == [*PATTERN, *PATTERN]
