"""The layer norm of each head by itself, or of all features, without a bias."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..arrays import Inputs, UnitsOverTime, carry_dtype


def head_norm(hs: Float[Array, "T N V"], scale: Float[Array, " H"]) -> UnitsOverTime:
    """(h - mean) / sqrt(variance + 1e-5) * scale, the mean and variance of each head; H = N V, heads side by side."""
    wide = hs.astype(carry_dtype(hs.dtype))
    norm = eqx.nn.LayerNorm(hs.shape[-1], eps=1e-5, use_weight=False, use_bias=False)
    normed = jax.vmap(jax.vmap(norm))(wide).reshape(hs.shape[0], -1)
    return (normed * scale.astype(wide.dtype)[None]).astype(hs.dtype)


def layer_norm(xs: Inputs, scale: Float[Array, " I"]) -> Inputs:
    """The same of all features at once."""
    return head_norm(xs[:, None], scale)
