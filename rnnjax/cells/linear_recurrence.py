"""The bare linear recurrence, whose coefficients are its inputs."""

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..arrays import Units, UnitsOverTime, carry_dtype, cast
from ..cell import AbstractLinearCell, Hidden, begin


class LinearRecurrence(AbstractLinearCell):
    """h_t = a_t * h_{t-1} + b_t, of inputs (a, b), each [T, H]: what is left of a linear cell without its weights.

    For networks that make the coefficients themselves, out of inputs of several steps or with states of their own.
    `start` is the initial state, in size and dtype like one step of `a` and of `b`, real or complex. Any `a` is taken
    as it is, and none is held below one.
    """

    start: Hidden

    def __check_init__(self):
        h = self.start.h if isinstance(self.start, Hidden) else None
        if not eqx.is_inexact_array(h):
            raise TypeError(f"start: expected a Hidden of floating or complex numbers [H], got {self.start!r}")

    def input_type(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        one = jax.ShapeDtypeStruct(self.start.h.shape, self.start.h.dtype)
        return one, one

    def initial(self) -> Hidden:
        return begin(self.start, self.start.h.dtype)

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def coefficients(self, u: tuple[Units, Units]) -> tuple[Units, Units]:
        a, b = u
        return cast((a, b), carry_dtype(a.dtype))

    def readout(self, states: Hidden, xs: PyTree[Array]) -> UnitsOverTime:
        del xs
        return states.h.astype(self.start.h.dtype)
