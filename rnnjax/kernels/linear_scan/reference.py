"""The linear recurrence in plain JAX: the fallback without a kernel, and the file to read first.

Time is divided into blocks, and all blocks run side by side, each step by step. Work and memory are those of a loop,
the program does not grow with T, and there are few sequential steps.

    summary    of each block, the map of the state before it to the state after it: h -> a h + b
    scan       of these maps, as of steps, again in blocks
    replay     of each block, from the last state of the block before it
    rest       the steps after the last whole block, one by one
"""

from collections.abc import Callable
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .numbers import advance

SHORTEST = 64  # steps: up to so many are one block


class Walk(NamedTuple):
    """The order of the steps: `blocks` blocks of `block` steps, which begin in memory at step `first`."""

    blocks: int
    block: int
    first: int
    reverse: bool
    late: bool


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    block: int,
    reverse: bool,
    late: bool,
) -> Inexact[Array, "B T H"]:
    """All states, in blocks of `block` steps; A is B, or 1 for one `a` of all rows."""
    if b.size == 0:
        return b
    T = b.shape[1]
    block = min(block, T)
    rest = T % block
    walk = Walk(T // block, block, rest if reverse else 0, reverse, late)
    starts = initial[:, None]
    if walk.blocks > 1:
        products, ends = _summary(a, b, walk)
        ends = scan(products, ends, initial, block=length(walk.blocks), reverse=reverse, late=False)
        starts = shift(initial, ends, reverse)
    h, after = _replay(a, b, starts, walk)
    if rest == 0:
        return h
    steps = slice(0, rest) if reverse else slice(T - rest, T)
    left = after[:, 0 if reverse else -1]
    others = scan(a[:, steps], b[:, steps], left, block=rest, reverse=reverse, late=late)
    return jnp.concatenate([others, h] if reverse else [h, others], 1)


def length(T: int) -> int:
    """The number of steps in a block, where many blocks side by side take as long as one."""
    return T if T <= SHORTEST else isqrt(T)


def shift(first: Inexact[Array, "B H"], rows: Inexact[Array, "B T H"], reverse: bool) -> Inexact[Array, "B T H"]:
    """`rows` one step later in running order, `first` before them."""
    if reverse:
        return jnp.concatenate([rows[:, 1:], first[:, None]], 1)
    return jnp.concatenate([first[:, None], rows[:, :-1]], 1)


def _summary(a: Array, b: Array, walk: Walk) -> tuple[Array, Array]:
    """The map of each block: the product of its `a`, and its last state from zero."""

    def visit(time: Any, a: Array, b: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        del time
        product, forgets, end = carry
        return a * product, forgets | (a == 0), advance((a,), (b,), (end,), walk.late)[1][0]

    none = jnp.zeros_like(b[:, : walk.blocks])
    one = jnp.ones_like(a[:, : walk.blocks])
    product, forgets, end = _walk(a, b, (one, one == 0, none), visit, walk)
    return factor(product, forgets), end


def factor(product: Array, forgets: Array) -> Array:
    """The product of many `a`; `forgets` says whether one of them is zero.

    It is zero if and only if one of them is zero; if it underflows, it is the smallest normal number instead.
    """
    faint = jnp.full_like(product, jnp.finfo(product.dtype).tiny)
    return jnp.where(forgets, jnp.zeros_like(product), jnp.where(product == 0, faint, product))


def _replay(a: Array, b: Array, starts: Array, walk: Walk) -> tuple[Array, Array]:
    """All states of all blocks, and the carry after each block."""

    def visit(time: Any, a: Array, b: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        (h,), (after,) = advance((a,), (b,), (carry[1],), walk.late)
        return jax.lax.dynamic_update_index_in_dim(carry[0], h, time, 2), after

    (B, _, H), whole = b.shape, walk.blocks * walk.block
    h = jnp.zeros_like(b[:, :whole]).reshape(B, walk.blocks, walk.block, H)
    h, after = _walk(a, b, (h, starts), visit, walk)
    return h.reshape(B, whole, H), after


def _walk(a: Array, b: Array, carry: Any, visit: Callable[..., Any], walk: Walk) -> Any:
    """`visit` each step of a block in running order, for all blocks at once; the carry after the last one.

    The steps are read by strided slices: reshaping time into blocks would copy `a` and `b` where T is no multiple.
    """
    span = (walk.blocks - 1) * walk.block + 1

    def read(rows: Array, time: Any) -> Array:
        return jax.lax.dynamic_slice_in_dim(rows, walk.first + time, span, 1)[:, :: walk.block]

    def turn(step: Any, carry: Any) -> Any:
        time = walk.block - 1 - step if walk.reverse else step
        return visit(time, read(a, time), read(b, time), carry)

    return jax.lax.fori_loop(0, walk.block, turn, carry)
