"""The family of cells whose state is a matrix for each head: decayed, erased by one vector, and written by another."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .arrays import PyTree
from .cell import AbstractCell
from .exporting import exportable


@exportable
class Transition(NamedTuple):
    """The coefficients of one step of a matrix state, or over time with a leading axis T; N heads.

        S_t = decay * S_{t-1} - erase_key (erase' S_{t-1}) + key value'             y_t = S_t' query

    All products are plain ones, without complex conjugation.
    """

    decay: Inexact[Array, "*T N D"]  # of each key, D = K, or of each head, D = 1
    key: Inexact[Array, "*T N K"]
    value: Inexact[Array, "*T N V"]
    query: Inexact[Array, "*T N K"]
    erase: Inexact[Array, "*T N K"] | None = None  # None: nothing is erased
    erase_key: Inexact[Array, "*T N K"] | None = None  # None: `key`


@exportable
class Matrix(NamedTuple):
    """The state of a matrix cell: for each head a matrix of keys by values."""

    S: Inexact[Array, "N K V"]


class AbstractMatrixCell(AbstractCell):
    """A cell whose state is a matrix for each head, of which each step emits what the query reads.

        S_t = decay * S_{t-1} - erase_key (erase' S_{t-1}) + key value'
        y_t = S_t' query, or S_{t-1}' query with `reads_before`

    Linear attention, the gated linear recurrences (RetNet, GLA, Mamba-2, mLSTM) and the delta rules are of this form.
    Everything that makes the coefficients from x (gates, feature maps, normalisation) belongs to the network around it.
    The engine `Chunked` runs such a cell by a compiled recurrence on CPUs, and by matrix products elsewhere. `Auto`
    takes it from 8 steps on where the CPU kernel is installed, and otherwise `Scan`.

    Subclass requirements: `coefficients`, the fields below, and `input_type`, `initial`, `project`, `readout`.
    """

    reads_before: eqx.AbstractVar[bool]  # whether the query reads the state before the step
    initial_state: eqx.AbstractVar[Matrix | None]  # a learned initial state; None stands for zeros

    @abc.abstractmethod
    def coefficients(self, u: PyTree[Array]) -> Transition:
        """The coefficients of one step, in the dtype of the state."""

    def step(self, state: Matrix, u: PyTree[Array]) -> Matrix:
        decay, key, value, _, erase, erase_key = self.coefficients(u)
        S = decay[:, :, None] * state.S + key[:, :, None] * value[:, None, :]
        if erase is None:
            return Matrix(S)
        found = jnp.einsum("nkv,nk->nv", state.S, erase)
        return Matrix(S - (key if erase_key is None else erase_key)[:, :, None] * found[:, None, :])

    def emit(self, state: Matrix, before: Matrix, u: PyTree[Array]) -> Inexact[Array, "N V"]:
        read = before if self.reads_before else state
        return jnp.einsum("nkv,nk->nv", read.S, self.coefficients(u).query)

    def hidden(self, state: Matrix) -> None:
        """None: attention and decoders read a vector of hidden units, and a matrix state has none."""
        del state
