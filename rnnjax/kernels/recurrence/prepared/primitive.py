"""The forward half on prepared weights as a primitive, which is batched as `recurrence` is, and has no derivative."""

from typing import Any

from jax.interpreters import ad, partial_eval

from ...varying import vary_alike
from .. import functions
from ..contract import Pointwise, PreparedWeights, Primals, SequenceMarks, Sequences, Trajectory
from ..functions import PreparedPlans
from ..primitive import bind, forward_of_used, make_primitive, trajectory_of
from .packing import NO_GRADIENT
from .reference import PreparedReferencePlan


def run(pointwise: Pointwise, plans: PreparedPlans, weights: PreparedWeights, sequences: Sequences) -> Trajectory:
    """All states of all sequences, on each platform by the plan of its kernel, or by the reference's."""
    xs, state, *marks = sequences
    operands = vary_alike((Primals(weights, xs, state), SequenceMarks(*marks)))
    used_outputs = (True,) * pointwise.fields
    static: dict[str, Any] = {"pointwise": pointwise, "plans": plans, "residual_size": 0}
    return trajectory_of(bind(prepared_p, operands, used_outputs=used_outputs, **static))


def _refuse_gradient(primals: Any, tangents: Any, **static: Any) -> None:
    del primals, tangents, static
    raise ValueError(NO_GRADIENT)


prepared_p = make_primitive(
    "prepared_recurrence",
    functions.forward,
    functions.forward_types,
    "residual_size",
    "used_outputs",
    reference=PreparedReferencePlan,
)
ad.primitive_jvps[prepared_p] = _refuse_gradient
partial_eval.dce_rules[prepared_p] = forward_of_used
