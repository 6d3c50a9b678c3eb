"""A cell near one state: its step as a linear map, and the modes of that map."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from .. import check, flat
from ..arrays import PyTree, State
from ..cell import AbstractCell, describe
from ..checked import Checked
from .constant_input import at_input, check_cell, check_input


class Modes(NamedTuple):
    """The eigenvalues of a linear map, the largest modulus first, and its right and left eigenvectors.

    right, left   mode k is the column `right[:, k]` and the row `left[k]`; left @ right = 1
    """

    eigenvalues: Complex[np.ndarray, " D"]
    right: Complex[np.ndarray, "D D"]
    left: Complex[np.ndarray, "D D"]


class Linearisation(NamedTuple):
    """A step near the state s and the input x, the numbers of a state packed into one vector of D.

    step(s + ds, x + dx) = after + by_state ds + by_input dx + higher orders
    """

    after: Float[Array, " D"]
    by_state: Float[Array, "D D"]
    by_input: Float[Array, "D I"]

    @property
    def modes(self) -> Modes:
        """The modes of `by_state`, in float64.

        Along the right eigenvector k a small change grows by eigenvalue k at each step.

        An input moves the state along it by `left[k] @ by_input @ dx`: of a line attractor, `left[0]` is the selection
        vector of Mante et al. 2013 (Nature 503:78).

        Raises ValueError where eigenvectors are dependent but for rounding, as those of a chain of units are.
        """
        eigenvalues, right = np.linalg.eig(np.asarray(self.by_state, np.float64))
        order = np.argsort(-np.abs(eigenvalues), kind="stable")
        condition = np.linalg.cond(right)
        if not condition < 1 / math.sqrt(np.finfo(right.dtype).eps):
            raise ValueError(
                f"by_state: expected a matrix with independent eigenvectors, got some that are parallel (condition "
                f"{condition:.1e}). Use by_state itself, or scipy.linalg.schur(by_state)"
            )
        right = right[:, order].astype(complex)
        return Modes(eigenvalues[order].astype(complex), right, np.linalg.inv(right))


def linearise(cell: Checked[AbstractCell], x: Checked[PyTree[ArrayLike]], state: State | None) -> Linearisation:
    """The first-order expansion of one step of `cell` at `state` and the input `x`.

    cell    any cell; its state's floating fields are concatenated, (h, c) for an LSTM, complex ones as two real parts
    x       the input of one step, without an axis of time
    state   where to expand, such as a fixed point; None: `cell.initial()`

    It can be jitted and mapped over states; `modes` of the result is of NumPy and cannot.
    """
    cell = check_cell(cell)
    x = check_input(cell, x)
    state = cell.initial() if state is None else check.state(state, jax.eval_shape(cell.initial), describe(cell))
    vector = flat.pack(state)

    def step(vector: Array, inputs: Array) -> Array:
        return at_input(cell, flat.unpack(inputs, x), state)(vector)

    inputs = flat.pack(x)
    by_state, by_input = jax.jacfwd(step, (0, 1))(vector, inputs)
    return Linearisation(step(vector, inputs), jnp.asarray(by_state), jnp.asarray(by_input))
