"""The linear recurrence without weights: its coefficients are its inputs."""

import equinox as eqx
import jax
from jaxtyping import Array

from ..arrays import PyTree, Units, UnitsOverTime, carry_dtype, cast
from ..cell import AbstractLinearCell, Hidden, carried_copy


class LinearRecurrence(AbstractLinearCell):
    """h_t = a_t * h_{t-1} + b_t, of inputs (a, b), each [T, H]: a linear cell without weights.

    For networks that compute the coefficients themselves, from inputs of several steps or with other states.
    `initial_state` has the size and dtype of one step of `a` and of `b`, real or complex. `a` is not bounded.
    """

    initial_state: Hidden

    def __check_init__(self):
        h = self.initial_state.h if isinstance(self.initial_state, Hidden) else None
        if not eqx.is_inexact_array(h):
            raise TypeError(
                f"initial_state: expected a Hidden of floating or complex numbers [H], got {self.initial_state!r}. "
                "Write Hidden(jnp.zeros(H))"
            )

    def input_type(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        one = jax.ShapeDtypeStruct(self.initial_state.h.shape, self.initial_state.h.dtype)
        return one, one

    def initial(self) -> Hidden:
        return carried_copy(self.initial_state, self.initial_state.h.dtype)

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def coefficients(self, u: tuple[Units, Units]) -> tuple[Units, Units]:
        a, b = u
        return cast((a, b), carry_dtype(a.dtype))

    def readout(self, states: Hidden, xs: PyTree[Array]) -> UnitsOverTime:
        del xs
        return states.h.astype(self.initial_state.h.dtype)
