"""A state as one real vector, or as its units' numbers: what Jacobians and influences are taken of.

What is neither floating nor complex in a state, such as a counter, is not differentiated by: it stays as it is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .arrays import Shaped, State


def is_inexact(leaf: Shaped) -> bool:
    """Whether it is floating or complex."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def parts(state: State) -> list[Array]:
    """The floating arrays of a state, a complex one as its real and its imaginary part, all in one real dtype."""
    reals: list[Array] = []
    for leaf in jax.tree.leaves(state):
        if is_inexact(leaf):
            reals += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    if not reals:
        dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(state)]
        raise ValueError(
            f"state: expected floating or complex arrays to differentiate by, got {dtypes}. "
            "Give the cell a state of floating numbers"
        )
    widest = max((leaf.dtype for leaf in reals), key=lambda dtype: jnp.dtype(dtype).itemsize)
    return [leaf.astype(widest) for leaf in reals]


def join(reals: list[Array], like: State) -> State:
    """The inverse of `parts`: a state of the form of `like`, from which comes what is not floating."""
    rest, leaves = iter(reals), []
    for leaf in jax.tree.leaves(like):
        if not is_inexact(leaf):
            leaves.append(leaf)
            continue
        shaped = next(rest).reshape(leaf.shape)
        if jnp.iscomplexobj(leaf):
            shaped = jax.lax.complex(shaped, next(rest).reshape(leaf.shape))
        leaves.append(shaped.astype(leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def pack(state: State) -> Float[Array, " D"]:
    """All numbers of a state, one after the other."""
    return jnp.concatenate([part.reshape(-1) for part in parts(state)])


def unpack(vector: Float[Array, " D"], like: State) -> State:
    """The inverse of `pack`: a state of the form of `like`."""
    reals, start = [], 0
    for part in parts(like):
        reals.append(vector[start : start + part.size])
        start += part.size
    return join(reals, like)


def pack_units(state: State) -> Float[Array, "F H"]:
    """A state that is made of vectors of the same H units: a row for each real field, two for a complex one."""
    return jnp.stack(parts(state))


def unpack_units(rows: Float[Array, "F H"], like: State) -> State:
    """The inverse of `pack_units`."""
    return join(list(rows), like)
