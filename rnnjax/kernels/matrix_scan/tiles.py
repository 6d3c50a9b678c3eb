"""The matrix-state recurrence by tiles of value columns: what the Pallas kernels run, and the gradients of the tiles.

Columns of a state are independent, so each program computes some columns of one head. The gradients of decay, key,
query, erase and erase_key are sums over columns: each tile writes its part, [tiles, B, ...], and XLA adds them up.
"""

from itertools import compress

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...arrays import DType
from ..pallas import output
from .contract import Operands

DTYPES = "float32", "bfloat16"
MOST_KEYS = 512  # of a head, for whose states there is room on the chip


def misfit(keys: int, dtype: DType) -> str | None:
    """Why the kernels of GPUs and TPUs do not run a head with so many keys and a state of `dtype`; None: they do."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        return f"the kernels of GPUs and TPUs run {' and '.join(DTYPES)}, and its state is {name}"
    if keys > MOST_KEYS:
        return f"the kernels of GPUs and TPUs have room for {MOST_KEYS} keys a head, and not {keys}"
    return None


def gradient_types(operands: Operands, tiles: int) -> Operands:
    """The types of the gradients that the tiles write: in float32, and that of the decay for each key."""
    alike = jax.tree.map(lambda leaf: output(leaf.shape, jnp.float32), operands._replace(resets=None, length=None))
    of_tiles = output((tiles, *operands.steps.key.shape), jnp.float32)
    steps = jax.tree.map(lambda _: of_tiles, operands.steps)
    return alike._replace(steps=steps._replace(value=alike.steps.value))


def added_up(gradients: Operands, operands: Operands, needs_gradient: tuple[bool, ...]) -> list[Array]:
    """The gradients of those operands that need one, in their dtypes, from what the tiles wrote."""
    value = gradients.steps.value
    steps = jax.tree.map(lambda parts: parts.sum(0), gradients.steps._replace(value=None))._replace(value=value)
    if operands.steps.decay.shape[-1] == 1:
        steps = steps._replace(decay=steps.decay.sum(-1, keepdims=True))
    whole = gradients._replace(steps=steps)
    numbers = operands._replace(resets=None, length=None)
    cast = jax.tree.map(lambda gradient, operand: gradient.astype(operand.dtype), whole, numbers)
    return list(compress(jax.tree.leaves(cast), needs_gradient))
