"""Losses on padded target tokens: the model's input is all tokens but the last, its labels are all but the first."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import PyTree
from ..marks import valid_steps
from .objectives import cross_entropy
from .tokens import check_tokens


def target_loss(
    logits: Callable[[PyTree[Array], Array, PRNGKeyArray | None], Array],
    sources: PyTree[Array],
    target: Array,
    target_length: Array,
    vocabulary_size: int,
    key: PRNGKeyArray | None,
) -> Float[Array, ""]:
    """Mean cross-entropy of the next token in nats, over all valid tokens of a batch; zero if there are none.

    logits          `(source, tokens, key) -> [T, V]`: for one source, the logits of the token after each of `tokens`
    sources         any pytree of arrays with the batch on the first axis
    target          [B, T + 1]; padding is replaced by token 0
    target_length   [B], including the first token; a length of 0 or 1 adds nothing to the loss
    key             split for the examples; None is passed on
    """
    T = target.shape[1] - 1
    keys = None if key is None else jax.random.split(key, target.shape[0])

    def one(source: Any, target: Array, length: Array, key: PRNGKeyArray | None) -> tuple[Array, Array]:
        valid = valid_steps(length.astype(int), T + 1)[1:]  # one dtype with the steps, even if unsigned
        fed, labels = (jnp.where(valid, tokens, jnp.zeros_like(tokens)) for tokens in (target[:-1], target[1:]))
        labels = check_tokens("target", labels, vocabulary_size)
        losses = cross_entropy(logits(source, fed, key), labels)
        return jnp.where(valid, losses, jnp.zeros_like(losses)).sum(), valid.sum()

    losses, counts = jax.vmap(one)(sources, target, target_length, keys)
    total = losses.sum()
    return total / jnp.maximum(counts.sum(), 1).astype(total.dtype)
