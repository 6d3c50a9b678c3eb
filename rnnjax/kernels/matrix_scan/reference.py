"""The matrix-state recurrence in plain JAX: one chunk of time after the other, each by matrix products."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ...arrays import select
from ...matrix_cell import Transition
from .chunk import Resets, run_chunk
from .contract import Emitted, Operands, State


class Steps(NamedTuple):
    """Steps with their marks: where the state is reset, and which steps are valid, those first; None: no marks."""

    transitions: Transition
    resets: Bool[Array, " T"] | None
    valid: Bool[Array, " T"] | None


def scan(operands: Operands, *, reads_before: bool, size: int) -> tuple[Emitted, State]:
    """What the steps of one sequence emit and its last state, in chunks of `size` steps, a power of two.

    One state is stored for each chunk, and the gradient computes the chunk again.
    """
    start, T = operands.start, len(operands.steps.value)
    by_head: Any = None if start is None else 0
    shared: Any = None
    of_resets = None if operands.resets is None else Resets(shared, by_head)
    heads = jax.vmap(partial(run_chunk, reads_before=reads_before), (0, 1, of_resets), (0, 1))

    @jax.checkpoint
    def body(state: State, chunk: Steps) -> tuple[State, Emitted]:
        steps, flags, valid = chunk
        resets = None if flags is None else Resets(flags, start)
        if valid is None:
            return heads(state, steps, resets)
        # A chunk of ignored steps gets a safe state: one that overflowed times zero would be NaN.
        safe = select(valid[0], state, jnp.zeros_like(state))
        after, ys = heads(safe, steps, resets)
        return select(valid[0], after, state), select(valid, ys, jnp.zeros_like(ys))

    cut = lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:])  # noqa: E731
    state, ys = jax.lax.scan(body, operands.state, jax.tree.map(cut, _padded(_marked(operands), -T % size)))
    return ys.reshape(-1, *ys.shape[2:])[:T], state


def _marked(operands: Operands) -> Steps:
    """The steps, of which the ignored ones leave the state alone."""
    steps, resets = operands.steps, operands.resets
    if operands.length is None:
        return Steps(steps, resets, None)
    valid = jnp.arange(len(steps.value), dtype=operands.length.dtype) < operands.length
    changed = steps._replace(value=None, query=None, erase_key=None)
    nothing = jax.tree.map(jnp.zeros_like, changed)._replace(decay=jnp.ones_like(steps.decay))
    kept = select(valid, changed, nothing)
    steps = steps._replace(decay=kept.decay, key=kept.key, erase=kept.erase)
    return Steps(steps, None if resets is None else resets & valid, valid)


def _padded(steps: Steps, more: int) -> Steps:
    """The steps and `more` of them, which leave the state alone."""
    if more == 0:
        return steps
    pad = lambda leaf, number=0: jnp.pad(  # noqa: E731
        leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1), constant_values=number
    )
    transitions, resets, valid = steps
    padded = jax.tree.map(pad, transitions)._replace(decay=pad(transitions.decay, 1))
    return Steps(padded, *(None if flags is None else pad(flags, False) for flags in (resets, valid)))
