"""Functions of queries, keys, values and gates in matrix mixers: feature maps, normalisation, activations."""

import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, sigmoid, silu
from jaxtyping import Array, Complex, Float, Inexact


def unchanged(vectors: Inexact[Array, "*T K"]) -> Inexact[Array, "*T K"]:
    """The vectors themselves."""
    return vectors


def normalised_silu(vectors: Float[Array, "*T K"]) -> Float[Array, "*T K"]:
    """SiLU, and then the vector divided by its norm: v / sqrt(|v|^2 + 1e-6)."""
    active = silu(vectors)
    return active * (jnp.sum(active**2, axis=-1, keepdims=True) + 1e-6) ** -0.5


def positive_elu(vectors: Float[Array, "*T K"]) -> Float[Array, "*T K"]:
    """1 + ELU, the feature map of Katharopoulos et al. 2020: exp(v) below zero, exact for small values."""
    return jnp.where(vectors > 0, 1 + vectors, jnp.exp(jnp.where(vectors > 0, 0, vectors)))


def with_one(vectors: Float[Array, "*T V"]) -> Float[Array, "*T W"]:
    """The vector and a one after it, which sums the weights of all values."""
    return jnp.concatenate([vectors, jnp.ones_like(vectors[..., :1])], axis=-1)


def as_complex(vectors: Float[Array, "*T K"]) -> Complex[Array, "*T H"]:
    """Complex numbers, whose real parts are the first half of the vector and their imaginary parts the second."""
    size = vectors.shape[-1]
    if size % 2:
        raise ValueError(f"key_size: expected an even size for complex keys, got {size}. Pass {size + 1}, say")
    real, imaginary = jnp.split(vectors, 2, axis=-1)
    return lax.complex(real, imaginary)


def as_conjugate(vectors: Float[Array, "*T K"]) -> Complex[Array, "*T H"]:
    """The conjugate of `as_complex`."""
    return jnp.conj(as_complex(vectors))


def twice_sigmoid(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """2 sigmoid(v): a strength of a delta rule beyond one, where the eigenvalue 1 - strength is negative."""
    return 2 * sigmoid(values)


def root_of_sigmoid(values: Float[Array, "..."], root: float) -> Float[Array, "..."]:
    """sigmoid(v)^(1 / root)."""
    return jnp.exp(log_sigmoid(values) / root)
