"""How a recurrence is divided among a cluster of blocks that share a head.

A block computes all gates of `width` units of a head, for a tile of sequences. Its part of R stays in its shared
memory; at every step it needs the whole h (or all gate cotangents) of the tile, which it reads chunk by chunk.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...pallas import pallas

ROWS = 64  # sequences that a product in matrix units takes; a tile has at most as many
NARROWEST = 16  # of a block's units
WIDEST = 128  # of a block's units, over all gates: with more, the sums would not stay in registers
MOST_BARRIERS = 32  # of one kind, and so of slots
SPARE = 1024  # bytes of shared memory for barriers and alignment


class Tiling(NamedTuple):
    """The sizes of the parts; `slots` chunks of the product's operand are in shared memory at a time."""

    groups: int
    heads: int
    tiles: int
    rows: int  # sequences of a tile
    steps: int
    units: int  # D, of a head
    blocks: int  # that share a head
    chunk: int  # units
    slots: int

    @property
    def works(self) -> int:
        """The number of independent parts: groups, heads and tiles."""
        return self.groups * self.heads * self.tiles

    @property
    def width(self) -> int:
        """The units of a block."""
        return self.units // self.blocks

    @property
    def chunks(self) -> int:
        return self.units // self.chunk

    @property
    def batch(self) -> int:
        """The sequences, with those that fill the last tile."""
        return self.tiles * self.rows


def tiles_of(sequences: int) -> tuple[int, int]:
    """The number of tiles, and the rows of each."""
    tiles = -(-sequences // ROWS)
    return tiles, -(-sequences // (8 * tiles)) * 8


def fill(array: Array, batch: int) -> Array:
    """`array` [S B ...] with zeros for sequences up to `batch`."""
    return jnp.pad(array, [(0, 0), (0, batch - array.shape[1])] + [(0, 0)] * (array.ndim - 2))


def ring(units: int, streams: int, itemsize: int, room: int) -> tuple[int, int] | None:
    """Chunk and slots for an operand of `streams` x `units` columns in `room` bytes; None if it does not fit.

    All of it at once if it fits, else the largest chunks of which three slots fit, or two.
    """
    columns = room // (ROWS * itemsize)
    for least in (3, 2):
        for chunk in (size for size in (256, 128, 64, 32, 16) if units % size == 0):
            total = streams * units // chunk
            if columns // chunk >= min(least, total):
                return chunk, max(2, min(columns // chunk, total, MOST_BARRIERS)) if total > 1 else 1
    return None


def marks(
    tiling: Tiling, length: Int[Array, "S B"] | None, resets: Bool[Array, "S B T"] | None, sequences: int
) -> Int[Array, "S T tiles rows"] | None:
    """Bit 0: the step is valid. Bit 1: that of `resets`. Side by side for the rows of a tile; None without marks."""
    if length is None and resets is None:
        return None
    bits = jnp.ones((tiling.groups, sequences, tiling.steps), jnp.int32)
    if length is not None:
        bits = (jnp.arange(tiling.steps, dtype=jnp.int32) < length[..., None]).astype(jnp.int32)
    if resets is not None:
        bits = bits + 2 * resets.astype(jnp.int32)
    apart = fill(bits, tiling.batch).reshape(tiling.groups, tiling.tiles, tiling.rows, tiling.steps)
    return jnp.pad(apart, ((0, 0), (0, 0), (0, ROWS - tiling.rows), (0, 0))).transpose(0, 3, 1, 2)


class BlockCoordinates(NamedTuple):
    """The position of a block."""

    group: Array
    head: Array
    tile: Array
    block: Array
    batch: Any  # the sequences of its tile, in an array of all
    mine: Any  # its units, in an array of all
    top: Any  # the rows that are not padding, in a tile of ROWS


def coordinates_of(tiling: Tiling) -> BlockCoordinates:
    work, block = jax.lax.axis_index("work"), jax.lax.axis_index("block")
    head, tile = work // tiling.tiles % tiling.heads, work % tiling.tiles
    batch = pallas.ds(tile * tiling.rows, tiling.rows)
    mine = pallas.ds(head * tiling.units + block * tiling.width, tiling.width)
    return BlockCoordinates(
        work // (tiling.tiles * tiling.heads), head, tile, block, batch, mine, pallas.ds(0, tiling.rows)
    )
