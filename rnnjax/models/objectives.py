"""Objectives: the loss of one output against its target, over any leading axes; in float32 or wider.

A label outside 0..K-1 makes the loss NaN, at which `fit` stops; `check_labels` finds it before training.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from ..arrays import AnyArray, carry_dtype
from ..checked import Checked
from ..marks import mark_touched
from .tokens import integers


def cross_entropy(logits: Float[Array, "... K"], labels: Integer[ArrayLike, "..."]) -> Float[Array, "..."]:
    """-log softmax(logits)[label] in nats, for one class of K. NaN where a label is not from 0 to K - 1."""
    labels = integers("labels", labels)
    _check_shape("labels", labels, logits.shape[:-1])
    logits = logits.astype(carry_dtype(logits.dtype))
    known = (labels >= 0) & (labels < logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    return mark_touched(~known, losses)


def binary_cross_entropy(
    logits: Float[Array, "... K"], targets: Float[Array, "... K"] | Bool[Array, "... K"]
) -> Float[Array, "..."]:
    """-sum over K of t log sigmoid(logit) + (1 - t) log(1 - sigmoid(logit)) in nats: K binary classes."""
    _check_shape("targets", targets, logits.shape)
    logits = logits.astype(carry_dtype(logits.dtype))
    targets = targets.astype(logits.dtype)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
    known = ((targets >= 0) & (targets <= 1)).all(-1)
    return mark_touched(~known, losses)


def squared_error(ys: Float[Array, "... K"], targets: Float[Array, "... K"]) -> Float[Array, "..."]:
    """The mean over K of (y - t)^2."""
    _check_shape("targets", targets, ys.shape)
    wide = carry_dtype(ys.dtype)
    return ((ys.astype(wide) - targets.astype(wide)) ** 2).mean(-1)


def _check_shape(name: str, targets: Any, expected: tuple[int, ...]) -> None:
    """Raise unless the shapes are equal: broadcasting [B] and [B, 1] would compare each answer with every target."""
    if jnp.shape(targets) != expected:
        raise ValueError(
            f"{name}: expected {list(expected)}, by the answers, got {list(jnp.shape(targets))}. "
            "Reshape the targets to that, one for each answer"
        )


def check_labels(labels: Checked[AnyArray | Sequence[int]], classes: int) -> None:
    """Raise unless all `labels` are integers from 0 to `classes` - 1. They must be known, not traced."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {labels.dtype}. Write labels.astype(int)")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        place = tuple(int(index) for index in np.argwhere(outside)[0])
        raise ValueError(
            f"labels: expected classes from 0 to {classes - 1}, got {labels[place]} at {list(place)}. "
            "Number the classes from 0, or build the model with more of them"
        )
