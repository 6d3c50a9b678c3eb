"""Micro-steps of a matrix mixer: n erasures and writes for each input, as n steps of the recurrence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from ...cells.matrix_recurrence import MatrixRecurrence
from ...matrix_cell import Matrix, Transition
from ...network import Options
from .projected import Projected


def spread(
    projected: Projected,
    decay: Inexact[Array, "T N D"] | None,
    erase: Float[Array, "T M E"] | None,
    scale: float,
    heads: int,
    micro_steps: int,
) -> Transition:
    """The transitions of all micro-steps, [T, n, N, ..]: the first decays, and the query reads after the last.

    S = a * S - e k (k' (a * S)) + k (w v)'
    """
    _, query, key, value, write = projected
    query = jnp.repeat(scale * query[:, None], micro_steps, axis=1)
    key, value = _by_micro_step(key, micro_steps), _by_micro_step(value, micro_steps)
    decay = jnp.ones((value.shape[0], heads, 1), key.dtype) if decay is None else decay
    rest = jnp.ones((decay.shape[0], micro_steps - 1, *decay.shape[1:]), decay.dtype)
    decay = jnp.concatenate([decay[:, None], rest], axis=1) if micro_steps > 1 else decay[:, None]
    if write is not None:
        value = value * _by_micro_step(write, micro_steps)
    if erase is not None:  # each head erases by a strength of its own, so that keys are no longer shared
        query, key = (jnp.repeat(shared, heads // shared.shape[2], axis=2) for shared in (query, key))
        erase = _by_micro_step(erase, micro_steps) * decay * key
    dtype = np.result_type(*(leaf.dtype for leaf in (query, key, value, decay)))
    steps = Transition(decay, key, value, query, erase)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), steps)


def _by_micro_step(rows: Inexact[Array, "T M S"], micro_steps: int) -> Inexact[Array, "T n N S"]:
    steps, count, size = rows.shape
    return rows.reshape(steps, micro_steps, count // micro_steps, size)


def recurrence_of(steps: Transition, initial_state: Matrix | None) -> MatrixRecurrence:
    """The recurrence of these transitions, [T, n, N, ..], from a learned initial state if there is one."""
    *_, heads, value_size = steps.value.shape
    *_, key_heads, key_size = steps.key.shape
    recurrence = MatrixRecurrence(
        heads,
        key_size,
        value_size,
        scalar_decay=steps.decay.shape[-1] == 1,
        erases=steps.erase is not None,
        key_heads=key_heads,
        dtype=steps.key.dtype,
    )
    return eqx.tree_at(lambda cell: cell.initial_state, recurrence, initial_state, is_leaf=lambda leaf: leaf is None)


def fold_rows(steps: Transition) -> Transition:
    """The transitions of all micro-steps, one after the other, [n T, N, ..]."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), steps)


def fold_options(options: Options, micro_steps: int, steps: int) -> Options:
    """The options of the recurrence: a length of n times as many steps, and resets before the first of n."""
    if micro_steps == 1:
        return options
    length, resets = options.length, options.resets
    if resets is not None:
        rest = jnp.zeros((steps, micro_steps - 1), bool)
        resets = jnp.concatenate([resets[:, None], rest], axis=1).reshape(steps * micro_steps)
    return options._replace(length=None if length is None else micro_steps * length, resets=resets)


def last_micro_steps(reads: Inexact[Array, "nT N V"], micro_steps: int) -> Inexact[Array, "T N V"]:
    """What is read after the last micro-step of each step."""
    return reads.reshape(reads.shape[0] // micro_steps, micro_steps, *reads.shape[1:])[:, -1]
