"""The bridge: maps the encoder's last state to the decoder's initial state."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import check
from ..arrays import PyTree, Shaped, State


class Bridge(eqx.Module):
    """A linear layer and a tanh for each array of the decoder's state, of all encoded arrays: tanh(W s + b).

    Both structures are arbitrary: directions, stacks, h and c of an encoder, or the features of an image. (Bahdanau et
    al. 2015 use the backward direction alone.) If the two structures are equal and the state is to be passed on
    unchanged, use `eqx.nn.Identity()`.
    """

    layers: tuple[eqx.nn.Linear, ...]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, encoded: PyTree[Shaped], state: State, *, key: PRNGKeyArray):
        """Draw the weights, by the shapes and dtypes of the bridge's input and output.

        encoded   arrays like the input, or their shapes: `cell.initial()`, `jnp.zeros(64)`
        state     a state like the decoder's, or its shapes: `cell.initial()`
        """
        inputs, leaves = sum(leaf.size for leaf in real_arrays("encoded", encoded)), real_arrays("state", state)
        keys = jax.random.split(key, len(leaves))
        self.layers = tuple(
            eqx.nn.Linear(inputs, leaf.size, dtype=leaf.dtype, key=key) for leaf, key in zip(leaves, keys, strict=True)
        )
        self.shapes = tuple(leaf.shape for leaf in leaves)
        self.structure = jax.tree.structure(state)

    def __call__(self, encoded: PyTree[Array]) -> State:
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(encoded)])
        if flat.size != self.layers[0].in_features:
            raise ValueError(
                f"encoded: expected {self.layers[0].in_features} numbers in all, the input size of the bridge, "
                f"got {check.show(encoded)}. Pass one example, and batch with jax.vmap"
            )
        arrays = [
            jnp.tanh(layer(flat.astype(layer.weight.dtype))).reshape(shape)
            for layer, shape in zip(self.layers, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, arrays)


def check_bridge(state: State, expected: State, whose: str) -> None:
    """Raise unless the state that a bridge returned has the expected shapes and dtypes."""
    if not check.alike(state, expected):
        raise ValueError(
            f"bridge: expected a state like that of {whose}, {check.show(expected)}, got {check.show(state)}. "
            "Build the bridge for this state, Bridge(encoded, state, key=key)"
        )


def real_arrays(name: str, state: PyTree[Shaped]) -> list[Shaped]:
    """The arrays of a state, or their shapes. Raises ValueError, with `name`, unless they are real."""
    leaves = jax.tree.leaves(state)
    if not leaves or any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise ValueError(
            f"{name}: expected arrays of real numbers, got {check.show(state)}. "
            "Write a function of your own in place of the Bridge"
        )
    return leaves
