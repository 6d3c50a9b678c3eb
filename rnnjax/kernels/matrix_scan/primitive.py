"""The matrix-state recurrence as primitives with all of JAX's rules: the kernel of a platform, or plain JAX.

    forward     operands -> what the steps emit, the last state
    tangent     its derivative, linear in the tangents that are not zero: plain JAX, in forward mode
    backward    the transpose of `tangent`; it needs the operands alone, and computes the states again

All operands have an axis B. A mapped axis is folded into it, so that `grad(vmap(f))` and `vmap(grad(f))` are both one
call of `backward`. Second derivatives are those of the plain form.
"""

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from ...exporting import is_for_export
from ..varying import vary_alike
from . import cpu, reference
from .contract import Emitted, Operands, State
from .platforms import PLATFORMS, kernel_of


def matrix_scan(operands: Operands, *, reads_before: bool, size: int, pallas: bool = False) -> tuple[Emitted, State]:
    """What the steps of one sequence emit, and its last state.

    On CPUs the compiled code runs float32 and float64. Where it is missing, in complex numbers, on other platforms and
    in programs of `jax.export`, it is plain JAX, in chunks of `size` steps, a power of two. If JAX runs on another
    platform by default, it is plain JAX everywhere. With `pallas` the kernels of CUDA and TPU, which are experimental,
    run float32 and bfloat16 there.
    """
    operands = vary_alike(operands)
    if not pallas and not cpu.is_here_for(operands.state.dtype):
        return reference.scan(operands, reads_before=reads_before, size=size)
    leaves, form = jax.tree.flatten(operands)
    how: dict[str, Any] = {"reads_before": reads_before, "size": size, "pallas": pallas}
    ys, last = forward_p.bind(*(leaf[None] for leaf in leaves), form=form, **how)
    return ys[0], last[0]


# In plain JAX. The operands are the leaves of `Operands`, by its structure `form`; `moving` says of each whether it has
# a tangent, or needs a gradient.


def _forward(*leaves: Array, form: Any, **static: Any) -> list[Array]:
    return list(jax.vmap(partial(reference.scan, **static))(jax.tree.unflatten(form, leaves)))


def _tangent(*leaves: Array, moving: tuple[bool, ...], **static: Any) -> list[Array]:
    """Operands, then tangents, to the tangents of both results."""
    operands, tangents = leaves[: len(moving)], leaves[len(moving) :]
    run, at = _of_moving(operands, moving, **static)
    return jax.jvp(run, at, tangents)[1]


def _backward(*leaves: Array, moving: tuple[bool, ...], **static: Any) -> list[Array]:
    """Operands, then the cotangents of both results, to gradients."""
    *operands, dys, dlast = leaves
    run, at = _of_moving(operands, moving, **static)
    return list(jax.vjp(run, *at)[1]([dys, dlast]))


def _of_moving(operands: Any, moving: tuple[bool, ...], **static: Any) -> tuple[Callable[..., list[Array]], Any]:
    """`forward` as a function of some operands, and what they are."""

    def run(*values: Array) -> list[Array]:
        given = iter(values)
        every = [next(given) if moves else leaf for leaf, moves in zip(operands, moving, strict=True)]
        return _forward(*every, **static)

    return run, tuple(compress(operands, moving))


# By the kernel of a platform, with the same arguments


def _forward_by(kernel: Any, *leaves: Array, form: Any, reads_before: bool, size: int) -> list[Array]:
    del size
    return list(kernel.forward(jax.tree.unflatten(form, leaves), reads_before=reads_before))


def _backward_by(
    kernel: Any, *leaves: Array, form: Any, moving: tuple[bool, ...], reads_before: bool, size: int
) -> list[Array]:
    del size
    *operands, dys, dlast = leaves
    given = jax.tree.unflatten(form, operands)
    return kernel.backward(given, dys, dlast, reads_before=reads_before, needs_gradient=moving)


# Derivatives


def _forward_jvp(primals: Any, tangents: Any, **static: Any) -> tuple[list[Array], list[Array]]:
    results = forward_p.bind(*primals, **static)
    moving = tuple(map(_moves, tangents))
    return results, tangent_p.bind(*primals, *compress(tangents, moving), moving=moving, **static)


def _tangent_transpose(cotangents: Any, *leaves: Any, moving: tuple[bool, ...], **static: Any) -> list[Any]:
    """Bind `backward` for the tangents that need a gradient."""
    operands, tangents = leaves[: len(moving)], leaves[len(moving) :]
    linear = [ad.is_undefined_primal(tangent) for tangent in tangents]
    if all(isinstance(cotangent, ad.Zero) for cotangent in cotangents):
        gradients = [ad.Zero(tangent.aval) for tangent in compress(tangents, linear)]
    else:
        places = iter(linear)
        needed = tuple(moves and next(places) for moves in moving)
        cotangents = map(ad.instantiate_zeros, cotangents)
        gradients = backward_p.bind(*operands, *cotangents, moving=needed, **static)
    answers = iter(gradients)
    return [*(None for _ in operands), *(next(answers) if is_linear else None for is_linear in linear)]


