"""Sampling from a language model: tokens drawn one after the other, each read before the next."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray

from .. import check
from ..arrays import AnyArray, IntegerLike, State
from ..checked import Checked
from ..marks import valid_steps
from ..runtime_error import error_where
from .language import LanguageModel
from .search import at_temperature, known_token
from .tokens import check_token

NO_TOKENS = "length: expected 1 or more tokens of the prompt, got 0. Pass the number of tokens that count"


def sample(
    model: LanguageModel,
    prompt: Checked[AnyArray | list[int]],
    steps: int,
    *,
    key: PRNGKeyArray,
    length: Checked[IntegerLike | None] = None,
    temperature: Checked[float] = 1.0,
    top_k: int | None = None,
    top_p: Checked[float | None] = None,
    end: Checked[IntegerLike | None] = None,
) -> Int[Array, " steps"]:
    """`steps` tokens that follow `prompt`, drawn one by one, the state carried from each to the next; jitted.

    prompt        [P] tokens, or a list of them. One that is known is padded to a power of two, so that prompts of any
                  length share few programs
    length        how many tokens of `prompt` count, 1 or more; None: all. Those behind may be anything
    temperature   divides the logits: below 1 the likely becomes likelier; 0, the limit, takes the likeliest
    top_k         draws from the k likeliest tokens only
    top_p         draws from the likeliest tokens only, as few as have this probability together (Holtzman et al. 2020,
                  arXiv:1904.09751), at that temperature and among those of `top_k`
    end           the token after which nothing is drawn: the rest of the result is `end`

    Prompts of different lengths are sampled in one batch, each with a key of its own:

        prompts, lengths = rnnjax.training.pad([[3, 0, 4], [1, 2]])
        draw = lambda prompt, length, key: sample(model, prompt, 20, key=key, length=length, top_p=0.9)
        tokens = jax.vmap(draw)(prompts, lengths, jax.random.split(key, 2))  # [2, 20]
    """
    vocabulary_size = model.embedding.vocabulary_size
    prompt = np.asarray(prompt, None if prompt else int) if isinstance(prompt, list | tuple) else prompt
    is_known = not isinstance(prompt, Tracer)
    padded = _pad(prompt) if is_known else prompt
    P = len(prompt) if jnp.ndim(prompt) == 1 else 0
    given = check.length(length, P) if P else None
    valid = None if given is None else valid_steps(given, len(padded))
    tokens = model.embedding.check(padded, name="prompt", valid=valid)
    if P == 0:
        raise ValueError(
            "prompt: expected at least one token, [P], got [0]. "
            "Pass the token that begins a sequence if there is no text to go on from"
        )
    length = check.length(P if length is None and is_known else length, P)
    _check_options(vocabulary_size, steps, temperature, top_k, top_p, end)
    if steps == 0:
        return jnp.zeros(0, int)
    end = None if end is None else jnp.asarray(end, int)
    _check_length(length)
    return _sample(model, tokens, length, steps, key, temperature, top_k, top_p, end)


def _pad(prompt: Any) -> Any:
    """A known prompt with zeros up to a power of two, before any operation is compiled for its length."""
    if jnp.ndim(prompt) != 1 or not len(prompt) or not jnp.issubdtype(jnp.result_type(prompt), jnp.integer):
        return prompt  # for the error that says so
    return np.pad(np.asarray(prompt), (0, (1 << (len(prompt) - 1).bit_length()) - len(prompt)))


def _check_length(length: Array | None) -> None:
    if length is not None and not isinstance(length, Tracer) and length < 1:
        raise ValueError(NO_TOKENS)


def _check_options(vocabulary_size: int, steps: Any, temperature: Any, top_k: Any, top_p: Any, end: Any) -> None:
    if not check.number("temperature", temperature) >= 0:
        raise ValueError(
            f"temperature: expected 0 or more, got {temperature}. "
            "Pass 0 for the most likely token at each step, and 1 for the model's own distribution"
        )
    check.count("steps", steps, least=0)
    if top_k is not None:
        check.count("top_k", top_k)
    if top_k is not None and not top_k <= vocabulary_size:
        raise ValueError(
            f"top_k: expected from 1 to the vocabulary's {vocabulary_size}, got {top_k}. "
            "Pass None to draw from all tokens"
        )
    if top_p is not None and not 0 < check.number("top_p", top_p) <= 1:
        raise ValueError(f"top_p: expected a probability, 0 < p <= 1, got {top_p}. Pass None to draw from all tokens")
    if end is not None:
        check_token("end", end, vocabulary_size)


@eqx.filter_jit
def _sample(
    model: LanguageModel,
    prompt: Array,
    length: Array | None,
    steps: int,
    key: PRNGKeyArray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    end: Array | None,
) -> Array:
    draw = partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(key, steps)
    state, ys = model.outputs(model.initial(), prompt, length=length)
    last = ys[-1:] if length is None else _last_valid(ys, length)
    tokens = jnp.full(steps, 0 if end is None else end, int)

    def goes_on(carry: Any) -> Array:
        t, ended, *_ = carry
        return (t < steps) & ~ended

    def step(carry: tuple[Array, Array, State, Array, Array]) -> tuple[Array, Array, State, Array, Array]:
        t, ended, state, logits, tokens = carry
        token = draw(keys[t], logits).astype(int)
        state, logits, _ = model.decoding(state).step(state, token)
        return t + 1, ended if end is None else token == end, state, logits, tokens.at[t].set(token)

    begin = jnp.zeros((), int), jnp.zeros((), bool), state, model.classify(last)[0], tokens
    return jax.lax.while_loop(goes_on, step, begin)[-1]


def _last_valid(ys: Array, length: Array) -> Array:
    last = jax.lax.dynamic_slice_in_dim(ys, length - 1, 1)
    return error_where(last, length < 1, NO_TOKENS)


def _draw(key: PRNGKeyArray, logits: Array, *, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    if temperature == 0:
        return known_token(logits, jnp.argmax(logits))
    if top_k is None and top_p is None:
        return known_token(logits, jax.random.categorical(key, at_temperature(logits, temperature)))
    likely, tokens = jax.lax.top_k(logits, top_k or logits.shape[0])  # k of them even where some are equally likely
    likely = at_temperature(likely, temperature)
    if top_p is not None:
        before = jnp.cumsum(jax.nn.softmax(likely)) - jax.nn.softmax(likely)  # of all that are likelier
        likely = jnp.where((before < top_p) | (jnp.arange(len(before)) == 0), likely, -jnp.inf)
    return known_token(logits, tokens[jax.random.categorical(key, likely)])
