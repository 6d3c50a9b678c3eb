"""How the arrays of a recurrence are divided into blocks of whole tiles for the grid of the TPU kernel.

grid     groups S, heads N, tiles of sequences, blocks of time; one block of time after the other
tiles    [sequences, units] last; sequences and units are padded by clones of the last one, and the clones of units have
         zero rows in R, so that they have no effect on other units
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ....arrays import DType, Shaped
from ...pallas import output, pallas
from ..contract import Sequences, Weights

LANES = 128
SUBLANES = 16  # of a tile of bfloat16; one of float32 has half as many
STREAMED = 4 << 20  # bytes of vector memory for the blocks of time
TEMPORARY = 48  # arrays [rows, units] of float32 that a step needs beside them, at most
MOST_ROWS, MOST_STEPS = 256, 32  # of a tile, and of a block: one 32-bit word has its resets


class Layout(NamedTuple):
    """Sizes of the arrays and of their blocks."""

    groups: int
    heads: int
    sequences: int
    steps: int
    units: int  # D, of a head
    rows: int  # sequences in a tile
    block: int  # steps in a block of time

    @classmethod
    def of(cls, weights: Weights, sequences: Sequences, streamed: int) -> "Layout":
        """The layout for blocks of `streamed` bytes for each unit of each step."""
        S, B, T, _ = sequences.xs.shape
        _, heads, units, _, _ = weights.R.shape
        rows = min(whole(B, SUBLANES), MOST_ROWS)
        bytes_of_a_step = 2 * rows * whole(units, LANES) * streamed  # each block is fetched while another is used
        while rows > SUBLANES and max(4 * bytes_of_a_step, temporary(rows, units)) > STREAMED:
            rows, bytes_of_a_step = whole(rows // 2, SUBLANES), bytes_of_a_step // 2
        block = max(1, min(T, MOST_STEPS, STREAMED // bytes_of_a_step))
        return cls(S, heads, B, T, units, rows, block)

    @property
    def padded(self) -> tuple[int, int, int]:
        """Sequences, steps and units of the padded arrays."""
        return whole(self.sequences, self.rows), whole(self.steps, self.block), whole(self.units, LANES)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        sequences, steps, _ = self.padded
        return self.groups, self.heads, sequences // self.rows, steps // self.block

    def timed(self, array: Float[Array, "S B T C H"], mode: str = "edge") -> Float[Array, "S N steps C rows units"]:
        """The padded layout of an array over time."""
        sequences, steps, units = self.padded
        apart = array.reshape(*array.shape[:4], self.heads, self.units).transpose(0, 4, 2, 3, 1, 5)
        return _pad(apart, {2: steps, 4: sequences, 5: units}, mode)

    def untimed(self, array: Float[Array, "S N steps C rows units"]) -> Float[Array, "S B T C H"]:
        """The inverse of `timed`."""
        real = array[:, :, : self.steps, :, : self.sequences, : self.units].transpose(0, 4, 2, 3, 1, 5)
        return real.reshape(*real.shape[:4], self.heads * self.units)

    def state(self, array: Float[Array, "S B F H"], mode: str = "edge") -> Float[Array, "S N F rows units"]:
        """The padded layout of an array of states."""
        apart = array.reshape(*array.shape[:3], self.heads, self.units).transpose(0, 3, 2, 1, 4)
        return _pad(apart, {3: self.padded[0], 4: self.padded[2]}, mode)

    def unstate(self, array: Float[Array, "S N F rows units"]) -> Float[Array, "S B F H"]:
        """The inverse of `state`."""
        real = array[:, :, :, : self.sequences, : self.units].transpose(0, 3, 2, 1, 4)
        return real.reshape(*real.shape[:3], self.heads * self.units)

    def recurrent(self, R: Float[Array, "_ N D G D"]) -> Float[Array, "_ N G units units"]:
        """R, a matrix for each gate."""
        cloned = _pad(R.transpose(0, 1, 3, 2, 4), {4: self.padded[2]}, "edge")
        return _pad(cloned, {3: self.padded[2]}, "constant")

    def vectors(self, array: Float[Array, "_ K H"]) -> Float[Array, "_ N _ 1 units"]:
        """Vectors that all sequences share; a row of zeros if there are none, since no block may be empty."""
        array = array if array.shape[1] else jnp.zeros_like(array, shape=(array.shape[0], 1, array.shape[2]))
        apart = array.reshape(*array.shape[:2], self.heads, 1, self.units).transpose(0, 2, 1, 3, 4)
        return _pad(apart, {4: self.padded[2]}, "edge")

    def marks(self, sequences: Sequences) -> tuple[Array, Array]:
        """Lengths and resets."""
        return self.lengths(sequences), self.resets(sequences)

    def lengths(self, sequences: Sequences) -> Int[Array, "S rows 1"]:
        """The number of valid steps of each sequence; 0 for a clone."""
        length = sequences.length
        if length is None:
            length = jnp.full((self.groups, self.sequences), self.steps, jnp.int32)
        return _pad(length[:, :, None], {1: self.padded[0]}, "constant")

    def resets(self, sequences: Sequences) -> Int[Array, "S blocks rows 1"]:
        """The resets of a block of time, a bit for each of its steps."""
        rows, steps, _ = self.padded
        shape = self.groups, steps // self.block, self.block, rows, 1
        if sequences.resets is None:
            return jnp.zeros((*shape[:2], *shape[3:]), jnp.int32)
        flags = _pad(sequences.resets.swapaxes(1, 2), {1: steps, 2: rows}, "constant").reshape(shape)
        bits = jnp.arange(self.block, dtype=jnp.uint32)[:, None, None]
        return (flags.astype(jnp.uint32) << bits).sum(2, dtype=jnp.uint32).astype(jnp.int32)

    # The blocks of each kind of array for a step of the grid.

    def timed_block(self, array: Shaped, backward: bool) -> "pallas.BlockSpec":
        last = self.grid[3] - 1
        shape = None, None, self.block, array.shape[3], self.rows, self.padded[2]
        return pallas.BlockSpec(shape, lambda s, n, b, t: (s, n, last - t if backward else t, 0, b, 0))

    def state_block(self, array: Shaped) -> "pallas.BlockSpec":
        shape = None, None, array.shape[2], self.rows, self.padded[2]
        return pallas.BlockSpec(shape, lambda s, n, b, _t: (s, n, 0, b, 0))

    def shared_block(self, array: Shaped) -> "pallas.BlockSpec":
        alone = array.shape[0] == 1
        shape, once = (None, None, *array.shape[2:]), pallas.Buffered(1)  # it stays the same: one buffer is enough
        return pallas.BlockSpec(shape, lambda s, n, _b, _t: (0 if alone else s, n, 0, 0, 0), pipeline_mode=once)

    def length_block(self) -> "pallas.BlockSpec":
        return pallas.BlockSpec((None, self.rows, 1), lambda s, _n, b, _t: (s, b, 0))

    def reset_block(self, backward: bool) -> "pallas.BlockSpec":
        last = self.grid[3] - 1
        return pallas.BlockSpec((None, None, self.rows, 1), lambda s, _n, b, t: (s, last - t if backward else t, b, 0))

    def timed_type(self, pre_activations: int, dtype: DType) -> jax.ShapeDtypeStruct:
        sequences, steps, units = self.padded
        return output((self.groups, self.heads, steps, pre_activations, sequences, units), dtype)

    def state_type(self, fields: int, dtype: DType) -> jax.ShapeDtypeStruct:
        sequences, _, units = self.padded
        return output((self.groups, self.heads, fields, sequences, units), dtype)


def temporary(rows: int, units: int) -> int:
    """Bytes that a step needs beside the blocks."""
    return TEMPORARY * 4 * rows * whole(units, LANES)


def whole(size: int, tile: int) -> int:
    """`size`, rounded up to whole tiles."""
    return -(-size // tile) * tile


def _pad(array: Array, sizes: dict[int, int], mode: str) -> Array:
    """`array` widened at the end of each axis of `sizes` to that size."""
    return jnp.pad(array, [(0, sizes.get(axis, size) - size) for axis, size in enumerate(array.shape)], mode)
