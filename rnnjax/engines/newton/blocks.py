"""Square blocks, K of them at every step: [..., K, n, n], and the vectors that they multiply: [..., K, n].

A dense Jacobian is one block of all units; a diagonal one has a block for every unit, of its fields. The products of
small blocks are written out, which compiles to elementwise code; larger ones are matrix products.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

WRITTEN_OUT = 4  # rows: on a CPU, XLA multiplies many matrices of 4 rows slowly; more rows would take long to compile

Blocks = Inexact[Array, "... K n n"]
Vectors = Inexact[Array, "... K n"]


def multiply(a: Blocks, b: Blocks) -> Blocks:
    """The products of blocks."""
    n = a.shape[-1]
    if n > WRITTEN_OUT:
        return a @ b
    return reduce(jnp.add, [a[..., :, k, None] * b[..., None, k, :] for k in range(n)])


def apply(a: Blocks, x: Vectors) -> Vectors:
    """Each block times its vector."""
    n = a.shape[-1]
    if n > WRITTEN_OUT:
        return (a @ x[..., None])[..., 0]
    return reduce(jnp.add, [a[..., :, k] * x[..., None, k] for k in range(n)])


def clip(a: Blocks) -> Blocks:
    """Blocks whose entries are clipped so that a product of two of them is finite."""
    bound = float(jnp.finfo(a.dtype).max) ** 0.5 / (2 * a.shape[-1])
    if jnp.iscomplexobj(a):
        return jax.lax.complex(jnp.clip(a.real, -bound, bound), jnp.clip(a.imag, -bound, bound))
    return jnp.clip(a, -bound, bound)


def inverse(a: Blocks) -> Blocks:
    """The inverses of blocks."""
    n = a.shape[-1]
    if n == 1:
        return 1 / a
    if n > 2:
        return jnp.linalg.inv(a)
    p, q, r, s = a[..., 0, 0], a[..., 0, 1], a[..., 1, 0], a[..., 1, 1]
    adjugate = jnp.stack([jnp.stack([s, -q], -1), jnp.stack([-r, p], -1)], -2)
    return adjugate / (p * s - q * r)[..., None, None]


def adjoint(a: Blocks) -> Blocks:
    """The conjugate transposes of blocks."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def identity_like(a: Blocks) -> Blocks:
    """The identity in the shape of `a`."""
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
