"""The matrix-state recurrence for CPUs: compiled code that goes through time step by step, in both halves.

A part of the state stays in the first-level cache for all of time: some value columns of one head, which do not depend
on the others. The backward half gets nothing from the forward half: it computes the states again, one chunk of time
after the other, so that they stay in the second-level cache.
"""

from itertools import compress
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ...arrays import DType
from ..native import library
from ..recurrence.cpu.cpu import InstructionSet
from .contract import Emitted, Operands, State

DTYPES = "float32", "float64"


def is_here_for(dtype: DType) -> bool:
    """Whether the compiled code runs states of `dtype`, and JAX runs on CPUs by default.

    Where it runs on GPUs or TPUs, the plain form is better differentiated by JAX itself: the rule of `backward`, which
    gets nothing from the forward half, would run it once more.
    """
    return runs(dtype) and jax.default_backend() == "cpu"


def runs(dtype: DType) -> bool:
    """Whether the compiled code is available, for states of `dtype`."""
    return np.dtype(dtype).name in DTYPES and library.absence() is None


def forward(
    operands: Operands, *, reads_before: bool, max_instruction_set: InstructionSet = InstructionSet.AVX512_BF16
) -> tuple[Emitted, State]:
    """What the steps of all sequences emit, and the last states. `max_instruction_set` is there for comparisons."""
    types = [_like(operands.steps.value), _like(operands.state)]
    call = jax.ffi.ffi_call(library.custom_call("rnnjax_matrix_scan"), types)
    ys, last = call(*_arrays(operands), reads_before=reads_before, max_instruction_set=np.int32(max_instruction_set))
    return ys, last


def backward(
    operands: Operands,
    dys: Emitted,
    dlast: State,
    *,
    reads_before: bool,
    needs_gradient: tuple[bool, ...],
    max_instruction_set: InstructionSet = InstructionSet.AVX512_BF16,
) -> list[Array]:
    """The gradients of those operands that need one; `needs_gradient` says so of each array that there is."""
    there = iter(needs_gradient)
    needed = [leaf is not None and next(there) for leaf in _numbers(operands)]
    nothing = jax.ShapeDtypeStruct((0,), dys.dtype)
    types = [_like(leaf) if need else nothing for leaf, need in zip(_numbers(operands), needed, strict=True)]
    call = jax.ffi.ffi_call(library.custom_call("rnnjax_matrix_scan_backward"), types)
    gradients = call(
        *_arrays(operands), dys, dlast, reads_before=reads_before, max_instruction_set=np.int32(max_instruction_set)
    )
    return list(compress(gradients, needed))


def _numbers(operands: Operands) -> list[Any]:
    """The arrays but resets and length, in the order of the compiled code; None where there is none."""
    return [*operands.steps, operands.state, operands.start]


def _arrays(operands: Operands) -> list[Any]:
    """All arrays, in the order of the compiled code, with an array without elements in place of None."""
    leaves = [*_numbers(operands), operands.resets, operands.length]
    dtypes = [*(operands.state.dtype for _ in leaves[:-2]), bool, np.int32]
    return [np.zeros((0,), dtype) if leaf is None else leaf for leaf, dtype in zip(leaves, dtypes, strict=True)]


def _like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
