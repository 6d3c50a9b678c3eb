"""What the primitives of `recurrence` compute, and the types of it, as functions of flat operands.

An operand is a leaf of the tuple that each function names; `form` is the structure of that tuple.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array

from ...arrays import DType, PyTree
from .contract import Cotangents, Form, KernelPlan, Weights
from .reference import ReferencePlan

KernelPlans = tuple[tuple[str, KernelPlan], ...]  # by platform, as JAX names it


class Tangents(NamedTuple):
    """The tangents of the seven arrays that a derivative is by; None where one is zero."""

    weights: Weights
    xs: Any
    state: Any


def seven(tree: Tangents | Cotangents) -> tuple[PyTree, ...]:
    """Weights, inputs and initial states: of these are the first seven operands everywhere, in this order."""
    return *tree.weights, tree.xs, tree.state


def of_seven(kind: type, entries: Iterable[PyTree]) -> PyTree:
    """The inverse of `seven`."""
    *weights, xs, state = entries
    return kind(Weights(*weights), xs, state)


def forward(
    *leaves: Array, form: Form, plan: KernelPlan, residual_size: int, used_outputs: tuple[bool, ...]
) -> list[Array]:
    """`(weights, sequences)` to a trajectory."""
    operands = jax.tree.unflatten(form, leaves)
    return jax.tree.leaves(plan.forward(*operands, residual_size=residual_size, used_outputs=used_outputs))


def backward(*leaves: Array, form: Form, plan: KernelPlan, needs_gradient: Cotangents) -> list[Array]:
    """`(weights, sequences, trajectory, dstates, dlast)` to the cotangents that are needed."""
    return jax.tree.leaves(plan.backward(*jax.tree.unflatten(form, leaves), needs_gradient=needs_gradient))


def tangent(*leaves: Array, form: Form, plan: KernelPlan) -> list[Array]:
    """`(weights, sequences, trajectory, tangents)` to those of the states and of the last one, by the reference."""
    reference = ReferencePlan(plan.pointwise)
    _, sequences, _, tangents = jax.tree.unflatten(form, leaves)

    def run(*entries: Array) -> PyTree:
        at = of_seven(Tangents, entries)
        at_sequences = sequences._replace(xs=at.xs, state=at.state)
        used_outputs = (True,) * reference.pointwise.fields
        return reference.forward(at.weights, at_sequences, residual_size=0, used_outputs=used_outputs)[:2]

    pairs = [_alike(*pair) for pair in zip(leaves[:7], seven(tangents), strict=True)]
    return jax.tree.leaves(jvp(run, [primal for primal, _ in pairs], [moving for _, moving in pairs]))


def _alike(primal: Array, moving: Array | None) -> tuple[Array, Array | None]:
    """Both of a weight that is shared by all groups and its tangent, which is not, or the other way round."""
    if moving is None:
        return primal, None
    shape = jnp.broadcast_shapes(primal.shape, moving.shape)
    return jnp.broadcast_to(primal, shape), jnp.broadcast_to(moving, shape)


def jvp(function: Callable[..., PyTree], primals: Sequence[Array], tangents: Sequence[PyTree]) -> PyTree:
    """The tangent of `function`; an input without one is a constant."""
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
    weights, sequences = jax.tree.unflatten(form, leaves)
    xs, state = sequences.xs, sequences.state
    leading, units = xs.shape[:3], state.shape[3]
    states = _like(xs, (*leading, units), state.dtype)
    residuals = _like(weights.R, (*leading, residual_size, units), state.dtype)
    return [*(states for _ in range(sum(used_outputs))), _like(state, state.shape, state.dtype), residuals]


def tangent_types(*leaves: Any, form: Form, **static: Any) -> list[Any]:
    del static
    trajectory = jax.tree.unflatten(form, leaves)[2]
    return [*trajectory.states, trajectory.last]


def backward_types(*leaves: Any, form: Form, needs_gradient: Cotangents, **static: Any) -> list[Any]:
    del static
    weights, sequences = jax.tree.unflatten(form, leaves)[:2]
    xs, state = sequences.xs, sequences.state
    dweights = [_like(weight, (state.shape[0], *weight.shape[1:]), state.dtype) for weight in weights]
    types = *dweights, _like(xs, xs.shape, xs.dtype), _like(state, state.shape, state.dtype)
    return [kind for kind, is_needed in zip(types, seven(needs_gradient), strict=True) if is_needed]


def _like(aval: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    return aval.update(shape=shape, dtype=dtype, weak_type=False)
