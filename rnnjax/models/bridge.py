"""The bridge: what the encoder ended with becomes what the decoder starts from."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..arrays import State
from .states import real_arrays


class Bridge(eqx.Module):
    """A linear layer and a tanh for each array of the decoder's state, of all arrays of the encoder's: tanh(W s + b).

    Any structure goes to any: directions, stacks, h and c. (Bahdanau et al. 2015 take the backward direction alone.)
    Where the two structures agree and the state is to be handed on as it is, `eqx.nn.Identity()` is the bridge.
    """

    layers: tuple[eqx.nn.Linear, ...]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, encoder: Any, decoder: Any, *, key: PRNGKeyArray):
        """Draw the weights. `encoder` is a cell or a network, and `decoder` the one inside of the decoder."""
        given, wanted = jax.eval_shape(encoder.initial), jax.eval_shape(decoder.initial)
        inputs, leaves = sum(leaf.size for leaf in real_arrays("encoder", given)), real_arrays("decoder", wanted)
        keys = jax.random.split(key, len(leaves))
        self.layers = tuple(
            eqx.nn.Linear(inputs, leaf.size, dtype=leaf.dtype, key=key) for leaf, key in zip(leaves, keys, strict=True)
        )
        self.shapes = tuple(leaf.shape for leaf in leaves)
        self.structure = jax.tree.structure(wanted)

    def __call__(self, state: State) -> State:
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(state)])
        made = [
            jnp.tanh(layer(flat.astype(layer.weight.dtype))).reshape(shape)
            for layer, shape in zip(self.layers, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, made)
