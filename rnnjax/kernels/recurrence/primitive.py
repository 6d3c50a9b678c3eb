"""The recurrence as three primitives with all of JAX's rules, written once for all kernels.

    forward     weights, sequences -> trajectory                                 run by the kernels
    tangent     its derivative, linear in those tangents that are not zero       run by the reference, in forward mode
    backward    the transpose of `tangent`                                       run by the kernels

Why the weights' tangents are inputs of `tangent`: under `grad(vmap(f))` the batch is folded into B before anything is
transposed, so `backward` gets the whole batch and computes one gradient of each weight. Under `vmap(grad(f))` it is
`backward` that is mapped, and the mapped axis is folded into S: one gradient for each sequence.
"""

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, partial_eval
from jaxtyping import Array

from ...arrays import PyTree
from ...exporting import is_for_export
from ..varying import vary_alike
from . import functions
from .batching import batch
from .contract import NeedsGradient, Pointwise, Primals, SequenceMarks, Sequences, Trajectory, Weights
from .functions import KernelPlans, PreparedPlans, present
from .reference import ReferencePlan


def run(pointwise: Pointwise, plans: KernelPlans, weights: Weights, sequences: Sequences) -> Trajectory:
    """All states of all sequences, on each platform by the plan of its kernel, or of the reference if it has none.

    It has derivatives of any order and can be batched along any axis; second derivatives are those of the reference.
    """
    xs, state, *marks = sequences
    operands = vary_alike((Primals(weights, xs, state), SequenceMarks(*marks)))
    used_outputs = (True,) * pointwise.fields
    static: dict[str, Any] = {"pointwise": pointwise, "plans": plans}
    return trajectory_of(bind(forward_p, operands, residual_size=0, used_outputs=used_outputs, **static))


def bind(primitive: Primitive, operands: PyTree, **static: Any) -> list[Array]:
    """The results of a primitive of operands in a tree."""
    leaves, form = jax.tree.flatten(operands)
    return primitive.bind(*leaves, form=form, **static)


def trajectory_of(outputs: list[Array]) -> Trajectory:
    """All states, from the flat results of a forward half."""
    *states, last, residuals = outputs
    return Trajectory(tuple(states), last, residuals)


# Derivatives


def _forward_jvp(
    primals: Any, tangents: Any, *, form: Any, residual_size: int, used_outputs: tuple[bool, ...], **static: Any
) -> tuple[list[Any], list[Any]]:
    """Run it with all residuals that `backward` needs, and bind `tangent`."""
    operands = jax.tree.unflatten(form, primals)
    largest = max([residual_size, *(plan.residual_size for _, plan in static["plans"])])
    every = (True,) * len(used_outputs)
    trajectory = trajectory_of(bind(forward_p, operands, residual_size=largest, used_outputs=every, **static))
    moving, _ = jax.tree.unflatten(form, list(map(present, tangents)))
    *state_tangents, last_tangent = bind(tangent_p, (*operands, trajectory, moving), **static)
    residuals = trajectory.residuals[:, :, :, :residual_size]
    # Residuals have no tangent: only `backward` reads them, and its derivative does not need theirs.
    no_tangent = ad.Zero(jax.typeof(residuals).to_tangent_aval())
    outputs = [*compress(trajectory.states, used_outputs), trajectory.last, residuals]
    return outputs, [*compress(state_tangents, used_outputs), last_tangent, no_tangent]


def _tangent_transpose(cotangents: Any, *leaves: Any, form: Any, **static: Any) -> list[Any]:
    """Bind `backward` for the tangents that need a gradient, with the cotangents that are not zero."""
    *at, tangents = jax.tree.unflatten(form, leaves)
    *dstates, dlast = map(present, cotangents)
    needs_gradient = NeedsGradient(*Primals.of(map(ad.is_undefined_primal, tangents.flat())))
    avals = [leaf.aval if ad.is_undefined_primal(leaf) else None for leaf in tangents.flat() if leaf is not None]
    if all(cotangent is None for cotangent in (*dstates, dlast)):
        answers = [None if aval is None else ad.Zero(aval) for aval in avals]
    else:
        results = iter(bind(backward_p, (*at, tuple(dstates), dlast), needs_gradient=needs_gradient, **static))
        answers = [None if aval is None else _fit(next(results), aval) for aval in avals]
    return [*(None for _ in leaves[: -len(avals)]), *answers]


