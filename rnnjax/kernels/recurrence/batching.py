"""The batching rule: a mapped axis is folded into the axis S or B of the operands, and split off the results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jaxtyping import Array

from .contract import Form, PreparedWeights, Weights


class Fold(NamedTuple):
    """A mapped axis of `size` that becomes the outer part of S if `by_group`, else of B."""

    by_group: bool
    size: int
    S: int
    B: int

    def operand(self, leaf: Array, axis: int | None, weight: bool) -> Array:
        """An operand that is mapped along `axis`, or not at all, with the mapped axis folded in."""
        if weight and axis is None and (leaf.shape[0] == 1 or not self.by_group):
            return leaf
        place = 0 if self.by_group else 1
        if axis is None:
            leaf = jnp.broadcast_to(jnp.expand_dims(leaf, place), _insert(leaf.shape, place, self.size))
        else:
            leaf = jnp.moveaxis(leaf, axis, place)
        if not self.by_group:
            return leaf.reshape(self.S, self.size * self.B, *leaf.shape[3:])
        leaf = jnp.broadcast_to(leaf, (self.size, self.S, *leaf.shape[2:]))  # a shared operand is copied to each group
        return leaf.reshape(self.size * self.S, *leaf.shape[2:])

    def result(self, leaf: Array) -> tuple[Array, int]:
        """A result with the mapped axis split off again, and the position of that axis."""
        if self.by_group:
            return leaf.reshape(self.size, self.S, *leaf.shape[1:]), 0
        return leaf.reshape(self.S, self.size, self.B, *leaf.shape[2:]), 1


def _insert(shape: tuple[int, ...], place: int, size: int) -> tuple[int, ...]:
    return *shape[:place], size, *shape[place:]


def batch(
    primitive: Primitive, operands: Sequence[Array], axes: Sequence[int | None], *, form: Form, **static: Any
) -> tuple[list[Array], list[int]]:
    """The batching rule of every primitive of `recurrence`.

    If all members of the mapped axis share their weights, and one summed gradient of the weights is enough, the axis
    becomes part of B; otherwise it becomes part of S.
    """
    weights, xs = _numbers(form)
    one_each = "needs_gradient" in static and any(static["needs_gradient"].weights)
    by_group = one_each or any(axes[number] is not None for number in weights)
    size = next(leaf.shape[axis] for leaf, axis in zip(operands, axes, strict=True) if axis is not None)
    S, B, *_ = (length for number, length in enumerate(operands[xs].shape) if number != axes[xs])
    fold = Fold(by_group, size, S, B)
    folded = [
        fold.operand(leaf, axis, number in weights)
        for number, (leaf, axis) in enumerate(zip(operands, axes, strict=True))
    ]
    results = [fold.result(leaf) for leaf in primitive.bind(*folded, form=form, **static)]
    return [leaf for leaf, _ in results], [axis for _, axis in results]


def _numbers(form: Form) -> tuple[set[int], int]:
    """The numbers of the operands without an axis B, which are those of weights; and the number of xs."""
    kinds = Weights | PreparedWeights
    numbered = jax.tree.unflatten(form, range(form.num_leaves))
    nodes = jax.tree.leaves(numbered, is_leaf=lambda node: isinstance(node, kinds))
    weights = {number for node in nodes if isinstance(node, kinds) for number in jax.tree.leaves(node)}
    return weights, numbered[0].xs
