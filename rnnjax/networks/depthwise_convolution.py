"""The causal convolution of each feature by itself."""

from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import DType, Inputs, carry_dtype, cast
from .convolution import AbstractConvolution


class DepthwiseConvolution(AbstractConvolution):
    """y_t = w_0 * x_t + w_1 * x_{t-1} + ... + b, feature by feature; the weight is [window, I].

    The short convolution before the recurrence in Griffin, in the minimal cells' recipe and in xLSTM, over four steps.
    Otherwise as `CausalConvolution`.
    """

    weight: Float[Array, "W I"]
    bias: Float[Array, " I"] | None

    def __init__(
        self,
        input_size: int,
        *,
        window: int,
        key: PRNGKeyArray,
        bias: bool = True,
        input_initialiser: initialise.Initialiser = initialise.lecun,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights: `input_initialiser` draws [window, I], of fan `window`; the bias is zero."""
        check.sizes(input_size=input_size, window=window)
        check.flags(bias=bias)
        check.dtype(dtype)
        self.weight = random.array(input_initialiser(key, (window, input_size), carry_dtype(dtype)), dtype)
        self.bias = random.zeros(input_size, dtype) if bias else None

    def combine(self, *windows: Inputs) -> Inputs:
        windows, weight = cast((windows, self.weight), carry_dtype(self.weight.dtype))
        return reduce(jnp.add, map(jnp.multiply, weight[:, None], windows)).astype(self.weight.dtype)
