"""The joiner of a transducer: logits by what was heard and what was said."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ... import check, initialise, random
from ...arrays import DType, leading
from ..embedding import OutputLayer


class Joiner(eqx.Module):
    """logits = V tanh(A h_t + B g_u + a) + b, of an encoder's output h_t and a prediction network's output g_u.

    The feed-forward joint network of Graves et al. 2013 (arXiv:1303.5778), eq. 15 to 17. A h and B g are computed once
    for all steps and once for all labels, so that each pair costs one tanh and the product with V.
    """

    encoder_weight: Float[Array, "M J"]
    prediction_weight: Float[Array, "P J"]
    bias: Float[Array, " J"]
    output: OutputLayer  # [V, J]

    def __init__(
        self,
        encoder_size: int,
        prediction_size: int,
        joint_size: int,
        classes: int,
        *,
        key: PRNGKeyArray,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights; `a` and `b` are zero. The sizes are M, P and J; `classes` is V, the blank included."""
        check.sizes(encoder_size=encoder_size, prediction_size=prediction_size, joint_size=joint_size)
        check.dtype(dtype)
        keys = random.split(key, 3)
        self.encoder_weight = initialise.lecun(keys[0], (encoder_size, joint_size), dtype)
        self.prediction_weight = initialise.lecun(keys[1], (prediction_size, joint_size), dtype)
        self.bias = random.zeros(joint_size, dtype)
        self.output = OutputLayer(classes, joint_size, key=keys[2], dtype=dtype)

    def heard(self, hs: Float[Array, "... M"]) -> Float[Array, "... J"]:
        """A h + a."""
        projected = hs @ self.encoder_weight
        return projected + leading(self.bias, projected.ndim)

    def predicted(self, gs: Float[Array, "... P"]) -> Float[Array, "... J"]:
        """B g."""
        return gs @ self.prediction_weight

    def __call__(self, heard: Float[Array, "... J"], predicted: Float[Array, "... J"]) -> Float[Array, "... V"]:
        """The logits, in float32 or wider, of arrays that `heard` and `predicted` made, of one shape."""
        return self.output(jnp.tanh(heard + predicted))
