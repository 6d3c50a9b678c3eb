"""Masks with holes: the valid steps are brought together, run as one sequence with a length, and spread again.

So every engine and network honours a mask by what it does for `length`, and the steps around a hole are neighbours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .arrays import Flags, Length, PyTree
from .marks import valid_steps


class Packing(NamedTuple):
    """Where each step goes: the valid ones to the front, in their order, and the masked ones after them."""

    valid: Flags
    places: Int[Array, " T"]
    steps: Int[Array, " T"]  # the step at each place
    length: Length

    @classmethod
    def of(cls, mask: Flags, length: Length | None) -> "Packing":
        """The packing of the steps that `mask` marks as valid and that come before `length`."""
        T = mask.shape[0]
        valid = mask if length is None else mask & valid_steps(length, T)
        rank = jnp.cumsum(valid)
        number = rank[-1] if T else jnp.zeros((), rank.dtype)
        places = jnp.where(valid, rank - 1, number + jnp.arange(T) - rank)
        steps = jnp.zeros_like(places).at[places].set(jnp.arange(T), unique_indices=True)
        return cls(valid, places, steps, number)

    def pack(self, tree: PyTree[Array]) -> PyTree[Array]:
        """`tree` over time with the valid steps first."""
        return _take(tree, self.steps)

    def spread(self, tree: PyTree[Array]) -> PyTree[Array]:
        """The inverse of `pack`."""
        return _take(tree, self.places)

    def resets(self, resets: Flags, reverse: bool) -> Flags:
        """`resets`, packed: one at a masked step comes before the valid step that runs next, if there is one."""
        flags = (jnp.flip(resets), jnp.flip(self.valid)) if reverse else (resets, self.valid)
        moved = _move(*flags)
        return self.pack(jnp.flip(moved) if reverse else moved)


def _move(resets: Flags, valid: Flags) -> Flags:
    """The valid steps that come first after a reset, all in running order."""
    number = jnp.cumsum(resets)
    at_valid = jax.lax.cummax(jnp.where(valid, number, 0))
    return valid & (number > jnp.roll(at_valid, 1).at[:1].set(0))


def _take(tree: PyTree[Array], steps: Int[Array, " T"]) -> PyTree[Array]:
    take = lambda leaf: leaf.at[steps].get(unique_indices=True, mode="promise_in_bounds")  # noqa: E731
    return jax.tree.map(take, tree)