def _jvp_by_reference(
    primitive: Primitive, plain: Callable[..., list[Array]], primals: Any, tangents: Any, *, pallas: bool, **static: Any
) -> tuple[list[Array], list[Array]]:
    """`primitive`, and its tangent by plain JAX, which has all derivatives."""
    moving = list(map(_moves, tangents))

    def run(*values: Array) -> list[Array]:
        given = iter(values)
        return plain(*(next(given) if moves else leaf for leaf, moves in zip(primals, moving, strict=True)), **static)

    derivative = jax.jvp(run, tuple(compress(primals, moving)), tuple(compress(tangents, moving)))[1]
    return primitive.bind(*primals, pallas=pallas, **static), derivative


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, ad.Zero) and tangent.dtype != jax.dtypes.float0


# Batches


def _batch(
    primitive: Primitive, mapped: Any, operands: Any, axes: Any, **static: Any
) -> tuple[list[Array], list[int | None]]:
    """Fold a mapped axis into B, as its outer part. What is not mapped is copied."""
    if all(axis is None for axis in axes):
        results = primitive.bind(*operands, **static)
        return results, [None] * len(results)
    fronted = [
        batching.bdim_at_front(operand, axis, mapped.size, mapped.explicit_mesh_axis)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    B = fronted[0].shape[1]
    results = primitive.bind(*(leaf.reshape(mapped.size * B, *leaf.shape[2:]) for leaf in fronted), **static)
    split = [leaf.reshape(mapped.size, B, *leaf.shape[1:]) for leaf in results]
    return split, [0] * len(split)


# Types


def _forward_types(*leaves: Any, form: Any, **static: Any) -> list[Any]:
    del static
    operands = jax.tree.unflatten(form, leaves[: form.num_leaves])
    return [_like(operands.steps.value), _like(operands.state)]


def _backward_types(*leaves: Any, moving: tuple[bool, ...], **static: Any) -> list[Any]:
    del static
    return [_like(leaf) for leaf in compress(leaves, moving)]


def _like(aval: Any) -> Any:
    return aval.update(weak_type=False)


# The primitives


def _primitive(
    name: str,
    types: Callable[..., list[Any]],
    plain: Callable[..., list[Array]],
    by_kernel: Callable[..., list[Array]] | None = None,
) -> Primitive:
    """A primitive that is `by_kernel` where a platform has one for the call, and `plain` elsewhere."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    jitted = jax.jit(primitive.bind, static_argnames=("form", "moving", "reads_before", "size", "pallas"))
    primitive.def_impl(partial(_compiled, jitted))
    primitive.def_abstract_eval(types)
    for platform in (None, *PLATFORMS):
        mlir.register_lowering(primitive, partial(_lower, plain, by_kernel, platform), platform=platform)
    batching.fancy_primitive_batchers[primitive] = partial(_batch, primitive)
    return primitive


def _compiled(run: Callable[..., list[Array]], *operands: Array, **static: Any) -> list[Array]:
    """A primitive is compiled even under `jax.disable_jit`, since it has no implementation but its lowering rule."""
    with jax.disable_jit(False):
        return run(*operands, **static)


def _lower(
    plain: Callable[..., list[Array]],
    by_kernel: Callable[..., list[Array]] | None,
    platform: str | None,
    context: Any,
    *leaves: Any,
    pallas: bool,
    **static: Any,
) -> Any:
    """Lower one of the two forms. It does not see the axes of a `jax.shard_map` over which the operands vary."""
    nothing = jax.sharding.ManualAxisType()
    hidden = context.replace(avals_in=[aval.update(manual_axis_type=nothing) for aval in context.avals_in])
    form = static["form"]
    operands = jax.tree.unflatten(form, hidden.avals_in[: form.num_leaves])
    kernel = kernel_of(platform, operands, pallas=pallas, is_for_export=is_for_export(context))
    run = plain if kernel is None or by_kernel is None else partial(by_kernel, kernel)
    return mlir.lower_fun(partial(run, **static))(hidden, *leaves)


forward_p = _primitive("matrix_scan", _forward_types, _forward, _forward_by)
tangent_p = _primitive("matrix_scan_tangent", _forward_types, _tangent)
backward_p = _primitive("matrix_scan_backward", _backward_types, _backward, _backward_by)

ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = partial(_jvp_by_reference, tangent_p, _tangent)
ad.primitive_jvps[backward_p] = partial(_jvp_by_reference, backward_p, _backward)
ad.primitive_transposes[tangent_p] = _tangent_transpose
