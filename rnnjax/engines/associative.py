"""The engine `Associative`: a linear cell, parallel in time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..arrays import State, States, Units, UnitsOverTime, select
from ..cell import AbstractCell, AbstractLinearCell, Hidden, describe
from ..engine import AbstractEngine
from ..kernels.linear_scan.linear_scan import linear_scan
from ..marks import Marks


class Associative(AbstractEngine):
    """The steps of a linear cell as maps h -> a h + b, which can be composed in any order (Blelloch 1990).

    On CUDA and TPU a kernel reads (a, b) and writes h, step by step within a sequence or a part of it; elsewhere it is
    `jax.lax.associative_scan`, of depth log T in place of T for about twice the arithmetic. The gradient is the same
    recurrence backwards. A batch that is sharded over devices stays so under `jax.shard_map`. It needs an
    `AbstractLinearCell`; a nonlinear one has to go step by step.
    """

    def refusal(self, cell: AbstractCell, xs: PyTree[Array]) -> str | None:
        del xs
        if isinstance(cell, AbstractLinearCell):
            return None
        return f"Associative cannot run {describe(cell)}: it needs an AbstractLinearCell. Use Scan()."

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        a, b = _maps(cell, xs, marks)
        h = linear_scan(a, b, state.h, resets=marks.resets is not None)
        return Hidden(h[-1]), Hidden(h)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        """A part as a whole is a map h -> a h + b, too: the devices exchange these, and none waits for another."""
        a, b = _maps(cell, xs, marks)
        _, h = _scan_part(a, b, state.h, axis, marks.resets is not None)
        return Hidden(h[-1]), Hidden(h)


def _maps(cell: AbstractCell, xs: PyTree[Array], marks: Marks) -> tuple[UnitsOverTime, UnitsOverTime]:
    """The steps as maps h -> a h + b, their marks included."""
    assert isinstance(cell, AbstractLinearCell)
    a, b = jax.vmap(cell.coefficients)(cell.project(xs))
    ignored, reset = marks.over_time(a.shape[0])
    if ignored is not None:
        a, b = select(ignored, (jnp.ones_like(a), jnp.zeros_like(b)), (a, b))
    if reset is not None:  # where a is zero, what came before is forgotten
        a, b = select(reset, (jnp.zeros_like(a), a * marks.initial.h + b), (a, b))
    return a, b


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _scan_part(
    a: UnitsOverTime, b: UnitsOverTime, initial: Units, axis: str, resets: bool
) -> tuple[Units, UnitsOverTime]:
    """The state before this device's part of time, and all states of the part; `initial` is the one before the whole.

    Its derivative is the same again, as that of `linear_scan` is: to differentiate the scans within would keep more.
    """
    last = linear_scan(a, b, jnp.zeros_like(initial), resets=resets)[-1]
    factors, offsets = jax.lax.all_gather((jnp.prod(a, 0), last), axis)
    after = linear_scan(factors, offsets, initial, resets=resets)
    before = jnp.concatenate([initial[None], after])[jax.lax.axis_index(axis)]
    return before, linear_scan(a, b, before, resets=resets)


@_scan_part.defjvp
def _scan_part_jvp(axis: str, resets: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (a, b, initial), (ta, tb, tinitial) = primals, tangents
    before, h = _scan_part(a, b, initial, axis, resets)
    seen = jnp.concatenate([before[None], h[:-1]])
    # A state that is forgotten moves nothing, but zero times what is not finite would be NaN.
    moved = ta * jnp.where((a == 0) & ~jnp.isfinite(seen), jnp.zeros_like(seen), seen)
    return (before, h), _scan_part(a, moved + tb, tinitial, axis, resets)
