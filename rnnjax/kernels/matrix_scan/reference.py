"""The matrix-state recurrence in plain JAX: one chunk of time after the other, each by matrix products."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...matrix_cell import Transition
from .chunk import Resets, run_chunk
from .contract import Emitted, Operands, State


def scan(operands: Operands, *, reads_before: bool, size: int) -> tuple[Emitted, State]:
    """What the steps of one sequence emit and its last state, in chunks of `size` steps, a power of two.

    One state is stored for each chunk, and the gradient computes the chunk again.
    """
    steps, state, start, resets = operands
    T = len(steps.value)
    by_head: Any = None if start is None else 0
    shared: Any = None
    of_resets = None if resets is None else Resets(shared, by_head)
    heads = jax.vmap(partial(run_chunk, reads_before=reads_before), (0, 1, of_resets), (0, 1))

    @jax.checkpoint
    def body(state: State, chunk: tuple[Transition, Array | None]) -> tuple[State, Emitted]:
        steps, flags = chunk
        return heads(state, steps, None if flags is None else Resets(flags, start))

    cut = lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:])  # noqa: E731
    state, ys = jax.lax.scan(body, state, jax.tree.map(cut, _padded(steps, resets, -T % size)))
    return ys.reshape(-1, *ys.shape[2:])[:T], state


def _padded(steps: Transition, resets: Array | None, more: int) -> tuple[Transition, Array | None]:
    """The steps and `more` of them, which leave the state alone."""
    if more == 0:
        return steps, resets
    pad = lambda leaf, number=0: jnp.pad(  # noqa: E731
        leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1), constant_values=number
    )
    padded = jax.tree.map(pad, steps)._replace(decay=pad(steps.decay, 1))
    return padded, None if resets is None else pad(resets, False)
