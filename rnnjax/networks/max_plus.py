"""The running maximum of decaying numbers, m_t = max(f_t + m_{t-1}, i_t), of all steps at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arrays import Flags, select
from ..cells.slstm import START
from ..kernels.linear_scan.primitive import linear_scan
from ..marks import mark_touched, quarantine
from ..network import Options

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
    safe_shifts, safe_entries = safe.xs
    found = _maxima(safe.state, safe_shifts, safe_entries, options.resets, end)
    last = select(jnp.asarray(end) > 0, mark_touched(safe.last_touched, found.last), start)
    before, after = mark_touched(safe.touched, (found.before, found.after))
    return Maxima(last, before, after)


def _maxima(
    start: Vector, shifts: VectorOverTime, entries: VectorOverTime, resets: Flags | None, end: int | Array
) -> Maxima:
    """By a max-plus scan which of the two is larger at each step, and then the maxima by a linear one.

    The derivative of the first scan, which is long to compile, is not needed.
    """
    carries = jax.lax.stop_gradient(shifts + _before(start, _estimates(start, shifts, entries, resets), resets))
    is_carried = carries > entries
    after = linear_scan(is_carried.astype(shifts.dtype), jnp.where(is_carried, shifts, entries), start)
    last = jax.lax.dynamic_index_in_dim(jnp.concatenate([start[None], after]), end, keepdims=False)
    return Maxima(last, _before(start, after, resets), after)


def _estimates(start: Vector, shifts: VectorOverTime, entries: VectorOverTime, resets: Flags | None) -> VectorOverTime:
    """The maxima after each step, without a derivative."""
    start, shifts, entries = jax.lax.stop_gradient((start, shifts, entries))
    if resets is not None:  # no number from before a reset is larger than -inf
        shifts = select(resets, jnp.full_like(shifts, -jnp.inf), shifts)
    shift, entry = jax.lax.associative_scan(_combine, (shifts, entries))
    return jnp.maximum(shift + start[None], entry)


def _combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    return earlier[0] + later[0], jnp.maximum(earlier[1] + later[0], later[1])


def _before(start: Vector, after: VectorOverTime, resets: Flags | None) -> VectorOverTime:
    """The maxima before each step."""
    before = jnp.concatenate([start[None], after[:-1]])
    return before if resets is None else select(resets, jnp.full_like(before, START), before)
