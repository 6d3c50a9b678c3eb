"""Real-time recurrent learning: the exact gradient, forward."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import PyTree, State
from ..cell import AbstractCell
from .estimator import add
from .forward import AbstractForward, Trained, split


class RTRL(AbstractForward):
    """Williams & Zipser 1989, Neural Computation 1:270: the exact gradient, in memory that does not grow with T.

        M_t = J_t M_{t-1} + ds_t/dweights |_{s_{t-1}}         J_t = ds_t/ds_{t-1}

    M, the influence matrix, has D x P entries for a state of D numbers and P weights: H^3 for an Elman network. Each
    step multiplies it by J, at a cost of D^2 P products, so it suits tens of units. It takes any cell that emits its
    state, in float32 or wider, and any `Stack`, `residual` or `skip` of cells and `TimeDistributed` layers, with D and
    P of all layers: the influence of lower layers on the states above them is in M, so the gradient is exact at any
    depth.
    """

    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Trained:
        del key
        return jax.jacrev(self._initial(cell, start))(split(cell)[0])

    def _advance(self, cell: AbstractCell, state: State, x: PyTree[Array], trace: Trained, key: Any) -> Trained:
        del key
        after = self._after(cell, state, x)
        immediate, jacobian = jax.jacrev(after, (0, 1))(split(cell)[0], self.pack(state))
        return add(jax.tree.map(lambda influence: jnp.tensordot(jacobian, influence, 1), trace), immediate)

    def _pull(self, cell: AbstractCell, trace: Trained, cotangent: Float[Array, " D"]) -> Trained:
        del cell
        return jax.tree.map(lambda influence: jnp.tensordot(cotangent, influence, 1), trace)
