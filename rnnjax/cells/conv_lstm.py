"""Long short-term memory over frames, with convolutions as products."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, DType, Sizes, cast
from ..cell import Shapes, learnable_zeros
from .convolutional import AbstractConvolutionalCell, GatedFrame, Kernel, draw_kernel
from .geometry import Geometry, check_geometry
from .lstm import LSTMState, Peepholes, gate


class ConvLSTM(AbstractConvolutionalCell):
    """Shi et al. 2015, arXiv:1506.04214: the LSTM of `LSTM` at every position of a frame, `*` a convolution.

        i, f, o = sigmoid(W * x_t + R * h_{t-1} + b)         g = tanh(W * x_t + R * h_{t-1} + b)
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)                                    x: [I, *space]; h, c: [H, *hidden_space]

    over lines, images or volumes; all frames of a cell have one size. The states have the size of the convolved frames:
    that of the frames, unless the input convolution has a stride or another padding. With `peepholes`, p c_{t-1} is
    added to i and f and p c_t to o, where each p has a weight for every unit and position of the state, as in the
    paper. With a kernel of one position it is an `LSTM` shared by all positions. Since the product in the loop is a
    convolution, it is a plain cell: engines that run any cell run it, and `Fused` does not. `skip` and `Bidirectional`
    concatenate along the last axis, which is one of space here: pass
    `merge=lambda first, second: jnp.concatenate([first, second], 1)`, or `add`, to `Bidirectional`.
    """

    state_type: ClassVar[type] = LSTMState
    gates: ClassVar[str] = "ifgo"

    input_weight: Kernel
    recurrent_weight: Float[Array, "*kernel H GH"]
    bias: Bias | None
    peepholes: Peepholes | None
    initial_state: LSTMState | None
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
        peepholes: bool = False,
        bias: bool = True,
        learn_initial: bool = False,
        input_initialiser: initialise.Initialiser = initialise.glorot,
        recurrent_initialiser: initialise.Initialiser = initialise.orthogonal,
        bias_initialiser: initialise.Initialiser = initialise.forget(1.0),
        dtype: DType = jnp.float32,
    ):
        """Draw the weights. Arguments as in `LSTM`, but for those of frames:

        input_channels, hidden_channels   I and H
        space                             the size of a frame, a tuple; an integer, for one axis
        kernel_size                       of both convolutions, odd; a tuple, or an integer for all axes
        padding                           zeros on both sides of each axis of a frame; 0 is the "valid" convolution of
                                          other libraries. None: as many as keep the size of frames, their "same"; the
                                          odd one is at the end, and a stride divides the size, rounded up
        stride, dilation                  of the input convolution: from one position to the next one, and between
                                          entries of the kernel
        recurrent_dilation                of the recurrent convolution, which keeps the size of the state: its stride
                                          is 1, as in Keras
        *_initialiser                     of weights: draws [kernel positions * in, H], gate by gate

        padding, stride and both dilations are a tuple, or an integer for all axes. Raises a ValueError where a frame
        with its padding is smaller than the kernel.
        """
        check.sizes(input_channels=input_channels, hidden_channels=hidden_channels)
        check.flags(peepholes=peepholes, bias=bias, learn_initial=learn_initial)
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
        self.peepholes = draw_peepholes(keys[3], shape, dtype) if peepholes else None
        self.initial_state = learnable_zeros(learn_initial, LSTMState, shape, dtype)

    @property
    def weight_shapes(self) -> Shapes:
        shapes = super().weight_shapes
        return shapes | {"peepholes": shapes["initial_state"]}

    def step(self, state: LSTMState, u: GatedFrame) -> LSTMState:
        carried = state.h.dtype
        gates = u.astype(carried) + self.recur(state.h)
        return gate(cast(self.peepholes, carried), gates, state.c, None)


def draw_peepholes(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DType) -> Peepholes:
    """Peepholes [H, *space], uniform within 1/sqrt(H) as those of `LSTM`."""
    hidden_channels, *space = shape
    i, f, o = (random.known(initialise.uniform(key, (*space, hidden_channels), dtype)) for key in random.split(key, 3))
    channels_first = lambda drawn: random.array(random.numpy_for(drawn).moveaxis(drawn, -1, 0), dtype)  # noqa: E731
    return Peepholes(channels_first(i), (channels_first(f),), channels_first(o))