def _fit(cotangent: Array, aval: Any) -> Array:
    """A cotangent in the shape and dtype of its array: summed over the groups, if they share that array."""
    summed = cotangent if cotangent.shape == aval.shape else cotangent.sum(0, keepdims=True)
    return summed.astype(aval.dtype)


def _jvp_by_reference(
    primitive: Primitive, function: Callable[..., list[Array]], primals: Any, tangents: Any, **static: Any
) -> tuple[list[Array], list[Array]]:
    """`primitive`, and its tangent by the reference, which is plain JAX and has all derivatives."""
    results = primitive.bind(*primals, **static)
    del static["plans"]
    plan = ReferencePlan(static.pop("pointwise"))
    plain = partial(function, **static, plan=plan)
    return results, functions.jvp(plain, primals, tangents)


# Unused outputs


def forward_of_used(used: list[bool], *others: Any) -> tuple[list[bool], Any]:
    """A rule of `dce_rules`: `equation` without the states that are not used, half of what an LSTM would write."""
    equation = others[-1]  # JAX 0.12 puts before it which inputs are alive
    if not any(used):
        return [False] * len(equation.invars), None
    still_used = iter(used)
    used_outputs = tuple(was and next(still_used) for was in equation.params["used_outputs"])
    answers = [*used[: -len(ALWAYS)], *ALWAYS]
    params = equation.params | {"used_outputs": used_outputs}
    return [True] * len(equation.invars), equation.replace(
        outvars=[*compress(equation.outvars, answers)], params=params
    )


ALWAYS = True, True  # the last state, and the residuals


# The primitives


def make_primitive(
    name: str,
    function: Callable[..., list[Array]],
    types: Callable[..., list[Any]],
    *parameters: str,
    reference: Callable[[Pointwise], Any] = ReferencePlan,
) -> Primitive:
    """A primitive that is `function` by the plan of the platform's kernel, or by the reference; and is batched."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    compiled = jax.jit(primitive.bind, static_argnames=("form", "pointwise", "plans", *parameters))
    primitive.def_impl(partial(_compiled, compiled))
    primitive.def_abstract_eval(types)
    for platform in (None, *PLATFORMS):
        mlir.register_lowering(primitive, partial(_lower, function, reference, platform), platform=platform)
    batching.primitive_batchers[primitive] = partial(batch, primitive)
    return primitive


def _compiled(run: Callable[..., list[Array]], *operands: Array, **static: Any) -> list[Array]:
    """A primitive is compiled even under `jax.disable_jit`, since it has no implementation but its lowering rule."""
    with jax.disable_jit(False):
        return run(*operands, **static)


def _lower(
    function: Callable[..., list[Array]],
    reference: Callable[[Pointwise], Any],
    platform: str | None,
    context: Any,
    *operands: Any,
    pointwise: Pointwise,
    plans: KernelPlans | PreparedPlans,
    **static: Any,
) -> Any:
    """Lower `function` by the plan for `platform`, or by the reference. No kernel of another platform is traced.

    For `jax.export` the plan has to be one that exports. All operands vary over the same axes of a `jax.shard_map`,
    which are hidden from the kernels.
    """
    nothing = jax.sharding.ManualAxisType()
    plain = context.replace(avals_in=[aval.update(manual_axis_type=nothing) for aval in context.avals_in])
    usable = (plan for name, plan in plans if name == platform and (plan.exported or not is_for_export(context)))
    plan = next(usable, reference(pointwise))
    return mlir.lower_fun(partial(function, plan=plan))(plain, *operands, **static)


PLATFORMS = "cpu", "cuda", "tpu"  # those with kernels; any other runs the reference

forward_p = make_primitive("recurrence", functions.forward, functions.forward_types, "residual_size", "used_outputs")
tangent_p = make_primitive("recurrence_tangent", functions.tangent, functions.tangent_types)
backward_p = make_primitive("recurrence_backward", functions.backward, functions.backward_types, "needs_gradient")

ad.primitive_jvps[forward_p] = _forward_jvp
partial_eval.dce_rules[forward_p] = forward_of_used
ad.primitive_jvps[tangent_p] = partial(_jvp_by_reference, tangent_p, functions.tangent)
ad.primitive_jvps[backward_p] = partial(_jvp_by_reference, backward_p, functions.backward)
ad.primitive_transposes[tangent_p] = _tangent_transpose
