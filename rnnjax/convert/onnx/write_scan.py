"""A gated cell that ONNX has no node for, as its node Scan: the step, written out, and a loop around it."""

from collections.abc import Hashable

import jax
import numpy as np

from ...cell import AbstractCell, describe
from ...gated_cell import AbstractAffineCell, AbstractGatedCell
from ...kernels.recurrence.contract import Pointwise
from ...kernels.recurrence.pointwise.step import Step, translate
from ...refusal import Refusal
from .builder import Builder
from .context import Context, Names
from .direction_of import dense
from .write_expression import write_expressions
from .write_function import write_affine

INHERITED = (  # what the loop is written by
    *((AbstractGatedCell, name) for name in ("step", "advance")),
    (AbstractCell, "emit"),
    *((AbstractAffineCell, name) for name in ("project", "readout")),
)


def write_scan(cell: AbstractGatedCell, context: Context, state: Names, xs: str) -> tuple[Names, str]:
    """The last state, and the outputs [T, B, H]."""
    _check_inherited(cell)
    step = translate(Pointwise.of(cell), context.dtype)
    if isinstance(step, Refusal):
        raise ValueError(
            f"network: expected a cell that ONNX has, or a pointwise that can be written out, got {describe(cell)}: "
            f"{step}. Use Elman, LSTM or GRU, or export with jax.export"
        )
    graph, units = context.graph, cell.hidden_size
    us = write_affine(context, xs, np.asarray(cell.input_weight).T, cell.bias)
    before = [context.filled(name, units) for name in state]
    masks = () if context.lengths is None else (context.lengths.valid,)
    scanned = us, *masks
    outputs = graph.node(
        "Scan",
        *(*before, *scanned),
        outputs=(*(f".{name}" for name in state._fields), ""),  # "" is the name of no field
        body=_body(cell, step, context),
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(context.reverse)] * len(scanned),
        scan_output_directions=[int(context.reverse)],
    )
    *last, ys = outputs
    return type(state)(*last), ys


def _body(cell: AbstractGatedCell, step: Step, context: Context) -> object:
    """One step of a batch: the state after it, and once more the part of it that is put out."""
    outer, gates, H = context.graph, len(cell.gates), cell.hidden_size
    body = Builder(outer.onnx, prefix=f"{outer.prefix}Scan_{len(outer.nodes)}/")
    names = cell.state_type._fields
    before = [body.input(f"{body.prefix}before.{name}", context.dtype, ("batch", H)) for name in names]
    u = body.input(f"{body.prefix}u", context.dtype, ("batch", gates * H))
    valid = None if context.lengths is None else body.input(f"{body.prefix}valid", bool, ("batch", 1))
    recurrent = dense(np.asarray(cell.recurrent_weight), H)
    v = body.node("MatMul", before[0], outer.constant(recurrent.T))
    by_gate = tuple(f".{gate}" for gate in range(gates))
    us, vs = (_split(body, array, by_gate) for array in (u, v))
    sums = {
        (True, True): lambda u, v: body.node("Add", u, v),
        (True, False): lambda u, _: u,
        (False, True): lambda _, v: v,
    }
    named: dict[Hashable, str] = {
        ("pre_activations", row): sums[each.input, each.recurrent](us[each.gate], vs[each.gate])
        for row, each in enumerate(step.pre_activations)
    }
    named |= {("before", row): name for row, name in enumerate(before)}
    parameters = jax.tree.leaves(cell.unit_parameters)
    named |= {("unit_parameters", row): outer.constant(array) for row, array in enumerate(parameters)}
    after = write_expressions(body, step.graph, step.after, named)
    if valid is not None:
        after = [body.node("Where", valid, new, old) for new, old in zip(after, before, strict=True)]
    outputs = (*(f"after.{name}" for name in names), "output")
    for name, value in zip(outputs, (*after, after[0]), strict=True):
        body.output(f"{body.prefix}{name}", value, context.dtype, ("batch", H))
    return body.graph("step")


def _split(body: Builder, array: str, names: tuple[str, ...]) -> list[str]:
    return [array] if len(names) == 1 else body.node("Split", array, axis=1, outputs=names)


def _check_inherited(cell: AbstractGatedCell) -> None:
    for family, method in INHERITED:
        if getattr(type(cell), method) is not getattr(family, method):
            raise ValueError(
                f"network: expected the {method} of {family.__name__}, by which its loop is written, "
                f"got {describe(cell)}, which overrides it. Use Elman, LSTM or GRU, or export with jax.export"
            )
