"""What the convolutional cells share: frames as inputs, a frame of units as the state, convolutions as products."""

import math
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import check, initialise, random
from ..arrays import Bias, State, shift
from ..cell import AbstractCell, Hidden, rest

Kernel = Float[Array, "*kernel I G H"]
Frames = Inexact[Array, "T I *space"]
GatedFrame = Float[Array, "G H *space"]


class AbstractConvolutionalCell(AbstractCell):
    """A cell of frames, [I, *space] in and [H, *space] as the state, that looks at them by convolutions.

        u_t = W * x_t + b                                  u, v: [G, H, *space]
        v_t = R * h_{t-1}

    `*` is what neural networks call a convolution, y[p] = sum over k of W[k] x[p + k], k counted from the middle of an
    odd kernel. Around the frame there are zeros, so that it keeps its size.

    Subclass requirements: the fields below, and `step`. Weights are drawn gate by gate as [kernel positions * in, H].
    A dtype below float32 is the dtype of weights, inputs and outputs; states stay in float32.
    """

    state_type: ClassVar[type] = Hidden

    input_weight: eqx.AbstractVar[Kernel]
    recurrent_weight: eqx.AbstractVar[Float[Array, "*kernel H G H"]]
    bias: eqx.AbstractVar[Bias | None]
    start: eqx.AbstractVar[State | None]  # a learned initial state; None stands for zeros
    space: eqx.AbstractVar[tuple[int, ...]]

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.input_weight.shape[-3], *self.space), self.input_weight.dtype)

    def initial(self) -> State:
        shape = self.input_weight.shape[-1], *self.space
        return rest(self.state_type, self.start, shape, self.input_weight.dtype)

    def project(self, xs: Frames) -> Float[Array, "T G H *space"]:
        us = convolve_all(self.input_weight, xs)
        return us if self.bias is None else shift(us, self.bias.reshape(*self.bias.shape, *(1 for _ in self.space)))

    def readout(self, states: Any, xs: Frames) -> Float[Array, "T H *space"]:
        del xs
        return states.h.astype(self.input_weight.dtype)

    def hidden(self, state: Any) -> Array:
        """h of all places, as one vector."""
        return jnp.ravel(state.h)


def convolve_all(weight: Kernel, xs: Frames) -> Float[Array, "T G H *space"]:
    """`W * x` for all of time, which is the batch of one convolution."""
    *kernel, inputs, gates, units = weight.shape
    axes = len(kernel)
    frame = tuple(range(axes + 2))
    layout = jax.lax.ConvDimensionNumbers(frame, (axes + 1, axes, *range(axes)), frame)
    flat = weight.reshape(*kernel, inputs, gates * units)
    us = jax.lax.conv_general_dilated(xs, flat, (1,) * axes, "SAME", dimension_numbers=layout)
    return us.reshape(len(xs), gates, units, *xs.shape[2:])


@partial(jax.checkpoint, prevent_cse=False)
def convolve(weight: Kernel, h: Float[Array, "I *space"]) -> GatedFrame:
    """`v = R * h`, summed in the dtype of `h`, as one matrix product with what each position sees.

    XLA's convolution, inside a loop on a CPU, takes several times as long. What the positions see is as many times `h`
    as the kernel has entries: it is made again for the gradient rather than kept at every step.
    """
    *kernel, _, gates, units = weight.shape
    space = h.shape[1:]
    padded = jnp.pad(h.astype(weight.dtype), [(0, 0), *((size // 2, size // 2) for size in kernel)])
    corners = np.ndindex(*kernel)
    seen = [padded[:, *(slice(at, at + size) for at, size in zip(corner, space, strict=True))] for corner in corners]
    patches = jnp.stack(seen).reshape(-1, math.prod(space))
    matrix = weight.reshape(-1, gates * units).T
    return jnp.matmul(matrix, patches, preferred_element_type=h.dtype).reshape(gates, units, *space)


def draw_kernel(
    initialiser: initialise.Initialiser,
    key: PRNGKeyArray,
    kernel: tuple[int, ...],
    inputs: int,
    gates: str,
    units: int,
    dtype,
) -> Kernel:
    """[*kernel, in, G, H], one draw a gate; its fan-in is all that one position sees."""
    flat = initialise.input_weight(initialiser, key, math.prod(kernel) * inputs, gates, units, dtype)
    return random.array(random.known(flat).reshape(*kernel, inputs, len(gates), units), dtype)


def check_frame(space: Any, kernel_size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both as tuples, a size for each axis of space; raise unless they fit each other and kernels have a middle."""
    space = check.shape("space", space)
    if not space:
        raise ValueError("space: expected at least one axis, got (). Cells of vectors are LSTM, GRU and their kin")
    kernel = check.shape("kernel_size", kernel_size)
    if not isinstance(kernel_size, tuple):
        kernel *= len(space)
    if len(kernel) != len(space):
        raise ValueError(f"kernel_size: expected a size for each axis of space={space}, got {kernel_size!r}")
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(
            f"kernel_size: expected odd sizes, got {kernel_size!r}. An even kernel has no middle, and would shift the "
            "state by half a position at every step"
        )
    return space, kernel
