"""Looking into the states of cells and networks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .. import check
from ..arrays import Shaped, State
from ..networks.merge import Directions


def real_arrays(name: str, state: PyTree[Shaped]) -> list[Any]:
    """The arrays of a state, or their forms. Raises ValueError, under `name`, unless they are of real numbers."""
    leaves = jax.tree.leaves(state)
    if not leaves or any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise ValueError(
            f"{name}: expected arrays of real numbers, got {check.show(state)}. "
            f"In place of a Bridge, or of `hidden`, give a function of your own"
        )
    return leaves


def hidden(state: State) -> Array:
    """What a state shows of itself, [H]: the field `h` of the topmost layer with a state, all directions side by side.

    Of a state without a field `h`: all its arrays. Raises ValueError where that is not of real numbers.
    """
    if isinstance(state, tuple) and not hasattr(state, "_fields"):  # of a Stack, whose layers may be without a state
        layers = [layer for layer in state if jax.tree.leaves(layer)]
        if layers:
            return hidden(layers[-1])
    if isinstance(state, Directions):
        return jnp.concatenate([hidden(state.forward), hidden(state.backward)])
    leaves = real_arrays("state", getattr(state, "h", state))
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
