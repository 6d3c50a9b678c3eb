"""Tokens: integers, each the index of a row of an embedding."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from ..arrays import AnyArray, IntegerLike
from ..check import show
from ..checked import Checked
from ..runtime_error import error_where

REMEDY = "Give unknown words a token of their own, or the model a larger vocabulary"


def integers(name: str, values: Checked[ArrayLike]) -> Int[Array, "..."]:
    """`values` as integers of JAX's default width, since in 8 bits a bound of 256 would overflow to 0."""
    known = isinstance(values, jax.Array | np.ndarray | np.generic | int)
    if not known or not jnp.issubdtype(jnp.result_type(values), jnp.integer):
        raise TypeError(f"{name}: expected integers, got {show(values)}. Write jnp.asarray({name}, int)")
    return jnp.asarray(values).astype(int)


def check_tokens(
    name: str, tokens: Checked[AnyArray], vocabulary_size: int, valid: Bool[Array, " T"] | None = None
) -> Int[Array, " T"]:
    """`tokens` as integers [T], with zeros at ignored steps.

    A valid token outside the vocabulary is a ValueError if it is known, and an error at run time if it is traced.
    A program of `jax.export` or of several devices cannot raise one: there it becomes -1, whose row is NaN.
    """
    tokens = integers(name, tokens)
    if tokens.ndim != 1:
        raise ValueError(
            f"{name}: expected the tokens of one sequence, [T], got {list(tokens.shape)}. Batch it with jax.vmap"
        )
    if valid is not None:
        tokens = jnp.where(valid, tokens, jnp.zeros_like(tokens))
    outside = (tokens < 0) | (tokens >= vocabulary_size)
    if isinstance(outside, Tracer):
        return error_where(tokens, outside, f"{_expected(name, vocabulary_size)}, got one outside. {REMEDY}")
    if outside.any():
        raise ValueError(f"{_expected(name, vocabulary_size)}, got {tokens[outside][0]}. {REMEDY}")
    return tokens


def check_token(name: str, token: Checked[IntegerLike], vocabulary_size: int) -> None:
    """Raise unless `token` is in the vocabulary; a traced one is not checked."""
    if isinstance(token, Tracer):
        return
    if isinstance(token, bool) or jnp.shape(token) or not jnp.issubdtype(jnp.result_type(token), jnp.integer):
        raise TypeError(
            f"{name}: expected a token, an integer, got {token!r}. Pass a Python int, or an integer array of shape ()"
        )
    if not 0 <= int(token) < vocabulary_size:
        raise ValueError(f"{_expected(name, vocabulary_size)}, got {token}. {REMEDY}")


def _expected(name: str, vocabulary_size: int) -> str:
    return f"{name}: expected tokens from 0 to {vocabulary_size - 1}, of a vocabulary of {vocabulary_size}"
