"""The parts of a batch, as a loss takes them; a batch of another form is named before anything is computed."""

from typing import Any

import jax.numpy as jnp

from ..arrays import AnyArray, PyTree
from ..check import show

CHUNK = "(inputs, targets, resets), each [B, T], as rnnjax.training.streams makes them"
Batch = tuple[PyTree[AnyArray], PyTree[AnyArray], AnyArray | None] | tuple[PyTree[AnyArray], PyTree[AnyArray]]


def batch_parts(batch: PyTree, form: str, **ranks: int | None) -> tuple[Any, ...]:
    """The parts of `batch`, which are named by `ranks` and have these ranks; None stands for any tree of arrays.

    Raises TypeError for another number of parts, and ValueError for a part of another rank. `form` says for the message
    how such a batch is made.
    """
    names = ", ".join(ranks)
    if not isinstance(batch, tuple | list) or len(batch) != len(ranks):
        raise TypeError(f"batch: expected ({names}), got {show(batch)}. Pass {form}")
    wrong = [name for (name, rank), part in zip(ranks.items(), batch, strict=True) if not _has_rank(part, rank)]
    if wrong:
        expected = ", ".join(name if rank is None else f"{name} of rank {rank}" for name, rank in ranks.items())
        raise ValueError(
            f"batch: expected ({expected}), got {show(batch)}: {' and '.join(wrong)} of another rank. Pass {form}"
        )
    return tuple(batch)


def sequences(batch: PyTree) -> tuple[Any, Any, Any]:
    """`(xs, targets, lengths)` of a `Sequences`, of such a triple, or of `(xs, targets)`, where all steps count."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        batch = (*batch, None)
    form = "Sequences(xs, targets, lengths), or (xs, targets) if all steps count"
    return batch_parts(batch, form, xs=None, targets=None, lengths=None)


def _has_rank(part: Any, rank: int | None) -> bool:
    return rank is None or jnp.ndim(part) == rank
