"""The linear recurrence of a sequence whose time is spread over the devices of a mesh, part by part."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...arrays import Units, UnitsOverTime
from . import reference
from .primitive import linear_scan, times_state


def scan_part(
    a: UnitsOverTime, b: UnitsOverTime, initial: Units, axis: str, *, block: int | None = None, pallas: bool = False
) -> UnitsOverTime:
    """All states of this device's part, inside a `shard_map` over `axis`; `initial` is the state before the whole.

    A part as a whole is a map h -> a h + b, too: the devices exchange these maps and run at the same time.
    """
    return _scan(a, b, initial, axis, block, pallas)[1]


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _scan(
    a: UnitsOverTime, b: UnitsOverTime, initial: Units, axis: str, block: int | None, pallas: bool
) -> tuple[Units, UnitsOverTime]:
    """The state before this device's part of time, and all states of the part; `initial` is the one before the whole.

    Its derivative is the same function, as that of `linear_scan` is: differentiating the scans inside would store more.
    """
    scan = partial(linear_scan, block=block, pallas=pallas)
    last = scan(a, b, jnp.zeros_like(initial))[-1]
    factors, offsets = jax.lax.all_gather((reference.factor(jnp.prod(a, 0), (a == 0).any(0)), last), axis)
    after = scan(factors, offsets, initial)
    before = jnp.concatenate([initial[None], after])[jax.lax.axis_index(axis)]
    return before, scan(a, b, before)


@_scan.defjvp
def _scan_jvp(axis: str, block: int | None, pallas: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (a, b, initial), (ta, tb, tinitial) = primals, tangents
    before, h = _scan(a, b, initial, axis, block, pallas)
    by_a = times_state(ta, a, jnp.concatenate([before[None], h[:-1]]))
    return (before, h), _scan(a, by_a + tb, tinitial, axis, block, pallas)
