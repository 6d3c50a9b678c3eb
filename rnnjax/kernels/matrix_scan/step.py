"""One step of a matrix state and its transpose, for kernels that go through time with the state on the chip.

S is [K, V], some columns of the state of a head. A kernel brings the products in the form that its language has.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...matrix_cell import Transition


class Products(NamedTuple):
    """The products of a state with the vectors of a step, which have a number for each key or for each column."""

    outer: Callable[[Array, Array], Array]  # of a key and a value: key value'
    over_keys: Callable[[Array, Array], Array]  # of a key and S: S' key
    over_values: Callable[[Array, Array], Array]  # of S and a value: S value
    scale: Callable[[Array, Array], Array]  # of a decay and S: decay * S


class Written(NamedTuple):
    """What a step takes from the state, and what it puts there."""

    erased: Array | None  # S' erase
    value: Array  # that `key` is multiplied by: less by `erased`, where that has the same key


def look(products: Products, S: Array, step: Transition) -> Written:
    """What a step erases and writes, from the state before it."""
    if step.erase is None:
        return Written(None, step.value)
    erased = products.over_keys(step.erase, S)
    return Written(erased, step.value - erased if step.erase_key is None else step.value)


def advance(products: Products, S: Array, step: Transition, written: Written) -> Array:
    """The state after a step."""
    after = products.scale(step.decay, S) + products.outer(step.key, written.value)
    if step.erase_key is None or written.erased is None:
        return after
    return after - products.outer(step.erase_key, written.erased)


def pull(
    products: Products, reads_before: bool, S: Array, step: Transition, dy: Array, G: Array
) -> tuple[Transition, Array]:
    """The gradients of a step, and the cotangent of the state S before it, from the cotangent G of the one after it.

    The gradient of the decay is one of each key, and that of the query is left out: it needs the state that is read.
    """
    written = look(products, S, step)
    if not reads_before:
        G = G + products.outer(step.query, dy)
    dvalue = products.over_keys(step.key, G)
    gradients = step._replace(
        decay=products.over_values(G * S, jnp.ones_like(dy)),
        key=products.over_values(G, written.value),
        value=dvalue,
        query=None,
    )
    dS = products.scale(step.decay, G)
    if step.erase is not None and written.erased is not None:
        derased = -dvalue if step.erase_key is None else -products.over_keys(step.erase_key, G)
        derase_key = None if step.erase_key is None else -products.over_values(G, written.erased)
        gradients = gradients._replace(erase=products.over_values(S, derased), erase_key=derase_key)
        dS = dS + products.outer(step.erase, derased)
    return gradients, dS + products.outer(step.query, dy) if reads_before else dS
