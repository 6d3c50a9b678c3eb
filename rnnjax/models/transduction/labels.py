"""Labels of a transcript: integers from 1 to V - 1; 0 is the blank, which a transcript never holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ... import check
from ...arrays import AnyArray, IntegerLike, Length, PyTree
from ...check import show
from ...checked import Checked
from ...exporting import exportable
from ...marks import valid_steps
from ...runtime_error import error_where
from ..batches import batch_parts
from ..tokens import integers

BLANK = 0
FLOOR = -1e30  # the logarithm of a probability of zero: finite, so that no gradient is NaN
IMPOSSIBLE = 1e-1 * FLOOR  # what is below has a factor of zero in it
REMEDY = "Number the labels from 1, and let 0 be the blank, or give the model a larger vocabulary"


@exportable
class Utterances(NamedTuple):
    """A padded batch of sequences and their transcripts. Padding never affects the loss."""

    xs: PyTree[AnyArray]  # [B, T, ...]
    length: Any  # [B], the steps of each sequence
    target: Any  # [B, U], labels from 1 to V - 1, without a start or an end
    target_length: Any  # [B]


def utterances(batch: Checked[PyTree]) -> tuple[Any, Any, Any, Any]:
    """The parts of an `Utterances`, or of such a tuple."""
    form = "Utterances(xs, length, target, target_length)"
    return batch_parts(batch, form, xs=None, length=1, target=2, target_length=1)


class Target(NamedTuple):
    """A checked transcript: labels [U], zeros from its length on."""

    labels: Int[Array, " U"]
    length: Length


def check_target(target: Checked[AnyArray], length: Checked[IntegerLike | None], classes: int) -> Target:
    """`target` [U] and its length; None: U.

    A length outside 0..U or a label that is not from 1 to `classes` - 1 is a ValueError if it is known, and an error
    at run time if it is traced. Labels from `length` on may be anything.
    """
    labels = integers("target", target)
    if labels.ndim != 1:
        raise ValueError(
            f"target: expected the labels of one sequence, [U], got {list(labels.shape)}. Batch it with jax.vmap"
        )
    U = labels.shape[0]
    length = _check_length(length, U)
    valid = valid_steps(length, U)
    labels = jnp.where(valid, labels, jnp.zeros_like(labels))
    outside = valid & ((labels <= BLANK) | (labels >= classes))
    expected = f"target: expected labels from 1 to {classes - 1}, of {classes} classes with the blank"
    if isinstance(outside, Tracer):
        return Target(error_where(labels, outside, f"{expected}, got one outside. {REMEDY}"), length)
    if outside.any():
        raise ValueError(f"{expected}, got {labels[outside][0]}. {REMEDY}")
    return Target(labels, length)


def _check_length(length: Any, U: int) -> Length:
    if length is None:
        return jnp.asarray(U, int)
    length = integers("target_length", length)
    if length.ndim:
        raise ValueError(
            f"target_length: expected a scalar, one transcript's length, got {list(length.shape)}. "
            "Batch it with jax.vmap"
        )
    outside = (length < 0) | (length > U)
    if isinstance(outside, Tracer):
        return error_where(
            length, outside, f"target_length: expected a value from 0 to U={U}, got one outside. Pad target to more"
        )
    if outside:
        raise ValueError(f"target_length: expected a value from 0 to U={U}, got {int(length)}. Pad target to more")
    return length


def mean_loss(
    log_likelihood: Callable[..., Array], batch: Checked[PyTree], key: PRNGKeyArray | None
) -> Float[Array, ""]:
    """The mean of -log_likelihood(xs, length, target, target_length, key) over a batch; each has a key of its own."""
    parts = utterances(batch)
    keys = None if key is None else jax.random.split(key, len(parts[1]))
    return -jax.vmap(log_likelihood)(*parts, keys).mean()


def number_of_steps(length: Checked[IntegerLike | None], T: int) -> Length:
    """`length`, known to be from 0 to T; if it is traced, an error at run time. None: T."""
    checked = check.length(length, T)
    if checked is None:
        return jnp.asarray(T, int)
    outside = (jnp.asarray(length) < 0) | (jnp.asarray(length) > T)
    message = f"length: expected a value from 0 to T={T}, got one outside. Count the steps of these logits or inputs"
    return error_where(checked, outside, message) if isinstance(outside, Tracer) else checked


def check_logits(logits: Checked[AnyArray], form: str) -> Float[Array, "... V"]:
    """`logits` as an array of JAX. Raises unless they are real numbers of these axes, of two classes or more."""
    known = isinstance(logits, Array | np.ndarray) and jnp.issubdtype(logits.dtype, jnp.floating)
    if not known or logits.ndim != len(form.split(", ")) or logits.shape[-1] < 2:
        raise ValueError(
            f"logits: expected real numbers {form}, of one sequence and V >= 2 classes, of which 0 is the blank, "
            f"got {show(logits)}. Pass an array of such numbers, and batch it with jax.vmap"
        )
    return jnp.asarray(logits)


def floored_log(log_probabilities: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same with `FLOOR` in the place of lower values, such as -inf."""
    return jnp.maximum(log_probabilities, FLOOR)


def impossible_as_infinity(log_likelihood: Float[Array, ""]) -> Float[Array, ""]:
    """-inf, with a gradient of zero, in place of the logarithm of a probability that has a factor of zero."""
    return jnp.where(log_likelihood < IMPOSSIBLE, -jnp.inf, log_likelihood)
