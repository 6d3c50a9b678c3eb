"""The linear recurrence in plain JAX: where there is no kernel, and the place to read first."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    reverse: bool,
    late: bool,
    resets: bool = True,
) -> Inexact[Array, "B T H"]:
    """All states, by `jax.lax.associative_scan` of the steps as maps h -> a h + b; A is B, or 1 for all alike."""
    if b.shape[1] == 0:
        return b
    first = -1 if reverse else 0
    if late:
        ones = jnp.ones_like(a[:, :1])
        a = jnp.concatenate([a[:, 1:], ones] if reverse else [ones, a[:, :-1]], 1)
    if not resets:
        steps = a, b.at[:, first].add(a[:, first] * initial)
        return jax.lax.associative_scan(_compose, steps, reverse=reverse, axis=1)[1]
    steps = a, b.at[:, first].set(_step(a[:, first], a[:, first] == 0, initial, b[:, first])), a == 0
    return jax.lax.associative_scan(_compose_resets, steps, reverse=reverse, axis=1)[1]


def _step(a: Array, forgets: Array, before: Array, b: Array) -> Array:
    """`a * before + b`, or `b` alone: by selection, since zero times what is not finite would be NaN."""
    return jnp.where(forgets, b, a * before + b)


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map `second(first(h))` of two maps."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def _compose_resets(
    first: tuple[Array, Array, Array], second: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """The same of maps that may forget. That a product is zero does not tell that it forgets: it may be small."""
    return second[0] * first[0], _step(second[0], second[2], first[1], second[1]), first[2] | second[2]
