"""The likelihood of a transcript by connectionist temporal classification, summed over all alignments by optax."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ...arrays import AnyArray, IntegerLike, carry_dtype
from ...checked import Checked
from ...marks import blank, valid_steps
from .labels import BLANK, FLOOR, check_logits, check_target, floored_log, impossible_as_infinity, number_of_steps


def ctc_log_likelihood(
    logits: Checked[AnyArray],
    target: Checked[AnyArray],
    *,
    length: Checked[IntegerLike | None] = None,
    target_length: Checked[IntegerLike | None] = None,
) -> Float[Array, ""]:
    """log p(target) = log sum over a of prod_t softmax(logits_t)[a_t], for one sequence, in float32 or wider.

    The sum is over all alignments a, [T] classes, that become `target` when repeated classes are merged and then the
    blanks, class 0, are removed: Graves et al. 2006, "Connectionist temporal classification". `optax.ctc_loss` sums.

    logits           [T, V]
    target           [U], labels from 1 to V - 1
    length           the valid steps of `logits`; None: T
    target_length    the valid labels of `target`; None: U

    Steps and labels beyond these lengths may be anything, NaN included, and change neither value nor gradient. The
    likelihood of an empty target is that of blanks at all steps. A target that needs more steps than there are (its
    labels, and one blank between equal neighbours) is impossible: it gives -inf, with a gradient of zero; and so is a
    label whose logit is -inf everywhere. NaN in a valid logit gives NaN.

    Raises ValueError for other shapes, and for labels and lengths out of range; if they are traced, an error at run
    time.
    """
    logits = check_logits(logits, "[T, V]")
    T, V = logits.shape
    length = number_of_steps(length, T)
    labels, target_length = check_target(target, target_length, V)
    logits = blank(logits, length, T).astype(carry_dtype(logits.dtype))
    log_p = floored_log(jax.nn.log_softmax(logits))
    ignored = ~valid_steps(length, T)
    absent = ~valid_steps(target_length, labels.shape[0])
    # One ignored step and one absent label more, since optax takes no empty arrays.
    log_p, ignored = jnp.pad(log_p, ((0, 1), (0, 0))), jnp.pad(ignored, (0, 1), constant_values=True)
    labels, absent = jnp.pad(labels, (0, 1)), jnp.pad(absent, (0, 1), constant_values=True)
    dtype = log_p.dtype
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        (loss,) = optax.ctc_loss(
            log_p[None],
            ignored[None].astype(dtype),
            labels[None],
            absent[None].astype(dtype),
            blank_id=BLANK,
            log_epsilon=FLOOR,
        )
    return impossible_as_infinity(-loss.astype(dtype))
