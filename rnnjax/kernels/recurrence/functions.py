"""What the primitives of `recurrence` compute, and the types of it, as functions of flat operands.

An operand is a leaf of the tuple that each function names; `form` is the structure of that tuple.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array, PyTree

from .contract import AbstractKernel, Cotangents, Pointwise, Weights
from .reference import Reference

REFERENCE = Reference()

Kernels = tuple[tuple[str, AbstractKernel], ...]  # by platform, as JAX names it


class Tangents(NamedTuple):
    """The tangents of the seven arrays that a derivative is by; None where one is zero."""

    weights: Weights
    xs: Any
    state: Any


def seven(tree: Tangents | Cotangents) -> tuple[Any, ...]:
    """Weights, inputs and initial states: of these are the first seven operands everywhere, in this order."""
    return *tree.weights, tree.xs, tree.state


def of_seven(kind: type, entries: Iterable[Any]) -> Any:
    """The inverse of `seven`."""
    *weights, xs, state = entries
    return kind(Weights(*weights), xs, state)


def forward(
    *leaves: Array, form: Any, pointwise: Pointwise, kernel: AbstractKernel, keep: int, seen: tuple[bool, ...]
) -> list[Array]:
    """`(weights, sequences)` to a trajectory."""
    return jax.tree.leaves(kernel.forward(pointwise, *jax.tree.unflatten(form, leaves), keep=keep, seen=seen))


def backward(
    *leaves: Array, form: Any, pointwise: Pointwise, kernel: AbstractKernel, wanted: Cotangents
) -> list[Array]:
    """`(weights, sequences, trajectory, dstates, dlast)` to the cotangents that are wanted."""
    return jax.tree.leaves(kernel.backward(pointwise, *jax.tree.unflatten(form, leaves), wanted=wanted))


def tangent(*leaves: Array, form: Any, pointwise: Pointwise, kernel: AbstractKernel) -> list[Array]:
    """`(weights, sequences, trajectory, tangents)` to the tangents of the states and of the last one."""
    del kernel
    _, sequences, _, tangents = jax.tree.unflatten(form, leaves)

    def run(*entries: Array) -> PyTree:
        at = of_seven(Tangents, entries)
        moved = sequences._replace(xs=at.xs, state=at.state)
        return REFERENCE.forward(pointwise, at.weights, moved, keep=0, seen=(True,) * pointwise.fields)[:2]

    pairs = [_alike(*pair) for pair in zip(leaves[:7], seven(tangents), strict=True)]
    return jax.tree.leaves(jvp(run, [primal for primal, _ in pairs], [moving for _, moving in pairs]))


def _alike(primal: Array, moving: Array | None) -> tuple[Array, Array | None]:
    """Both of a weight that is shared by all groups and its tangent, which is not, or the other way round."""
    if moving is None:
        return primal, None
    shape = jnp.broadcast_shapes(primal.shape, moving.shape)
    return jnp.broadcast_to(primal, shape), jnp.broadcast_to(moving, shape)


def jvp(function: Callable[..., PyTree], primals: Sequence[Array], tangents: Sequence[Any]) -> PyTree:
    """The tangent of `function`; an input without one is a constant."""
    moving = [number for number, tangent in enumerate(tangents) if present(tangent) is not None]

    def of_moving(*values: Array) -> PyTree:
        inputs = list(primals)
        for number, value in zip(moving, values, strict=True):
            inputs[number] = value
        return function(*inputs)

    return jax.jvp(of_moving, [primals[number] for number in moving], [tangents[number] for number in moving])[1]


def present(tangent: Any) -> Any:
    """A tangent or cotangent; None where it is zero."""
    return None if isinstance(tangent, ad.Zero) else tangent


# The types. Each varies over those axes of a `jax.shard_map` that all operands vary over.


def forward_types(*leaves: Any, form: Any, keep: int, seen: tuple[bool, ...], **static: Any) -> list[Any]:
    del static
    weights, sequences = jax.tree.unflatten(form, leaves)
    xs, state = sequences.xs, sequences.state
    leading, units = xs.shape[:3], state.shape[3]
    states = _like(xs, (*leading, units), state.dtype)
    kept = _like(weights.R, (*leading, keep, units), state.dtype)
    return [*(states for _ in range(sum(seen))), _like(state, state.shape, state.dtype), kept]


def tangent_types(*leaves: Any, form: Any, **static: Any) -> list[Any]:
    del static
    trajectory = jax.tree.unflatten(form, leaves)[2]
    return [*trajectory.states, trajectory.last]


def backward_types(*leaves: Any, form: Any, wanted: Cotangents, **static: Any) -> list[Any]:
    del static
    weights, sequences = jax.tree.unflatten(form, leaves)[:2]
    xs, state = sequences.xs, sequences.state
    dweights = [_like(weight, (state.shape[0], *weight.shape[1:]), state.dtype) for weight in weights]
    types = *dweights, _like(xs, xs.shape, xs.dtype), _like(state, state.shape, state.dtype)
    return [kind for kind, want in zip(types, seven(wanted), strict=True) if want]


def _like(aval: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return aval.update(shape=shape, dtype=dtype, weak_type=False)
