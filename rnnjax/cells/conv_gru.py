"""The gated recurrent unit over frames, with convolutions as products, and the reset after the product."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Sizes, Units, cast
from ..cell import Hidden, Shapes, learnable_zeros
from .convolutional import AbstractConvolutionalCell, GatedFrame, Kernel, draw_kernel
from .geometry import Geometry, check_geometry
from .gru import gate


class ConvGRU(AbstractConvolutionalCell):
    """Ballas et al. 2016, arXiv:1511.06432: a GRU at every position of a frame, `*` a convolution.

        r, z = sigmoid(W * x_t + b + R * h_{t-1})
        n    = tanh(W * x_t + b + r (R * h_{t-1} + d))
        h_t  = (1 - z) n + z h_{t-1}                         x: [I, *space]; h: [H, *hidden_space]

    over lines, images or volumes; all frames of a cell have one size, and its states have that of the convolved frames,
    as in `ConvLSTM`. The reset is *after* the convolution, as in `GRU`, so that there is one convolution in each step.
    In the paper it is before, R * (r h), which is a different function and needs a second convolution that depends on
    r. `candidate_bias` is d. With a kernel of one position it is a `GRU` shared by all positions. It is a plain cell:
    engines that run any cell run it, and `Fused` does not.
    """

    gates: ClassVar[str] = "rzn"

    input_weight: Kernel
    recurrent_weight: Float[Array, "*kernel H GH"]
    bias: Bias | None
    candidate_bias: Units | None
    initial_state: Hidden | None
    geometry: Geometry = eqx.field(static=True)

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        space: Sizes,
        *,
        kernel_size: Sizes,
        key: PRNGKeyArray,
        padding: Sizes | None = None,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        recurrent_dilation: Sizes = 1,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.zeros,
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `ConvLSTM`."""
        check.sizes(input_channels=input_channels, hidden_channels=hidden_channels)
        check.flags(bias=bias, learn_initial=learn_initial)
        self.geometry, kernel = check_geometry(space, kernel_size, padding, stride, dilation, recurrent_dilation)
        shape = hidden_channels, *self.geometry.hidden_space(kernel)
        keys = random.split(key, 4)
        self.input_weight = draw_kernel(
            input_initialiser, keys[0], kernel, input_channels, self.gates, hidden_channels, dtype
        )
        self.recurrent_weight = draw_kernel(
            recurrent_initialiser, keys[1], kernel, hidden_channels, self.gates, hidden_channels, dtype
        )
        self.bias = initialise.bias(bias_initialiser, keys[2], self.gates, hidden_channels, dtype) if bias else None
        self.candidate_bias = initialise.bias(bias_initialiser, keys[3], "n", hidden_channels, dtype) if bias else None
        self.initial_state = learnable_zeros(learn_initial, Hidden, shape, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        shapes = super().weight_shapes
        return shapes | {"candidate_bias": shapes["initial_state"][:1]}

    def step(self, state: Hidden, u: GatedFrame) -> Hidden:
        carried = state.h.dtype
        d = None if self.candidate_bias is None else self.candidate_bias.reshape(-1, *(1 for _ in self.space))
        return gate(cast(d, carried), u.astype(carried), self.recur(state.h), state.h)
