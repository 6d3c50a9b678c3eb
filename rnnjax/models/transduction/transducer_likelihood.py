"""The likelihood of a transcript by a transducer, and how its labels are aligned with the steps of the input."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...arrays import AnyArray, IntegerLike, widen
from ...checked import Checked
from ...marks import blank
from .joiner import Joiner
from .labels import Target, check_logits, check_target, number_of_steps
from .lattice import Arcs, arcs, lattice_log_likelihood


def transducer_log_likelihood(
    logits: Checked[AnyArray],
    target: Checked[AnyArray],
    *,
    length: Checked[IntegerLike | None] = None,
    target_length: Checked[IntegerLike | None] = None,
) -> Float[Array, ""]:
    """log p(target), the logarithm of the sum over all alignments, for one sequence, in float32 or wider.

    An alignment says the labels in their order, any number of them at each step, and the blank, class 0, once at each
    step, which leaves it: Graves 2012, "Sequence Transduction with Recurrent Neural Networks" (arXiv:1211.3711), eq. 12
    to 18. It takes O(T U) operations beside those of the softmax. (Graves pads t from 1; the sums are the same.)

    logits           [T, U + 1, V], at step t after u labels
    target           [U], labels from 1 to V - 1
    length           the valid steps; None: T
    target_length    the valid labels; None: U

    Steps and labels beyond these lengths may be anything, NaN included, and change neither value nor gradient. A target
    may be longer than the sequence. The likelihood of an empty target is that of a blank at each step; without any step
    it is 1, and of any other target it is 0. A likelihood of 0 gives -inf, with a gradient of zero.

    Raises ValueError for other shapes, and for labels and lengths out of range; if they are traced, an error at run
    time.
    """
    logits = check_logits(logits, "[T, U + 1, V]")
    T, states, V = logits.shape
    length = number_of_steps(length, T)
    labels, target_length = check_target(target, target_length, V)
    if states != len(labels) + 1:
        raise ValueError(
            f"logits: expected [T, {len(labels) + 1}, V] for a target of U={len(labels)} labels, "
            f"got {list(logits.shape)}. Pass logits for 0 to U labels said"
        )
    logits = blank(logits, length, T)
    logits = jnp.swapaxes(blank(jnp.swapaxes(logits, 0, 1), target_length + 1, states), 0, 1)
    return lattice_log_likelihood(_of_one_step_more(arcs(logits, labels)), length, target_length)


def arcs_by_step(joiner: Joiner, heard: Float[Array, "T J"], predicted: Float[Array, "U1 J"], target: Target) -> Arcs:
    """The arcs of all steps, by the logits [U + 1, V] of one step at a time, which are made again for the gradient."""
    wide, narrow = widen((joiner, predicted))

    @partial(jax.checkpoint, prevent_cse=False)  # a scan separates the two passes by itself
    def one(wide: tuple[Joiner, Array], heard: Array) -> Arcs:
        joiner, predicted = narrow(wide)
        return arcs(joiner(jnp.broadcast_to(heard, predicted.shape), predicted), target.labels)

    return jax.lax.scan(lambda _, heard: (None, one(wide, heard)), None, heard)[1]


def label_times(arcs: Arcs, length: Array, target_length: Array) -> Float[Array, "T U"]:
    """The probability that label u is said at step t, given the transcript: the derivative of its log likelihood.

    Each valid label's column sums to one; others are zero.
    """

    def log_likelihood(label: Array) -> Array:
        return lattice_log_likelihood(Arcs(arcs.blank, label), length, target_length)

    return jax.grad(log_likelihood)(arcs.label)


def _of_one_step_more(arcs: Arcs) -> Arcs:
    """With a step that is ignored, since there is nothing to index where T is 0."""
    return jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 1), (0, 0))), arcs)
