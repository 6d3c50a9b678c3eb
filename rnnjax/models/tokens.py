"""Tokens: integers that stand for rows of an embedding."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from ..check import show


def check_tokens(
    name: str, tokens: Any, vocabulary_size: int, valid: Bool[Array, " T"] | None = None
) -> Int[Array, " T"]:
    """`tokens` as integers [T], with zeros where not `valid`, whatever stands there.

    A token that is not in the vocabulary is a ValueError where it is known, and where it is traced an error when run.
    """
    if not isinstance(tokens, jax.Array | np.ndarray) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer tokens [T], got {show(tokens)}")
    if tokens.ndim != 1:
        raise ValueError(
            f"{name}: expected the tokens of one sequence, [T], got {list(tokens.shape)}. Batch it with jax.vmap"
        )
    tokens = jnp.asarray(tokens)
    if valid is not None:
        tokens = jnp.where(valid, tokens, jnp.zeros_like(tokens))
    outside = (tokens < 0) | (tokens >= vocabulary_size)
    if isinstance(outside, Tracer):
        return eqx.error_if(tokens, outside.any(), f"{_expected(name, vocabulary_size)}, got one outside")
    if outside.any():
        raise ValueError(f"{_expected(name, vocabulary_size)}, got {tokens[outside][0]}")
    return tokens


def check_token(name: str, token: Any, vocabulary_size: int) -> None:
    """Raise unless `token` is one of the vocabulary, as far as it is known."""
    if isinstance(token, Tracer):
        return
    if isinstance(token, bool) or jnp.shape(token) or not jnp.issubdtype(jnp.result_type(token), jnp.integer):
        raise TypeError(f"{name}: expected a token, an integer, got {token!r}")
    if not 0 <= int(token) < vocabulary_size:
        raise ValueError(f"{_expected(name, vocabulary_size)}, got {token}")


def _expected(name: str, vocabulary_size: int) -> str:
    return f"{name}: expected tokens from 0 to {vocabulary_size - 1}, of a vocabulary of {vocabulary_size}"
