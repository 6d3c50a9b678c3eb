"""The layer norm of each head by itself."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..arrays import UnitsOverTime


def head_norm(hs: Float[Array, "T N V"], scale: Float[Array, " H"]) -> UnitsOverTime:
    """(h - mean) / sqrt(variance + 1e-5) * scale, the mean and variance of each head; H = N V, heads side by side."""
    norm = eqx.nn.LayerNorm(hs.shape[-1], eps=1e-5, use_weight=False, use_bias=False)
    normed = jax.vmap(jax.vmap(norm))(hs)
    return normed.reshape(hs.shape[0], -1) * scale.astype(hs.dtype)[None]
