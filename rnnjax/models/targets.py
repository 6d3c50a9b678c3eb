"""Targets: padded tokens. The input of a model is all of them but the last, its labels are all but the first."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import PyTree
from ..marks import counted
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
    """Mean cross-entropy of the next token in nats, over all valid tokens of a batch; zero where there is none.

    logits          `(source, tokens, key) -> [T, V]`: of one source, of the token after each of those fed
    sources         any tree of arrays that lead with the batch
    target          [B, T + 1]; padding is replaced by token 0
    target_length   [B], which counts the first token; a length of 0 or 1 adds nothing to the loss
    key             split for the examples; None is handed on
    """
    T = target.shape[1] - 1
    keys = None if key is None else jax.random.split(key, target.shape[0])

    def one(source: Any, target: Array, length: Array, key: PRNGKeyArray | None) -> tuple[Array, Array]:
        valid = counted(length.astype(int), T + 1)[1:]  # from an unsigned length 1 could not be taken
        fed, labels = (jnp.where(valid, tokens, jnp.zeros_like(tokens)) for tokens in (target[:-1], target[1:]))
        labels = check_tokens("target", labels, vocabulary_size)
        losses = cross_entropy(logits(source, fed, key), labels)
        return jnp.where(valid, losses, jnp.zeros_like(losses)).sum(), valid.sum()

    losses, counts = jax.vmap(one)(sources, target, target_length, keys)
    total = losses.sum()
    return total / jnp.maximum(counts.sum(), 1).astype(total.dtype)
