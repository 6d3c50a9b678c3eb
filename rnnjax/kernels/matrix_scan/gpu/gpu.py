"""The matrix-state recurrence for CUDA, in Pallas for Triton: step by step, some columns of a head in registers.

Each program is a block of threads with a tile of columns of one head of one sequence, through all of time. The backward
half gets nothing from the forward half. A first sweep writes the state at the start of every chunk of time; then, chunk
by chunk, the last one first, a program computes all states of the chunk again, into memory of its own, and takes the
steps back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import output, pallas, triton
from ..contract import Emitted, Operands, State
from ..tiles import added_up, gradient_types
from . import body
from .place import Form


def forward(operands: Operands, *, reads_before: bool, interpret: bool = False) -> tuple[Emitted, State]:
    """What the steps of all sequences emit, and the last states."""
    form = Form.of(operands, reads_before)
    value, state = operands.steps.value, operands.state
    outputs = output(value.shape, value.dtype), output(state.shape, state.dtype)
    ys, last = _call("forward", body.forward, form, outputs, interpret)(_readable(operands))
    return ys, last


def backward(
    operands: Operands,
    dys: Emitted,
    dlast: State,
    *,
    reads_before: bool,
    needs_gradient: tuple[bool, ...],
    interpret: bool = False,
) -> list[Array]:
    """The gradients of those operands that need one; `needs_gradient` says so of each array that there is."""
    form = Form.of(operands, reads_before)
    given, (B, N, K, V) = _readable(operands), operands.state.shape
    borders = output((B, N, form.chunks, K, V), jnp.float32)
    (befores,) = _call("borders", body.borders, form, (borders,), interpret)(given)
    outputs = gradient_types(operands, form.tiles), output((B, N, form.chunk, K, V), jnp.float32)
    program = partial(body.backward, not interpret)
    gradients, _ = _call("backward", program, form, outputs, interpret)(given, befores, dys, dlast)
    return added_up(gradients, operands, needs_gradient)


def _readable(operands: Operands) -> Operands:
    """The operands, with flags as numbers: Triton has no arrays of booleans."""
    return operands._replace(resets=None if operands.resets is None else operands.resets.astype(jnp.int32))


def _call(name: str, program: Callable[..., None], form: Form, outputs: Any, interpret: bool) -> Callable[..., Any]:
    """Run `program` for each tile of columns, head and sequence; the results have the types `outputs`."""

    def run(operands: Operands, *others: Array) -> Any:
        B, N = operands.state.shape[:2]
        return pallas.pallas_call(
            partial(program, form),
            out_shape=outputs,
            grid=(form.tiles, N, B),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            name=f"rnnjax_matrix_scan_{name}",
            interpret=interpret,
        )(operands, *others)

    return run
