"""What a primitive needs to know of `jax.shard_map`: the axes that its operands vary over."""

from typing import Any

import jax
from jaxtyping import Array

from ..arrays import PyTree


def vary_alike(operands: PyTree) -> PyTree:
    """`operands`, all varying over the same axes of a `jax.shard_map`: what is shared is sent to every device.

    The transpose of that is a sum over the devices, which makes one gradient of theirs.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(operands)))
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes - _varying(leaf)), to="varying"), operands)


def _varying(leaf: Array) -> frozenset[Any]:
    return jax.typeof(leaf).mat.varying
