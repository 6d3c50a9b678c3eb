"""What a matrix cell and its marks give to the kernel of the matrix-state recurrence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ... import check
from ...arrays import PyTree
from ...cell import describe
from ...kernels.matrix_scan.contract import Operands
from ...marks import Marks
from ...matrix_cell import AbstractMatrixCell, Matrix, Transition


def transitions(cell: AbstractMatrixCell, xs: PyTree[Array]) -> Transition:
    """The coefficients of all steps."""
    return jax.vmap(cell.coefficients)(cell.project(xs))


def operands_of(cell: AbstractMatrixCell, state: Matrix, xs: PyTree[Array], marks: Marks) -> Operands:
    """The coefficients of all steps, where the state is reset, and to what, and which steps are ignored."""
    steps = transitions(cell, xs)
    _check(cell, steps, state.S)
    start = None if cell.initial_state is None or marks.resets is None else marks.initial.S
    length = None if marks.length is None else marks.length.astype(jnp.int32)
    return Operands(steps, state.S, start, marks.resets, length)


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
