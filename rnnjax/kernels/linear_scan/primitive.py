"""The diagonal linear recurrence as one primitive with all of JAX's rules; its derivatives are the same primitive.

    early    h_t = a_t h_{t-1} + b_t                        the recurrence itself
    late     h_t = a_{t-1} h_{t-1} + b_t                    `a` acts after its step; before the first step it is one

The transpose of each, by `b` and the initial state, is the other in the opposite direction of time, so that no `a` has
to be shifted in memory. Where `a` is exactly zero, the state before has no effect, even if it is inf or NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact

from ...arrays import Units, UnitsOverTime
from ...exporting import is_for_export
from ..varying import vary_alike
from . import cpu, gpu, reference, tpu

# Those of CUDA and TPU are in Pallas. No device has measured them yet, so they are lowered on request only.
KERNELS: dict[str | None, tuple[Callable[..., Array], tuple[str, ...]]] = {  # by platform, and of which dtypes
    "cpu": (cpu.scan, ("float32", "float64", "complex64", "complex128")),
    "cuda": (gpu.scan, ("float32", "float64", "complex64", "complex128")),
    "tpu": (tpu.scan, ("float32", "complex64")),
}

Rows = Inexact[Array, "B T H"]  # or [1, T, H] for an `a` that all rows share
Row = Inexact[Array, "B H"]


def linear_scan(
    a: UnitsOverTime,
    b: UnitsOverTime,
    initial: Units,
    *,
    reverse: bool = False,
    block: int | None = None,
    pallas: bool = False,
) -> UnitsOverTime:
    """All states of `h_t = a_t h_{t-1} + b_t`, from h_0 = `initial`; or, in reverse, of `h_t = a_t h_{t+1} + b_t`.

    Where a_t is exactly zero, h_t is b_t, whatever the state before it. Derivatives and batches run on the same kernel:
    on CPUs the compiled one, and with `pallas` also those of CUDA and TPU, which are experimental. Everything else is
    plain JAX, in blocks of about sqrt(T) steps; with a `block` it always is, in blocks of `block` steps. Parts of a
    sequence run at once, so if the product of many `a` overflows, a state that is zero or not finite may differ from
    that of a step-by-step run.
    """
    dtype = jnp.result_type(a, b, initial)
    operands = vary_alike(tuple(each.astype(dtype) for each in (a, b, initial)))
    return linear_scan_p.bind(
        *(each[None] for each in operands), reverse=reverse, late=False, block=block, pallas=pallas
    )[0]


# Derivatives


def _jvp(primals: Any, tangents: Any, **static: Any) -> tuple[Array, Any]:
    """The tangent is the same recurrence, where the contribution of `ta` is added to `tb`."""
    (a, b, initial), (ta, tb, tinitial) = primals, tangents
    h = linear_scan_p.bind(a, b, initial, **static)
    reverse, late = static["reverse"], static["late"]
    if not isinstance(ta, ad.Zero):
        by_a = times_state(ta, a, h if late else reference.shift(initial, h, reverse))
        tb = ad.add_tangents(reference.shift(jnp.zeros_like(initial), by_a, reverse) if late else by_a, tb)
    tb, tinitial = map(ad.instantiate_zeros, (tb, tinitial))
    return h, linear_scan_p.bind(a, tb, tinitial, **static)


def times_state(ta: Array, a: Array, state: Array) -> Array:
    """`ta * state`, the tangent of `a * state` by `a`.

    Where `a` is zero, a state that is not finite counts as zero, since it has no effect on the value either.
    """
    return ta * jnp.where((a == 0) & ~jnp.isfinite(state), jnp.zeros_like(state), state)


def _transpose(dh: Any, a: Rows, b: Any, initial: Any, *, reverse: bool, late: bool, **static: Any) -> list[Any]:
    """The same recurrence backwards; the carry after its last step is the cotangent of the initial state."""
    if isinstance(dh, ad.Zero):
        return [None, *(ad.Zero(each.aval) if ad.is_undefined_primal(each) else None for each in (b, initial))]
    db = linear_scan_p.bind(a, dh, jnp.zeros_like(dh[:, 0]), reverse=not reverse, late=not late, **static)
    if not ad.is_undefined_primal(initial):
        return [None, db, None]
    first = -1 if reverse else 0
    left = db[:, first]
    if not late:
        left = jnp.where(a[:, first] == 0, jnp.zeros_like(left), a[:, first] * left)
    return [None, db if ad.is_undefined_primal(b) else None, left]


# Batches


def _batch(mapped: Any, operands: Any, axes: Any, **static: Any) -> tuple[Array, int | None]:
    """Fold a mapped axis into B, as its outer part."""
    if all(axis is None for axis in axes):
        return linear_scan_p.bind(*operands, **static), None
    fronted = [
        batching.bdim_at_front(operand, axis, mapped.size, mapped.explicit_mesh_axis)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    B = fronted[1].shape[1]
    a, b, initial = (_fold(each, B) for each in fronted)
    if axes[0] is None and operands[0].shape[0] == 1:  # all rows share it, as before
        a = operands[0]
    h = linear_scan_p.bind(a, b, initial, **static)
    return h.reshape(mapped.size, B, *h.shape[1:]), 0


def _fold(operand: Array, B: int) -> Array:
    """An operand with the mapped axis folded into its rows."""
    rows = jnp.broadcast_to(operand, (operand.shape[0], B, *operand.shape[2:]))
    return rows.reshape(-1, *rows.shape[2:])


# The primitive


def _type(a: Any, b: Any, initial: Any, **static: Any) -> Any:
    del a, initial, static
    return b.update(weak_type=False)


def _compiled(*operands: Array, **static: Any) -> Array:
    """It is compiled even under `jax.disable_jit`, since it has no implementation but its lowering rule."""
    with jax.disable_jit(False):
        return compiled(*operands, **static)


def _lower(platform: str | None, context: Any, *operands: Any, block: int | None, pallas: bool, **static: Any) -> Any:
    """Lower the kernel of `platform` if it has one for this call, or else plain JAX. No other kernel is traced.

    A file of `jax.export` holds no call of the CPU kernel, but plain JAX.
    """
    rows = context.avals_in[1]
    plain = block is not None or (platform == "cpu" and is_for_export(context))
    scan = None if plain else _kernel(platform, rows, pallas)
    if scan is None:
        scan = partial(reference.scan, block=block or _length(platform, rows.shape[1]))
    return mlir.lower_fun(partial(scan, **static), multiple_results=False)(context, *operands)


def _kernel(platform: str | None, rows: Any, pallas: bool) -> Callable[..., Array] | None:
    """The kernel of `platform` for arrays like `rows`; None if there is none, or if it does not pay off."""
    scan, dtypes = KERNELS.get(platform, (None, ()))
    if rows.dtype.name not in dtypes or not rows.size:
        return None
    chosen = cpu.pays(*rows.shape) if platform == "cpu" else pallas
    return scan if chosen else None


def _length(platform: str | None, T: int) -> int:
    """The number of steps in a block. On CPUs all of time is one: blocks do not pay off, and read each step twice."""
    return max(1, T) if platform == "cpu" else reference.length(T)


linear_scan_p = Primitive("linear_scan")
compiled = jax.jit(linear_scan_p.bind, static_argnames=("reverse", "late", "block", "pallas"))
linear_scan_p.def_impl(_compiled)
linear_scan_p.def_abstract_eval(_type)
ad.primitive_jvps[linear_scan_p] = _jvp
ad.primitive_transposes[linear_scan_p] = _transpose
batching.fancy_primitive_batchers[linear_scan_p] = _batch
for platform in (None, *KERNELS):
    mlir.register_lowering(linear_scan_p, partial(_lower, platform), platform=platform)
