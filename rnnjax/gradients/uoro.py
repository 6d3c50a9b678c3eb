"""Unbiased online recurrent optimisation: the influence matrix, estimated by a random product of two vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..arrays import PyTree, State
from ..cell import AbstractCell
from .forward import AbstractForward, Trained, split


class Product(NamedTuple):
    """Two vectors: the mean of `state` times `weights`, over the draws, is the influence matrix."""

    state: Float[Array, " D"]
    weights: Trained


class UORO(AbstractForward):
    """Tallec & Ollivier 2018, arXiv:1702.05043: an unbiased estimate of RTRL's gradient, at the cost of BPTT.

        a_t = p J_t a_{t-1} + q nu            w_t = w_{t-1} / p + nu . (ds_t/dweights) / q          nu = +-1 at random

    The mean of a_t w_t over nu is RTRL's influence matrix for any p and q. They are chosen so that both terms of a sum
    have the same norm, which lowers the variance. The variance is still large and grows with the memory of the cell:
    use low learning rates. It needs a key for every chunk, and for `start`. It takes any cell that emits its state, in
    float32 or wider, and any `Stack`, `residual` or `skip` of cells and `TimeDistributed` layers, in D + P numbers: the
    states and the weights of all layers.
    """

    def _begin(self, cell: AbstractCell, start: State | None, key: PRNGKeyArray | None) -> Product:
        trained = split(cell)[0]
        vector, pull = jax.vjp(self._initial(cell, start), trained)
        if start is not None:
            return Product(jnp.zeros_like(vector), jax.tree.map(jnp.zeros_like, trained))
        if key is None:
            raise ValueError(
                "key: expected a key for UORO, which draws signs, got None. Pass key=jax.random.key(0), or a state"
            )
        signs = jax.random.rademacher(key, vector.shape, vector.dtype)
        return Product(signs, pull(signs)[0])

    def _advance(
        self, cell: AbstractCell, state: State, x: PyTree[Array], trace: Product, key: PRNGKeyArray | None
    ) -> Product:
        if key is None:
            raise ValueError(
                "key: expected a key for UORO, which draws signs at every step, got None. Pass a new key for each chunk"
            )
        trained, after, vector = split(cell)[0], self._after(cell, state, x), self.pack(state)
        pushed = jax.jvp(lambda vector: after(trained, vector), (vector,), (trace.state,))[1]
        signs = jax.random.rademacher(key, vector.shape, vector.dtype)
        (pulled,) = jax.vjp(lambda trained: after(trained, vector), trained)[1](signs)
        p = _ratio(optax.tree.norm(trace.weights), jnp.linalg.norm(pushed))
        q = _ratio(optax.tree.norm(pulled), jnp.linalg.norm(signs))
        weights = jax.tree.map(lambda old, new: old / p + new / q, trace.weights, pulled)
        return Product(p * pushed + q * signs, weights)

    def _pull(self, cell: AbstractCell, trace: Product, cotangent: Float[Array, " D"]) -> Trained:
        del cell
        share = cotangent @ trace.state
        return jax.tree.map(lambda leaf: share * leaf, trace.weights)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The root of the ratio of two norms, neither zero nor infinite: the estimate is unbiased for any value."""
    tiny = jnp.finfo(numerator.dtype).eps ** 2
    return jnp.sqrt((numerator + tiny) / (denominator + tiny))
