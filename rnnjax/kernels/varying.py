"""`jax.shard_map` and our primitives: the axes that operands vary over."""

from typing import Any

import jax
from jaxtyping import Array

from ..arrays import PyTree


def vary_alike(operands: PyTree) -> PyTree:
    """`operands`, all made to vary over the same axes of a `jax.shard_map`: shared ones are broadcast to every device.

    The transpose of the broadcast sums the gradients of all devices.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(operands)))
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes - _varying(leaf)), to="varying"), operands)


def _varying(leaf: Array) -> frozenset[Any]:
    return jax.typeof(leaf).mat.varying
