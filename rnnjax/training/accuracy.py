"""How often a classifier is right."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import check
from ..arrays import AnyArray, PyTree
from ..check import show
from ..checked import Checked
from ..engine import AbstractEngine
from ..engines.auto import Auto
from ..marks import valid_steps
from ..models.batches import Batch, sequences
from ..models.classifier import run_batch
from ..models.tokens import integers


def accuracy(
    model: Callable[..., Array], batch: Checked[Batch], *, size: int = 1000, engine: AbstractEngine = Auto()
) -> float:
    """The share of targets that are the likeliest class of the model's answer; of a tagger, over all valid steps.

        validate=lambda model: 1 - accuracy(model, held_out)  # for `fit`

    model    a `Classifier`, a `Tagger`, or what is called like one: `model(xs, length=, engine=, key=)`, logits [K] for
             a sequence, or [T, K]
    batch    `Sequences`, `(xs, targets, lengths)`, or `(xs, targets)`: any number of them, with targets [B] or [B, T]
    size     how many sequences are run at once

    An answer with a NaN in it counts as wrong. Raises ValueError for targets that are not shaped like the answers, and
    where there is none to count; TypeError for targets that are not integers.
    """
    check.sizes(size=size)
    xs, targets, lengths = sequences(batch)
    B = len(jax.tree.leaves(xs)[0])
    for name, part in {"targets": targets, "lengths": lengths}.items():
        if part is not None and len(part) != B:
            raise ValueError(
                f"{name}: expected one for each of {B} sequences, got {len(part)}. Pass as many as sequences"
            )
    counts = np.zeros(2, int)
    for start in range(0, B, size):
        part = slice(start, start + size)
        cut = lambda tree, part=part: jax.tree.map(lambda leaf: jnp.asarray(leaf[part]), tree)  # noqa: E731
        counts += np.asarray(_count(model, cut(xs), cut(targets), cut(lengths), engine))
    right, total = counts.tolist()
    if total == 0:
        raise ValueError(f"batch: expected at least one target to count, got {show(targets)}. Pass more sequences")
    return right / total


@eqx.filter_jit
def _count(
    model: Callable[..., Array],
    xs: PyTree[AnyArray],
    targets: AnyArray,
    lengths: AnyArray | None,
    engine: AbstractEngine,
) -> Array:
    """How many answers are right, and how many there are."""
    answers = run_batch(model, xs, lengths, None, engine)
    if targets.shape != answers.shape[:-1]:
        raise ValueError(
            f"targets: expected {list(answers.shape[:-1])}, a class for each of the answers {list(answers.shape)}, "
            f"got {list(targets.shape)}. Pass one integer for each answer"
        )
    right = (answers.argmax(-1) == integers("targets", targets)) & ~jnp.isnan(answers).any(-1)
    valid = jnp.ones(targets.shape, bool)
    if targets.ndim == 2 and lengths is not None:
        valid = jax.vmap(lambda length: valid_steps(length, targets.shape[1]))(lengths)
    return jnp.stack([(right & valid).sum(), valid.sum()])
