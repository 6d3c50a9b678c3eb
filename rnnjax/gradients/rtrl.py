"""Real-time recurrent learning: the exact gradient, forward."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import flat
from ..arrays import PyTree, State
from ..cell import AbstractCell
from .estimator import add
from .forward import AbstractForward, Trained, split, step


class RTRL(AbstractForward):
    """Williams & Zipser 1989, Neural Computation 1:270: the exact gradient, in memory that does not grow with T.

        M_t = J_t M_{t-1} + ds_t/dweights |_{s_{t-1}}         J_t = ds_t/ds_{t-1}

    M, the influence matrix, holds D x P numbers, for a state of D numbers and P weights: of an Elman network H^3. A
    step multiplies it by J, D^2 P products: for tens of units. Any cell, in
    float32 or wider.
    """

    def pack(self, state: State) -> Float[Array, " D"]:
        return flat.pack(state)

    def unpack(self, vector: Float[Array, " D"], like: State) -> State:
        return flat.unpack(vector, like)

    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Trained:
        del key
        trained, static = split(cell)
        initial = lambda trained: self.pack(eqx.combine(trained, static).initial() if start is None else start)  # noqa: E731
        return jax.jacrev(initial)(trained)

    def _advance(self, cell: AbstractCell, state: State, x: PyTree[Array], trace: Trained, key: Any) -> Trained:
        del key
        trained, static = split(cell)

        def after(trained: Trained, vector: Float[Array, " D"]) -> Float[Array, " D"]:
            return self.pack(step(eqx.combine(trained, static), self.unpack(vector, state), x))

        immediate, jacobian = jax.jacrev(after, (0, 1))(trained, self.pack(state))
        return add(jax.tree.map(lambda influence: jnp.tensordot(jacobian, influence, 1), trace), immediate)

    def _pull(self, cell: AbstractCell, trace: Trained, cotangent: Float[Array, " D"]) -> Trained:
        del cell
        return jax.tree.map(lambda influence: jnp.tensordot(cotangent, influence, 1), trace)
