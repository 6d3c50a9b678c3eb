"""States packed into real vectors, or into rows over units, for Jacobians and influence matrices.

Fields of a state that are neither floating nor complex, such as a counter, are constants: they are not packed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .arrays import Shaped, State


def is_inexact(leaf: Shaped) -> bool:
    """Whether an array is floating or complex."""
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
    """The inverse of `parts`: a state like `like`, which provides the fields that are not floating."""
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
    """All floating numbers of a state, concatenated."""
    return jnp.concatenate([part.reshape(-1) for part in parts(state)])


def unpack(vector: Float[Array, " D"], like: State) -> State:
    """The inverse of `pack`: a state like `like`."""
    reals, start = [], 0
    for part in parts(like):
        reals.append(vector[start : start + part.size])
        start += part.size
    return join(reals, like)


def pack_units(state: State) -> Float[Array, "F H"]:
    """A state whose fields are vectors of the same H units: a row for each real field, two for a complex one."""
    return jnp.stack(parts(state))


def unpack_units(rows: Float[Array, "F H"], like: State) -> State:
    """The inverse of `pack_units`."""
    return join(list(rows), like)
