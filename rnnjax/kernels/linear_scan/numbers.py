"""Arithmetic inside a kernel: a number is a tuple of real arrays, the real part and, if complex, the imaginary part.

The kernel languages have no complex numbers; with these functions the same code serves real and complex ones.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

Number = tuple[Array, ...]
References = tuple[Any, ...]  # to the parts of numbers


def split(x: Inexact[Array, "..."]) -> Number:
    """The parts of `x`."""
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def join(x: Number) -> Inexact[Array, "..."]:
    """The inverse of `split`."""
    return x[0] if len(x) == 1 else jax.lax.complex(*x)


def add(x: Number, y: Number) -> Number:
    return tuple(one + other for one, other in zip(x, y, strict=True))


def multiply(x: Number, y: Number) -> Number:
    if len(x) == 1:
        return (x[0] * y[0],)
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def vanishes(x: Number) -> Bool[Array, "..."]:
    """Where `x` is exactly zero."""
    return reduce(jnp.logical_and, [part == 0 for part in x])


def choose(condition: Bool[Array, "..."], x: Number, y: Number) -> Number:
    """`x` where `condition`, else `y`."""
    return tuple(jnp.where(condition, one, other) for one, other in zip(x, y, strict=True))


def advance(a: Number, b: Number, carry: Number, late: bool) -> tuple[Number, Number]:
    """One step: the state after it, and the carry to the next. Where `a` is zero, the state before has no effect."""
    if late:
        h = add(carry, b)
        moved = multiply(a, h)
        return h, choose(vanishes(a), tuple(map(jnp.zeros_like, moved)), moved)
    h = choose(vanishes(a), b, add(multiply(a, carry), b))
    return h, h
