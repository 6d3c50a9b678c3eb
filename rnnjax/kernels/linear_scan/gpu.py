"""The linear recurrence for CUDA, in Pallas for Triton: a thread computes a unit of a row, step by step.

Its speed is limited by memory: `a` and `b` are read once and `h` is written once. To have enough reads in flight, a
thread issues those of a whole window of steps before it computes the first. If there are too few threads to fill the
device, time is divided into chunks that run side by side, which reads `a` and `b` twice:

    summary    of each chunk, the map of the state before it to the state after it: h -> a h + b
    scan       of these maps, as of steps
    replay     of each chunk, from the last state of the chunk before it
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..pallas import output, pallas, triton
from .numbers import Number, References, advance, choose, join, multiply, split, vanishes

UNITS = 32  # of a program, which is one warp: it reads a step as one line of 128 bytes in float32
WINDOW = 256  # bytes of `a`, and again of `b`, that a thread has in flight: as many registers as there are

FILL = 2**13  # threads that saturate the memory of a device: each reads a window in about a microsecond
WORTH = 4  # chunks: with fewer, the gain is smaller than the cost of the second read
SHORTEST = 512  # steps of a chunk, which take longer than the two additional launches


class Walk(NamedTuple):
    """The order of the steps: the direction of time, and the length of the chunks."""

    steps: int
    length: int  # of a chunk
    reverse: bool
    late: bool

    @property
    def chunks(self) -> int:
        return pallas.cdiv(self.steps, self.length)


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    reverse: bool,
    late: bool,
    interpret: bool = False,
) -> Inexact[Array, "B T H"]:
    """All states; A is B, or 1 for one `a` of all rows."""
    B, T, H = b.shape
    walk = Walk(T, _length(B * H, T), reverse, late)
    parts = split(a), split(b)
    starts = initial[:, None]
    if walk.chunks > 1:
        products, ends = _call(_summary, walk, parts, [(B, walk.chunks, H)] * 2, interpret)
        ends = scan(join(products), join(ends), initial, reverse=False, late=False, interpret=interpret)
        starts = jnp.concatenate([starts, ends[:, :-1]], 1)
    return join(_call(_replay, walk, (*parts, split(starts)), [b.shape], interpret)[0])


def _length(threads: int, T: int) -> int:
    """The number of steps in a chunk: T, if chunks do not pay off."""
    chunks = min(FILL // threads, T // SHORTEST)
    return T if chunks < WORTH else pallas.cdiv(T, chunks)


# The calls


def _call(
    body: Callable[..., None], walk: Walk, numbers: tuple[Number, ...], shapes: list[tuple[int, ...]], interpret: bool
) -> list[Number]:
    """Run `body` for each tile of units, row and chunk; the results have the given shapes."""
    parts, dtype = len(numbers[0]), numbers[0][0].dtype
    B, H = shapes[0][0], shapes[0][2]
    outputs = [output(shape, dtype) for shape in shapes for _ in range(parts)]
    answers = pallas.pallas_call(
        partial(body, walk, H, parts),
        out_shape=outputs,
        grid=(pallas.cdiv(H, UNITS), B, walk.chunks),
        in_specs=[_block(part.shape, B) for number in numbers for part in number],
        out_specs=[_block(made.shape, B) for made in outputs],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        name=_name(body, walk),
        interpret=interpret,
    )(*(part for number in numbers for part in number))
    return _grouped(answers, parts)


def _block(shape: tuple[int, ...], B: int) -> Any:
    """All steps of some units of a row, or of the one row that all share."""
    shared = shape[0] < B
    return pallas.BlockSpec((None, shape[1], UNITS), lambda tile, row, _: (0 if shared else row, 0, tile))


def _name(body: Callable[..., None], walk: Walk) -> str:
    return "rnnjax_linear_scan" + "_reverse" * walk.reverse + "_summary" * (body is _summary)


def _grouped(parts: Any, size: int) -> list[References]:
    return [tuple(parts[first : first + size]) for first in range(0, len(parts), size)]


# The kernels


def _replay(walk: Walk, H: int, parts: int, *references: Any) -> None:
    """All states of a chunk."""
    a, b, starts, h = _grouped(references, parts)
    inside = _inside(H)
    chunk = pallas.program_id(2)

    def visit(time: Any, valid: Any, a: Number, b: Number, carry: Number) -> Number:
        after, carry = advance(a, b, carry, walk.late)
        _store(h, time, after, valid)
        return carry

    _walk(walk, inside, a, b, visit, _load(starts, chunk, inside, 0))


def _summary(walk: Walk, H: int, parts: int, *references: Any) -> None:
    """The map of a chunk: the product of its `a`, and its last state from zero."""
    a, b, products, ends = _grouped(references, parts)
    inside = _inside(H)
    chunk = pallas.program_id(2)
    zeros = jnp.zeros(UNITS, a[0].dtype)
    none = (zeros,) * parts
    one = (zeros + 1, *none[1:])

    def visit(time: Any, valid: Any, a: Number, b: Number, carry: Any) -> Any:
        del time, valid
        product, forgets, end = carry
        return multiply(a, product), forgets | vanishes(a), advance(a, b, end, walk.late)[1]

    product, forgets, end = _walk(walk, inside, a, b, visit, (one, zeros != 0, none))
    # It is zero if and only if one of the `a` is zero; if it underflows, it is the smallest normal number instead.
    faint = (zeros + jnp.finfo(zeros.dtype).tiny, *none[1:])
    product = choose(forgets, none, choose(vanishes(product), faint, product))
    _store(products, chunk, product, inside)
    _store(ends, chunk, end, inside)


def _walk(walk: Walk, inside: Any, a: References, b: References, visit: Callable[..., Any], carry: Any) -> Any:
    """`visit` each step of this chunk in running order, window by window; the carry after the last one."""
    first = pallas.program_id(2) * walk.length
    end = jnp.minimum(first + walk.length, walk.steps)
    window = min(WINDOW // (a[0].dtype.itemsize * len(a)), walk.length)

    def visit_window(number: Any, carry: Any) -> Any:
        steps = [first + number * window + step for step in range(window)]
        times = [walk.steps - 1 - step if walk.reverse else step for step in steps]
        valid = [inside & (step < end) for step in steps]
        # A step beyond the end is read as a = 1, b = 0, which does not change the carry.
        reads = [(_load(a, *place, 1), _load(b, *place, 0)) for place in zip(times, valid, strict=True)]
        for time, mask, read in zip(times, valid, reads, strict=True):
            carry = visit(time, mask, *read, carry)
        return carry

    return jax.lax.fori_loop(0, pallas.cdiv(walk.length, window), visit_window, carry)


def _inside(H: int) -> Any:
    """Which units of this tile exist."""
    return pallas.program_id(0) * UNITS + jnp.arange(UNITS, dtype="int32") < H


def _load(references: References, time: Any, mask: Any, other: int) -> Number:
    """A row of units, with the real number `other` where `mask` is false."""
    fills = (other, 0)
    return tuple(
        triton.load(reference.at[_row(time)], mask=mask, other=jnp.asarray(fill, reference.dtype))
        for reference, fill in zip(references, fills, strict=False)
    )


def _store(references: References, time: Any, values: Number, mask: Any) -> None:
    for reference, value in zip(references, values, strict=True):
        triton.store(reference.at[_row(time)], value, mask=mask)


def _row(time: Any) -> Any:
    """All units at that time. The interpreter needs both indices in one dtype, with or without 64-bit integers."""
    return time, pallas.ds(jnp.int32(0), UNITS)
