"""The bare linear recurrence, whose coefficients are its inputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .. import initialise
from ..arrays import Units, UnitsOverTime
from ..cell import AbstractLinearCell, Hidden, learned, rest

Coefficients = tuple[Units, Units]


class LinearRecurrence(AbstractLinearCell):
    """h_t = a_t * h_{t-1} + b_t, of inputs (a, b), each [T, H]: what is left of a linear cell without its weights.

    For networks that make the coefficients themselves, out of inputs of several steps or with states of their own. Any
    `a` is taken as it is, and none is held below one.
    """

    start: Hidden | None
    hidden_size: int = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, hidden_size: int, *, learn_initial: bool = False, dtype=jnp.float32):
        """hidden_size is H, dtype that of `a`, `b` and h; learn_initial as in `LSTM`."""
        initialise.check_sizes(hidden_size=hidden_size)
        initialise.check_dtype(dtype)
        self.start = learned(learn_initial, Hidden, hidden_size, dtype)
        self.hidden_size = hidden_size
        self.dtype = jnp.dtype(dtype)

    def input_type(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        one = jax.ShapeDtypeStruct((self.hidden_size,), self.dtype)
        return one, one

    def initial(self) -> Hidden:
        return rest(Hidden, self.start, self.hidden_size, self.dtype)

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def coefficients(self, u: Coefficients) -> Coefficients:
        carried = self.initial().h.dtype
        a, b = u
        return a.astype(carried), b.astype(carried)

    def readout(self, states: Hidden, xs: PyTree[Array]) -> UnitsOverTime:
        del xs
        return states.h.astype(self.dtype)
