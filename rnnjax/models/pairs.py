"""Batches of pairs, a source and a target, and the loss on them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..marks import counted
from .seq2seq import Seq2Seq
from .tokens import check_tokens


class Pairs(NamedTuple):
    """A padded batch of sources and targets; a target begins with its start token, and ends with its end token.

    Lengths count both of these. What stands in the padding is never seen.
    """

    source: Array  # [B, S]
    source_length: Array  # [B]
    target: Array  # [B, T + 1]
    target_length: Array  # [B]


def seq2seq_loss(
    model: Seq2Seq,
    carry: Any,
    batch: Any,
    key: PRNGKeyArray | None,
    *,
    teacher_forcing: Any = 1.0,
    engine: AbstractEngine = Auto(),
) -> tuple[Float[Array, ""], Any]:
    """Mean cross-entropy of the next token in nats, over all valid tokens of the batch, and `carry` as it was.

    A loss for `fit`. A target is fed without its last token, and asked for without its first.

    batch             (source, source_length, target, target_length), or `Pairs`
    key               for dropout and for `teacher_forcing`, drawn for each sequence; None: nothing is random
    teacher_forcing   as in `Seq2Seq.logits`; a schedule by the step may live in the carry of a loss around this one
    """
    source, source_length, target, target_length = batch
    keys = None if key is None else jax.random.split(key, source.shape[0])
    T = target.shape[1] - 1

    def one(source: Array, length: Array, target: Array, target_length: Array, key: PRNGKeyArray | None) -> Any:
        valid = counted(target_length - 1, T)
        fed, asked = (jnp.where(valid, tokens, jnp.zeros_like(tokens)) for tokens in (target[:-1], target[1:]))
        asked = check_tokens("target", asked, model.target_embedding.shape[0])
        logits, _ = model.logits(source, fed, length=length, teacher_forcing=teacher_forcing, engine=engine, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, asked)
        return jnp.where(valid, losses, jnp.zeros_like(losses)).sum(), valid.sum()

    losses, counts = jax.vmap(one)(source, source_length, target, target_length, keys)
    total = losses.sum()
    return total / jnp.maximum(counts.sum(), 1).astype(total.dtype), carry
