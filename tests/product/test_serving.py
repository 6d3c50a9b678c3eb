"""Serving: one step of many users at once, and sampling of prompts of any length, with a stop token and a nucleus."""

import asyncio
from functools import lru_cache
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import serving
from common import stream_clients
from meter import COMPILED

import rnnjax
from rnnjax.models import LanguageModel, batch_of_states, sample
from rnnjax.training import pad

V, B, STEPS = 5, 3, 12
PROMPTS = [[3, 0, 4, 1, 2], [1, 1, 3, 0, 2, 4, 4], [2, 2, 0, 1, 3, 0]]  # all are padded to eight tokens


def slow(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


@lru_cache
def key(seed: int = 21) -> Any:
    with jax.ensure_compile_time_eval():
        return jax.random.key(seed)


@grid.once
def model() -> LanguageModel:
    """One whose weights are so large that what it has read matters."""
    drawn = LanguageModel(V, rnnjax.GRU(4, 6, key=key(), dtype=jnp.float64), key=key(0))
    return jax.tree.map(lambda leaf: grid.place(3 * np.asarray(leaf)), drawn)


@pytest.fixture
def compilations():
    """A list that grows with each program that is compiled."""
    seen: list[str] = []
    listener = lambda event, *_, **__: seen.append(event) if event == COMPILED else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


# One step


def test_steps_of_many_users_are_the_sequence_of_each():
    step = jax.jit(jax.vmap(model().step))
    states, logits = jax.jit(lambda model: batch_of_states(model, B))(model()), None
    tokens = np.random.default_rng(0).integers(0, V, (4, B))
    for row in tokens:
        states, logits = step(states, row)
    whole = jax.jit(jax.vmap(lambda tokens: model().logits(model().initial(), tokens)))(tokens.T)
    grid.assert_close((states, logits), (whole[0], whole[1][:, -1]))


def test_a_step_takes_a_token_of_the_vocabulary():
    with pytest.raises(ValueError, match=rf"^tokens: expected tokens from 0 to 4, .*got {V}\. Give"):
        model().step(model().initial(), V)
    with pytest.raises(RuntimeError, match="tokens: expected tokens from 0 to 4"):
        jax.block_until_ready(jax.jit(lambda state, token: model().step(state, token))(model().initial(), V))


def test_logits_of_a_padded_sequence_are_those_of_the_sequence():
    """Whatever the padding is."""
    run = jax.jit(read)
    state, logits = run(np.array([3, 0, 4, -7, 99]), 3)
    grid.assert_close((state, logits[:3]), jax.jit(read)(np.array([3, 0, 4])))


# Sampling


def read(tokens: Any, length: Any = None) -> Any:
    return model().logits(model().initial(), tokens, length=length)


def drawn(prompt: Any, seed: int = 1, **options: Any) -> list[int]:
    return sample(model(), prompt, STEPS, key=key(seed), **options).tolist()


def test_prompts_of_any_length_share_few_programs(compilations):
    drawn(PROMPTS[0])
    before = len(compilations)
    for length in (5, 6, 7, 8):
        drawn((PROMPTS[0] * 2)[:length], seed=length)
    assert len(compilations) == before


def test_a_padded_prompt_is_the_prompt_itself():
    greedy = drawn(PROMPTS[0], temperature=0.0)
    assert greedy == drawn(np.array(PROMPTS[0]), temperature=0.0)
    assert greedy == drawn([*PROMPTS[0], 1, 1], temperature=0.0, length=5)
    _, logits = jax.jit(read)(np.array(PROMPTS[0] + greedy))
    assert greedy == logits[len(PROMPTS[0]) - 1 : -1].argmax(-1).tolist()
    assert len(set(greedy)) > 1


def test_a_batch_of_prompts_is_each_of_them():
    prompts, lengths = pad(PROMPTS, value=-1)  # which is no token, and is never looked at
    draw = lambda prompt, length, key: sample(model(), prompt, STEPS, key=key, length=length)  # noqa: E731
    seeds = [5, 6, 7]
    keys = jnp.stack([key(seed) for seed in seeds])
    tokens = jax.jit(jax.vmap(draw))(prompts, lengths, keys)
    assert tokens.tolist() == [drawn(prompt, seed) for prompt, seed in zip(PROMPTS, seeds, strict=True)]


def test_nothing_is_drawn_after_the_end():
    whole = drawn(PROMPTS[0])
    end = whole[4]
    stop = whole.index(end)
    assert drawn(PROMPTS[0], end=end) == whole[:stop] + [end] * (STEPS - stop)


def memoryless(logits: Any) -> LanguageModel:
    """A model with the same next token's distribution whatever it has read."""
    same = rnnjax.TimeDistributed(jax.nn.identity, 4, dtype=jnp.float64)
    blank = jax.tree.map(lambda leaf: grid.place(np.zeros_like(leaf)), LanguageModel(V, same, key=key()))
    return eqx.tree_at(lambda model: model.output.bias, blank, grid.place(np.asarray(logits, float)))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.7}, [3, 1]),  # 0.5 and 0.25
        slow({"top_p": 0.5}, [3]),
        slow({"top_p": 1e-9}, [3]),
        ({"top_p": 0.9, "top_k": 3}, [3, 1, 0]),
    ],
)
def test_top_p_draws_from_as_few_tokens_as_have_that_probability(options, kept):
    probabilities = np.array([0.125, 0.25, 0.09, 0.5, 0.035])
    tokens = np.asarray(sample(memoryless(np.log(probabilities)), [0], 4000, key=key(), **options))
    share = np.where(np.isin(np.arange(V), kept), probabilities, 0)
    np.testing.assert_allclose(np.bincount(tokens, minlength=V) / 4000, share / share.sum(), atol=0.03)
    assert set(tokens.tolist()) == set(kept)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, r"(?m)^prompt: expected at least one token, \[P\], got \[0\]\. Pass .*$"),
        ([0, 1], {"length": 0}, r"^length: expected 1 or more tokens of the prompt, got 0\. Pass"),
        ([0, 1], {"length": 3}, r"^length: expected a value from 0 to T=2, got 3"),
        ([0, 1], {"top_p": 0.0}, r"(?m)^top_p: expected a probability, 0 < p <= 1, got 0\.0\. Pass .*$"),
        ([0, 1], {"top_p": 1.5}, r"^top_p: expected a probability"),
        ([0, 1], {"end": V}, r"^end: expected tokens from 0 to 4"),
    ],
)
def test_sampling_misused(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        sample(model(), prompt, 3, key=key(), **options)


@pytest.mark.slow
def test_a_traced_length_of_zero_is_an_error_when_run():
    draw = jax.jit(lambda length: sample(model(), np.array([0, 1]), 3, key=key(), length=length))
    with pytest.raises(RuntimeError, match="length: expected 1 or more tokens of the prompt, got 0"):
        jax.block_until_ready(draw(0))


# The example


@pytest.mark.usefixtures("as_it_comes")
def test_the_server_streams_many_users_in_one_batch_and_compiles_nothing_for_them(capsys):
    one, many = serving.run(serving.parse(["--streams", "3", "--steps", "8", "--units", "8"]))
    printed = capsys.readouterr().out
    assert [(record["streams"], record["compiled"]) for record in (one, many)] == [(1, 0), (3, 0)]
    assert "0 programs compiled after the first request" in printed
    assert all(0 <= record["p50"] <= record["p99"] for record in (one, many))
    assert min(record["first"] for record in (one, many)) > 0
    assert [len(text) for text in many["texts"]] == [8] * 3
    assert one["texts"][0] == many["texts"][0] != many["texts"][1]  # others in the batch change no stream


@pytest.mark.usefixtures("as_it_comes")
def test_the_server_refuses_what_it_cannot_serve_and_frees_the_row_of_who_has_left():
    model = LanguageModel(3, rnnjax.Elman(4, 6, key=key()), key=key())

    async def visit() -> str:
        server = serving.Server(model, "abc", 1)
        async with serving.listening(server, 0) as port:
            with pytest.raises(RuntimeError, match=r"^prompt: expected characters of the model's .* got \['x'\]"):
                await stream_clients.ask(port, "ax", 3, 0)
            with pytest.raises(RuntimeError, match=r"^steps, seed: expected integers .* got -1 and 0"):
                await stream_clients.ask(port, "a", -1, 0)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            body = b'{"prompt": "abc", "steps": 1000000}'
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.sleep(0.05)
            writer.transport.abort()
            return (await stream_clients.ask(port, "cab", 5, 0))["text"]

    assert len(asyncio.run(asyncio.wait_for(visit(), 60))) == 5
