"""A linear head whose gradient passes back through fixed random weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise
from ..arrays import DType


class RandomFeedback(eqx.Module):
    """Feedback alignment: Lillicrap et al. 2016, Nature Communications 7:13276.

        z = y W + b,         and the gradient by y is dz B^T, with B fixed and random, in place of dz W^T

    W and b are trained as usual. B is stored as the key it is drawn from, so that no optimiser changes it.
    """

    weight: Float[Array, "O Z"]
    bias: Float[Array, " Z"]
    key: PRNGKeyArray

    def __init__(self, input_size: int, output_size: int, *, key: PRNGKeyArray, dtype: DType = jnp.float32):
        """input_size is O, the size of the cell's output; output_size is Z. W and B have the same distribution."""
        check.sizes(input_size=input_size, output_size=output_size)
        weight_key, self.key = jax.random.split(key)
        self.weight = initialise.glorot(weight_key, (input_size, output_size), dtype)
        self.bias = jnp.zeros(output_size, dtype)

    @property
    def feedback(self) -> Float[Array, "O Z"]:
        """B."""
        return initialise.glorot(self.key, self.weight.shape, self.weight.dtype)

    def __call__(self, y: Float[Array, " O"]) -> Float[Array, " Z"]:
        fixed = jax.lax.stop_gradient(y)
        silent = (y - fixed) @ self.feedback  # zero, but for its gradient
        return fixed @ self.weight + self.bias + silent
