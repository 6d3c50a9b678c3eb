"""The running maximum of decaying numbers, m_t = max(f_t + m_{t-1}, i_t), of all steps at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arrays import Flags, select
from ..marks import mark_touched, quarantine
from ..network import Options

START = -1e30  # the maximum of no number: finite, since -inf less -inf is NaN

Vector = Float[Array, " N"]
VectorOverTime = Float[Array, "T N"]


class Maxima(NamedTuple):
    """The maximum after the last step, and over time those before and after each step."""

    last: Vector
    before: VectorOverTime
    after: VectorOverTime


def running_maximum(start: Vector, shifts: VectorOverTime, entries: VectorOverTime, options: Options) -> Maxima:
    """m_t = max(shift_t + m_{t-1}, entry_t) by an associative scan; a reset sets m to `START` before its step.

    As in `unroll`, values that are not finite reach neither a value nor a gradient after the next reset.
    """
    T = shifts.shape[0]
    if T == 0:
        return Maxima(start, shifts, entries)
    end = T if options.length is None else options.length
    if options.resets is None:
        return _maxima(start, shifts, entries, None, end)
    rest = jnp.full_like(start, START)
    safe = quarantine((shifts, entries), start, options.length, options.resets, rest)
    last, *over_time = _maxima(safe.state, *safe.xs, options.resets, end)
    last = select(jnp.asarray(end) > 0, mark_touched(safe.last_touched, last), start)
    return Maxima(last, *mark_touched(safe.touched, over_time))


def _maxima(
    start: Vector, shifts: VectorOverTime, entries: VectorOverTime, resets: Flags | None, end: int | Array
) -> Maxima:
    if resets is not None:  # no number from before a reset is larger than -inf
        shifts = select(resets, jnp.full_like(shifts, -jnp.inf), shifts)
    shift, entry = jax.lax.associative_scan(_combine, (shifts, entries))
    after = jnp.maximum(shift + start[None], entry)
    all_maxima = jnp.concatenate([start[None], after])
    before = all_maxima[:-1]
    if resets is not None:
        before = select(resets, jnp.full_like(before, START), before)
    return Maxima(jax.lax.dynamic_index_in_dim(all_maxima, end, keepdims=False), before, after)


def _combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    return earlier[0] + later[0], jnp.maximum(earlier[1] + later[0], later[1])
