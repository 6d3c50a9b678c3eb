"""Errors about values that are known only when a program runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Int

from .arrays import PyTree, select
from .exporting import is_for_export


def error_where(tree: PyTree[Array], wrong: Bool[Array, "..."], message: str) -> PyTree[Array]:
    """`tree` as it is, but an error with this message, when the program runs, if anything is `wrong`.

    wrong    booleans over the leading axes of every array of `tree`; a scalar is about all of it

    It is `eqx.error_if`, and as there nothing is checked if the result is not used. That calls back to Python, which a
    file of `jax.export` cannot: in an exported program what is `wrong` becomes NaN, and an integer -1. So it does in a
    program of several devices: the others would wait for ever for the one that has raised.
    """
    return error_by_number_where(tree, wrong, jnp.zeros_like(wrong, "int32"), (message,))


def error_by_number_where(
    tree: PyTree[Array], wrong: Bool[Array, "..."], number: Int[Array, "..."], messages: Sequence[str]
) -> PyTree[Array]:
    """The same with a message for each number; of all that is wrong, the highest number is named.

    `messages` can be hashed.
    """
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, error_p.bind(wrong, number, *map(jnp.asarray, leaves), messages=messages))


def _raise(wrong: Array, number: Array, *leaves: Array, messages: Sequence[str]) -> list[Array]:
    if len(messages) == 1:
        return list(eqx.error_if(leaves, wrong.any(), messages[0]))
    highest = jnp.where(wrong, number, 0).max()
    return list(eqx.branched_error_if(leaves, wrong.any(), highest, messages))


def _mark(wrong: Array, number: Array, *leaves: Array, messages: Sequence[str]) -> list[Array]:
    del number, messages
    return [select(wrong, jnp.full_like(leaf, _no_value(leaf)), leaf) for leaf in leaves]


def _no_value(leaf: Array) -> float | int | bool:
    """A value that cannot pass for a right one, where the dtype has such a value."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.nan
    return -1 if jnp.issubdtype(leaf.dtype, jnp.signedinteger) else leaf.dtype.type(0)


def _types(wrong: Any, number: Any, *leaves: Any, messages: Sequence[str]) -> list[Any]:
    del wrong, number, messages
    return list(leaves)


def _jvp(primals: Any, tangents: Any, *, messages: Sequence[str]) -> tuple[list[Array], list[Any]]:
    return error_p.bind(*primals, messages=messages), list(tangents[2:])


def _batch(operands: Any, axes: Any, *, messages: Sequence[str]) -> tuple[list[Array], list[int]]:
    """A mapped axis becomes the first of all: then `wrong` still covers the leading axes."""
    size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    fronted = [
        jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    results = error_p.bind(*fronted, messages=messages)
    return results, [0] * len(results)


def _lower(context: Any, *operands: Any, messages: Sequence[str]) -> Any:
    function = _mark if is_for_export(context) or _number_of_devices(context) > 1 else _raise
    return mlir.lower_fun(partial(function, messages=messages))(context, *operands)


def _number_of_devices(context: mlir.LoweringRuleContext) -> int:
    """The devices of the program: those of the mesh within `jax.shard_map`."""
    axes: Any = context.module_context.axis_context
    return axes.mesh.size if hasattr(axes, "mesh") else axes.num_devices or 1


error_p = Primitive("error")
error_p.multiple_results = True
error_p.def_impl(_raise)
error_p.def_abstract_eval(_types)
ad.primitive_jvps[error_p] = _jvp
batching.primitive_batchers[error_p] = _batch
mlir.register_lowering(error_p, _lower)
