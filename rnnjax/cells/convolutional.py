"""The base class of the convolutional cells: frames as inputs and states, convolutions as products."""

import math
from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import initialise, random
from ..arrays import Bias, DType, State, States, shift
from ..cell import AbstractCell, Hidden, Shapes, initial_or_zeros
from .geometry import Geometry

Kernel = Float[Array, "*kernel I GH"]
Frames = Inexact[Array, "T I *space"]
GatedFrame = Float[Array, "G H *hidden"]


class AbstractConvolutionalCell(AbstractCell):
    """A cell of frames, with inputs [I, *space] and states [H, *hidden], whose products are convolutions.

        u_t = W * x_t + b                                  u, v: [G, H, *hidden]
        v_t = R * h_{t-1}

    `*` is the convolution of neural networks, y[p] = sum over k of W[k] x[p + k], where k is relative to the middle of
    an odd kernel. States are padded with zeros, so that they keep their size, and so are frames, unless `geometry`
    says otherwise: then `hidden_space` is the size that the convolved frames have.

    W and R are kernels [*kernel, in, GH] and b is a vector [GH], with the gates one after the other.

    Subclass requirements: the fields below, `gates`, and `step`. Weights are drawn gate by gate as [kernel positions *
    in, H]. A dtype below float32 is the dtype of weights, inputs and outputs; states stay in float32.
    """

    state_type: ClassVar[type] = Hidden

    gates: eqx.AbstractVar[str]  # a letter for each gate, in order
    input_weight: eqx.AbstractVar[Kernel]
    recurrent_weight: eqx.AbstractVar[Float[Array, "*kernel H GH"]]
    bias: eqx.AbstractVar[Bias | None]
    initial_state: eqx.AbstractVar[State | None]  # a learned initial state; None stands for zeros
    geometry: eqx.AbstractVar[Geometry]

    @property
    def space(self) -> tuple[int, ...]:
        """The size of an input frame."""
        return self.geometry.space

    @property
    def hidden_space(self) -> tuple[int, ...]:
        """The size of a state, and of an output: that of the convolved frames."""
        return self.geometry.hidden_space(self.input_weight.shape[:-2])

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.input_weight.shape[-2], *self.space), self.input_weight.dtype)

    @property
    def weight_shapes(self) -> Shapes:
        *kernel, inputs, columns = self.input_weight.shape
        hidden_size = max(1, columns // len(self.gates))
        columns = hidden_size * len(self.gates)
        return {
            "input_weight": (*kernel[: len(self.space)], inputs, columns),
            "recurrent_weight": (*kernel, hidden_size, columns),
            "bias": (columns,),
            "initial_state": (hidden_size, *self.hidden_space),
        }

    def initial(self) -> State:
        shape = self.input_weight.shape[-1] // len(self.gates), *self.hidden_space
        return initial_or_zeros(self.state_type, self.initial_state, shape, self.input_weight.dtype)

    def project(self, xs: Frames) -> Float[Array, "T G H *hidden"]:
        us = convolve_all(self.input_weight, xs, self.geometry)
        us = us if self.bias is None else shift(us, self.bias.reshape(-1, *(1 for _ in self.space)))
        return channels_by_gate(us, len(self.gates), 1)

    def recur(self, h: Float[Array, "H *hidden"]) -> GatedFrame:
        """`v = R * h`."""
        return channels_by_gate(
            convolve(self.recurrent_weight, h, self.geometry.recurrent_dilation), len(self.gates), 0
        )

    def readout(self, states: States, xs: Frames) -> Float[Array, "T H *hidden"]:
        del xs
        return states.h.astype(self.input_weight.dtype)

    def hidden(self, state: State) -> Array:
        """h of all positions, as one vector."""
        return jnp.ravel(state.h)


def convolve_all(weight: Kernel, xs: Frames, geometry: Geometry) -> Float[Array, "T GH *hidden"]:
    """`W * x` for all of time, which is the batch axis of one convolution."""
    axes = weight.ndim - 2
    frame = tuple(range(axes + 2))
    layout = jax.lax.ConvDimensionNumbers(frame, (axes + 1, axes, *range(axes)), frame)
    padding = "SAME" if geometry.padding is None else [(zeros, zeros) for zeros in geometry.padding]
    return jax.lax.conv_general_dilated(
        xs, weight, geometry.stride, padding, rhs_dilation=geometry.dilation, dimension_numbers=layout
    )


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def convolve(weight: Kernel, h: Float[Array, "I *hidden"], dilation: tuple[int, ...]) -> Float[Array, "GH *hidden"]:
    """`v = R * h`, summed in the dtype of `h`, as one matrix product with the patches around all positions.

    XLA's convolution, inside a loop on a CPU, takes several times as long. The patches are as many times `h` as the
    kernel has entries, so they are recomputed for the gradient rather than stored at every step.
    """
    *kernel, _, columns = weight.shape
    space = h.shape[1:]
    margins = [step * (size // 2) for size, step in zip(kernel, dilation, strict=True)]
    padded = jnp.pad(h.astype(weight.dtype), [(0, 0), *((margin, margin) for margin in margins)])
    corners = [np.multiply(corner, dilation) for corner in np.ndindex(*kernel)]
    shifted = [padded[:, *(slice(at, at + size) for at, size in zip(corner, space, strict=True))] for corner in corners]
    patches = jnp.stack(shifted).reshape(-1, math.prod(space))
    matrix = weight.reshape(-1, columns).T
    return jnp.matmul(matrix, patches, preferred_element_type=h.dtype).reshape(columns, *space)


def channels_by_gate(frames: Float[Array, "..."], gates: int, axis: int) -> Float[Array, "..."]:
    """Frames whose channels [GH], at `axis`, become two axes [G, H]."""
    *leading, channels = frames.shape[: axis + 1]
    return frames.reshape(*leading, gates, channels // gates, *frames.shape[axis + 1 :])


def draw_kernel(
    initialiser: initialise.Initialiser,
    key: PRNGKeyArray,
    kernel: tuple[int, ...],
    inputs: int,
    gates: str,
    units: int,
    dtype: DType,
) -> Kernel:
    """[*kernel, in, GH], one draw for each gate; its fan-in is that of a position, over the whole kernel."""
    flat = initialise.input_weight(initialiser, key, math.prod(kernel) * inputs, gates, units, dtype)
    return random.array(random.known(flat).reshape(*kernel, inputs, len(gates) * units), dtype)
