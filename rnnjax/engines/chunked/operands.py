"""What a matrix cell and its marks give to the kernel of the matrix-state recurrence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ... import check
from ...arrays import PyTree, count_steps, select
from ...cell import describe
from ...kernels.matrix_scan.contract import Operands
from ...marks import Marks
from ...matrix_cell import AbstractMatrixCell, Matrix, Transition


def transitions(cell: AbstractMatrixCell, xs: PyTree[Array]) -> Transition:
    """The coefficients of all steps."""
    return jax.vmap(cell.coefficients)(cell.project(xs))


def operands_of(cell: AbstractMatrixCell, state: Matrix, xs: PyTree[Array], marks: Marks) -> Operands:
    """The coefficients, by which ignored steps leave the state alone, and where it is reset, and to what."""
    steps = transitions(cell, xs)
    _check(cell, steps, state.S)
    ignored, resets = marks.over_time(count_steps(xs))
    if ignored is not None:
        steps = _without(steps, ignored)
    start = None if cell.initial_state is None or resets is None else marks.initial.S
    return Operands(steps, state.S, start, resets)


def _check(cell: AbstractMatrixCell, steps: Transition, S: Array) -> None:
    """Raise unless the coefficients have the heads and sizes of the state, and its dtype."""
    N, K, V = S.shape
    sizes = (1, K), (K,), (V,), (K,), (K,), (K,)
    for name, leaf, allowed in zip(Transition._fields, steps, sizes, strict=True):
        if leaf is not None and (leaf.shape[1:-1] != (N,) or leaf.shape[-1] not in allowed or leaf.dtype != S.dtype):
            raise ValueError(
                f"{describe(cell)}.coefficients: expected a {name} [{N}, {allowed[-1]}] in {S.dtype} for the state "
                f"{check.show(S)}, got {check.show(leaf[0])}. Return a row for each head, in the dtype of the state"
            )


def _without(steps: Transition, ignored: Array) -> Transition:
    """The steps, of which the ignored ones leave the state alone."""
    changed = steps._replace(value=None, query=None, erase_key=None)
    nothing = jax.tree.map(jnp.zeros_like, changed)._replace(decay=jnp.ones_like(steps.decay))
    kept = select(ignored, nothing, changed)
    return steps._replace(decay=kept.decay, key=kept.key, erase=kept.erase)
