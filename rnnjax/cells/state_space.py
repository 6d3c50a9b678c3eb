"""The base class of the complex linear cells: complex states, real inputs and outputs, and real weights."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .. import initialise, random
from ..arrays import DType, Inputs, InputWeight, by_gate, carry_dtype
from ..cell import AbstractLinearCell, Hidden, Shapes
from ..gated_cell import affine

OutputWeight = Float[Array, "PH O"]  # P = 2 parts


class AbstractStateSpaceCell(AbstractLinearCell):
    """A linear cell of complex units, read out by y_t = multiplicity * Re(C h_t) + D x_t.

    A complex weight is stored as a real array, the real part and then the imaginary part: B is [I, 2 H], C is [2 H, O],
    and a learned initial state is [2 H]. So every leaf is real, and any optimiser can be used: JAX's gradient by a
    complex number is the conjugate of the direction of ascent. The state is complex, in the carry's precision.

    Subclass requirements: the fields below, and `coefficients`.
    """

    multiplicity: ClassVar[float] = 1.0  # of a unit in y: two if it stands for its complex conjugate, too

    input_weight: eqx.AbstractVar[InputWeight]  # B
    output_weight: eqx.AbstractVar[OutputWeight]  # C
    skip: eqx.AbstractVar[Float[Array, " I"] | None]  # D
    initial_state: eqx.AbstractVar[Float[Array, " PH"] | None]

    def input_type(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.input_weight.shape[:1], self.input_weight.dtype)

    @property
    def weight_shapes(self) -> Shapes:
        inputs, *columns = self.input_weight.shape
        outputs = self.output_weight.shape[-1:] if self.skip is None else (inputs,)
        parts = 2 * max(1, math.prod(columns) // 2)
        return {
            "input_weight": (inputs, parts),
            "output_weight": (parts, *outputs),
            "skip": (inputs,),
            "initial_state": (parts,),
        }

    def initial(self) -> Hidden:
        parts = self.initial_state
        if parts is None:
            parts = jnp.zeros(self.input_weight.shape[1], self.input_weight.dtype)
        return Hidden(join(by_gate(parts, 2)))

    def project(self, xs: Inputs) -> Float[Array, "T 2 H"]:
        return by_gate(affine(self.input_weight, None, xs), 2)

    def readout(self, states: Hidden, xs: Inputs) -> Float[Array, "T O"]:
        dtype, carried = self.output_weight.dtype, carry_dtype(self.output_weight.dtype)
        parts = jnp.concatenate([states.h.real, -states.h.imag], axis=-1).astype(dtype)
        ys = self.multiplicity * jnp.matmul(parts, self.output_weight, preferred_element_type=carried)
        if self.skip is not None:
            ys = ys + self.skip.astype(carried)[None] * xs.astype(carried)
        return ys.astype(dtype)


def join(parts: Float[Array, "2 ..."]) -> Complex[Array, "..."]:
    """The complex numbers with these real and imaginary parts, in complex64 or wider."""
    real, imaginary = parts.astype(carry_dtype(parts.dtype))
    return jax.lax.complex(real, imaginary)


def read_size(input_size: int, output_size: int | None, skip: bool) -> int:
    """O. Raises unless it fits the skip connection."""
    size = input_size if output_size is None else output_size
    if skip and size != input_size:
        raise ValueError(
            f"output_size: expected input_size={input_size}, since D x_t is added to the output, got {size}. "
            "Leave D out with skip=False"
        )
    return size


def draw_skip(key: PRNGKeyArray, input_size: int, skip: bool, dtype: DType) -> Float[Array, " I"] | None:
    """D, standard normal, as in the code of both papers."""
    return random.array(random.normal(key, (input_size,), dtype), dtype) if skip else None


def draw_output(
    initialiser: initialise.Initialiser, key: PRNGKeyArray, hidden_size: int, output_size: int, dtype: DType
) -> OutputWeight:
    """C, one draw for each part."""
    drawn = carry_dtype(dtype)
    parts = random.each(key, 2, lambda key: initialiser(key, (hidden_size, output_size), drawn))
    return random.array(parts.reshape(2 * hidden_size, output_size), dtype)
