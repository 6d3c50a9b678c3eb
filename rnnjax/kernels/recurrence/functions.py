"""The primitives of `recurrence` and their types, as functions of flat operands.

The operands are the leaves of the tuple in each docstring; `form` is the structure of that tuple.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array

from ...arrays import DType, PyTree
from .contract import Form, KernelPlan, NeedsGradient, PreparedPlan, Primals, Sequences
from .reference import ReferencePlan

KernelPlans = tuple[tuple[str, KernelPlan], ...]  # by platform, as JAX names it
PreparedPlans = tuple[tuple[str, PreparedPlan], ...]


def forward(
    *leaves: Array,
    form: Form,
    plan: KernelPlan | PreparedPlan,
    residual_size: int,
    used_outputs: tuple[bool, ...],
) -> list[Array]:
    """`(primals, marks)` to a trajectory."""
    primals, marks = jax.tree.unflatten(form, leaves)
    sequences = Sequences.of(primals, marks)
    return jax.tree.leaves(plan.forward(primals.weights, sequences, residual_size, used_outputs))


def backward(*leaves: Array, form: Form, plan: KernelPlan, needs_gradient: NeedsGradient) -> list[Array]:
    """`(primals, marks, trajectory, dstates, dlast)` to the cotangents that are needed."""
    primals, marks, trajectory, dstates, dlast = jax.tree.unflatten(form, leaves)
    sequences = Sequences.of(primals, marks)
    return jax.tree.leaves(plan.backward(primals.weights, sequences, trajectory, dstates, dlast, needs_gradient))


def tangent(*leaves: Array, form: Form, plan: KernelPlan) -> list[Array]:
    """`(primals, marks, trajectory, tangents)` to the tangents of all states and of the last one, by the reference."""
    reference = ReferencePlan(plan.pointwise)
    primals, marks, _, tangents = jax.tree.unflatten(form, leaves)

    def run(*flat: Array) -> PyTree:
        at = Primals.of(flat)
        used_outputs = (True,) * reference.pointwise.fields
        return reference.forward(at.weights, Sequences.of(at, marks), 0, used_outputs)[:2]

    pairs = [_alike(*pair) for pair in zip(primals.flat(), tangents.flat(), strict=True)]
    return jax.tree.leaves(jvp(run, [primal for primal, _ in pairs], [moving for _, moving in pairs]))


def _alike(primal: Array, moving: Array | None) -> tuple[Array, Array | None]:
    """A weight and its tangent broadcast to one shape, since only one of them may be shared by all groups."""
    if moving is None:
        return primal, None
    shape = jnp.broadcast_shapes(primal.shape, moving.shape)
    return jnp.broadcast_to(primal, shape), jnp.broadcast_to(moving, shape)


def jvp(function: Callable[..., PyTree], primals: Sequence[Array], tangents: Sequence[PyTree]) -> PyTree:
    """The tangent of `function`; an input without a tangent is a constant."""
    moving = [number for number, tangent in enumerate(tangents) if present(tangent) is not None]

    def of_moving(*values: Array) -> PyTree:
        inputs = list(primals)
        for number, value in zip(moving, values, strict=True):
            inputs[number] = value
        return function(*inputs)

    return jax.jvp(of_moving, [primals[number] for number in moving], [tangents[number] for number in moving])[1]


def present(tangent: PyTree) -> PyTree:
    """A tangent or cotangent; None where it is zero."""
    return None if isinstance(tangent, ad.Zero) else tangent


# The types. Each varies over those axes of a `jax.shard_map` that all operands vary over.


def forward_types(
    *leaves: Any, form: Form, residual_size: int, used_outputs: tuple[bool, ...], **static: Any
) -> list[Any]:
    del static
    weights, xs, state = jax.tree.unflatten(form, leaves)[0]
    leading, units = xs.shape[:3], state.shape[3]
    states = _like(xs, (*leading, units), state.dtype)
    residuals = _like(weights.R, (*leading, residual_size, units), state.dtype)
    return [*(states for _ in range(sum(used_outputs))), _like(state, state.shape, state.dtype), residuals]


def tangent_types(*leaves: Any, form: Form, **static: Any) -> list[Any]:
    del static
    trajectory = jax.tree.unflatten(form, leaves)[2]
    return [*trajectory.states, trajectory.last]


def backward_types(*leaves: Any, form: Form, needs_gradient: NeedsGradient, **static: Any) -> list[Any]:
    del static
    weights, xs, state = jax.tree.unflatten(form, leaves)[0]
    dweights = [_like(weight, (state.shape[0], *weight.shape[1:]), state.dtype) for weight in weights]
    types = *dweights, _like(xs, xs.shape, xs.dtype), _like(state, state.shape, state.dtype)
    return [kind for kind, is_needed in zip(types, Primals(*needs_gradient).flat(), strict=True) if is_needed]


def _like(aval: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    return aval.update(shape=shape, dtype=dtype, weak_type=False)
