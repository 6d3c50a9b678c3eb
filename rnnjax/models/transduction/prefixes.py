"""Prefixes of transcripts, as beams hold them: labels, filled up with blanks, and how many they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ... import check
from ...arrays import PyTree
from ...exporting import exportable
from .labels import BLANK


@exportable
class Prefixes(NamedTuple):
    """W transcripts that may go on."""

    labels: Int[Array, "W L"]  # zeros from the length on
    length: Int[Array, " W"]

    @classmethod
    def empty(cls, width: int, max_length: int) -> "Prefixes":
        return cls(jnp.full((width, max_length), BLANK, int), jnp.zeros(width, int))

    @property
    def last(self) -> Int[Array, " W"]:
        """The last label of each; the blank where there is none."""
        index = jnp.maximum(self.length - 1, 0)
        found = jnp.take_along_axis(self.labels, index[:, None], axis=1)[:, 0]
        return jnp.where(self.length > 0, found, jnp.full_like(found, BLANK))

    def taken(self, rows: Int[Array, " N"]) -> "Prefixes":
        return Prefixes(self.labels[rows], self.length[rows])

    def extended(self, labels: Int[Array, " W"], extends: Bool[Array, " W"]) -> "Prefixes":
        """Each with one label more where `extends`."""
        places = jnp.where(extends, self.length, self.labels.shape[1])
        rows = jnp.arange(len(labels))
        return Prefixes(self.labels.at[rows, places].set(labels, mode="drop"), self.length + extends.astype(int))

    def equals(self, other: "Prefixes") -> Bool[Array, "W N"]:
        """Which of these are which of the others."""
        same = (self.labels[:, None] == other.labels[None]).all(-1)
        return same & (self.length[:, None] == other.length[None])

    def shortened(self) -> "Prefixes":
        """Each without its last label; an empty one has a length of -1 then, which no prefix has."""
        rows, last = jnp.arange(len(self.length)), jnp.maximum(self.length - 1, 0)
        return Prefixes(self.labels.at[rows, last].set(BLANK), self.length - 1)


def rows_of(tree: PyTree, rows: Int[Array, " N"]) -> PyTree:
    """These rows of each array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def copies(values: PyTree, width: int) -> PyTree:
    """`width` copies of each array."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), values)


def check_beam(width: int, max_length: int) -> None:
    """Raise unless both are positive integers."""
    check.sizes(width=width, max_length=max_length)
