"""The matrix-state recurrence for TPU, in Pallas for Mosaic: blocks of time one after the other, S in vector memory.

The grid has sequences, heads, tiles of columns and blocks of time, which run in order. The backward half gets nothing
from the forward half: a first sweep writes the state before every block, and a second one, from the last block on,
computes the states of a block again and takes its steps back. Arithmetic and stored states are float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import Interpret, output, pallas, tpu
from ..contract import Emitted, Operands, State
from ..tiles import added_up, gradient_types
from . import body
from .layout import Layout, by_head, by_time, cut, heads_first, wide


def forward(operands: Operands, *, reads_before: bool, interpret: Interpret = False) -> tuple[Emitted, State]:
    """What the steps of all sequences emit, and the last states."""
    given = by_head(operands)
    layout = Layout.of(given)
    outputs = output(given.steps.value.shape, jnp.float32), output(given.state.shape, jnp.float32)
    program = partial(body.forward, reads_before, layout.T)
    specs = layout.by_column(), layout.state()
    ys, last = _call("forward", program, layout, (given, (), ()), (outputs, specs), interpret)
    return by_time(ys, operands.steps.value), cut(last, operands.state)


def backward(
    operands: Operands,
    dys: Emitted,
    dlast: State,
    *,
    reads_before: bool,
    needs_gradient: tuple[bool, ...],
    interpret: Interpret = False,
) -> list[Array]:
    """The gradients of those operands that need one; `needs_gradient` says so of each array that there is."""
    given = by_head(operands)
    layout = Layout.of(given)
    B, N, K, V = given.state.shape
    borders = (output((B, N, layout.blocks, K, V), jnp.float32),)
    program = partial(body.borders, layout.T)
    (befores,) = _call("borders", program, layout, (given, (), ()), (borders, (layout.border(),)), interpret)
    layout = layout._replace(reverse=True)
    others = befores, heads_first(wide(dys)), wide(dlast)
    specs = layout.border(), layout.by_column(), layout.state()
    outputs = (gradient_types(given, pallas.cdiv(V, layout.columns)),), (layout.gradients(given),)
    program = partial(body.backward, reads_before, layout.T)
    scratch = [(layout.steps + 1, K, layout.columns)]
    (gradients,) = _call("backward", program, layout, (given, others, specs), outputs, interpret, scratch)
    steps = jax.tree.map(lambda each: each.swapaxes(-2, -3), gradients.steps)
    steps = steps._replace(value=by_time(gradients.steps.value, operands.steps.value))
    dstate, dstart = (None if each is None else cut(each, operands.state) for each in gradients[1:3])
    return added_up(gradients._replace(steps=steps, state=dstate, start=dstart), operands, needs_gradient)


def _call(
    name: str,
    program: Callable[..., None],
    layout: Layout,
    given: tuple[Operands, Sequence[Array], Sequence[Any]],
    outputs: tuple[Sequence[Any], Sequence[Any]],
    interpret: Interpret,
    scratch: Sequence[tuple[int, ...]] = (),
) -> Any:
    """Run `program` over the grid, on operands and other arrays with their blocks, to outputs with their blocks."""
    operands, others, specs = given
    B, N, K, V = operands.state.shape
    return pallas.pallas_call(
        program,
        grid=(B, N, pallas.cdiv(V, layout.columns), layout.blocks),
        in_specs=[layout.operands(operands), *specs],
        out_specs=list(outputs[1]),
        out_shape=list(outputs[0]),
        scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape in [(K, layout.columns), *scratch]],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        name=f"rnnjax_matrix_scan_{name}",
        interpret=interpret,
    )(operands, *others)
