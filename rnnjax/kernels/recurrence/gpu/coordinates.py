"""The part of the arrays that a block of threads of the Triton kernel works on, and how it reads and writes it.

Arrays are batch first, and are not copied. Rows and units beyond the last are clones of it, which are not written;
their rows of R are zero, and so are their cotangents.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import Reference, pallas, triton


class Tile(NamedTuple):
    """The sizes of the part that a block works on, padded to powers of two."""

    rows: int
    units: int


class Shared(NamedTuple):
    """References to the arrays that all sequences of a group share, and to the marks, if there are any."""

    R: Reference  # [_ N D G D]
    unit_parameters: Reference  # [_ K H]
    initial: Reference  # [_ F H]
    length: Reference  # [S B] int32
    resets: Reference  # [S B T] int32


class ForwardOperands(NamedTuple):
    """References to the other arrays that the forward half reads."""

    us: Reference  # [S B T G H]
    state: Reference  # [S B F H]


class ForwardResults(NamedTuple):
    """References to the arrays that the forward half writes."""

    states: tuple[Reference | None, ...]  # [S B T H] each, None where they are not used
    last: Reference  # [S B F H]


class BackwardOperands(NamedTuple):
    """References to the other arrays that the backward half reads."""

    pre_activations: Reference  # [S B T C H]
    previous_states: Reference  # [S B T F H]
    dstates: tuple[Reference | None, ...]  # [S B T H] each, None where it is zero
    dlast: Reference  # [S B F H]


class BackwardResults(NamedTuple):
    """References to the arrays that the backward half writes; `dinitial` is None where there are no resets."""

    dpre_activations: Reference  # [S B T C H]
    dunit_parameters: Reference  # [S B K H]
    dinitial: Reference  # [S B F H]
    dstate: Reference  # [S B F H]


class BlockCoordinates:
    """The position of a block, and how it reads and writes."""

    def __init__(self, tile: Tile, shared: Shared, batch: int):
        self.tile, self.shared = tile, shared
        self.group, self.head = pallas.program_id(2), pallas.program_id(1)
        size = shared.R.shape[2]
        units = jnp.arange(tile.units, dtype=jnp.int32)
        rows = pallas.program_id(0) * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
        # Without clones there are no masks or clamped indices, and the compiler sees that units are contiguous.
        self.whole = batch % tile.rows == 0 and size == tile.units
        self.mask = None if self.whole else (rows < batch)[:, None] & (units < size)[None, :]
        self.rows = rows if batch % tile.rows == 0 else jnp.minimum(rows, batch - 1)
        self.within = units if size == tile.units else jnp.minimum(units, size - 1)
        self.row, self.unit = self.rows[:, None], (self.head * size + self.within)[None, :]
        self.length = None if shared.length is None else triton.load(shared.length.at[self.group, self.rows])
        self.written = rows[:, None], (self.head * size + units)[None, :]  # each clone has a place of its own

    def own(self, weight: Reference) -> Array | int:
        """The index of this group in an array that all groups may share."""
        return 0 if weight.shape[0] == 1 else self.group

    def state(self, array: Reference, field: int) -> Array:
        """A field [rows, units] of an array [S B F H]."""
        return triton.load(array.at[self.group, self.row, field, self.unit])

    def timed(self, array: Reference, t: Array, pre_activation: int) -> Array:
        """A pre-activation [rows, units] of an array [S B T C H]."""
        return triton.load(array.at[self.group, self.row, t, pre_activation, self.unit])

    def states(self, array: Reference, t: Array) -> Array:
        """One step of an array [S B T H], with zeros for clones."""
        return self.of_real(triton.load(array.at[self.group, self.row, t, self.unit]))

    def of_real(self, array: Array) -> Array:
        """`array` with zeros for clones."""
        return array if self.mask is None else jnp.where(self.mask, array, 0.0)

    def vectors(self, array: Reference, count: int) -> list[Array]:
        """Vectors of an array [_ K H], the same in all rows."""
        group, shape = self.own(array), (self.tile.rows, self.tile.units)
        return [jnp.broadcast_to(triton.load(array.at[group, row, self.unit]), shape) for row in range(count)]

    def matrix(self, gate: int) -> Array:
        """R of a gate, from unit to unit."""
        R = self.shared.R
        matrix = triton.load(R.at[self.own(R), self.head, self.within[:, None], gate, self.within[None, :]])
        if R.shape[2] == self.tile.units:
            return matrix
        return jnp.where(jnp.arange(self.tile.units, dtype=jnp.int32)[:, None] < R.shape[2], matrix, 0.0)

    def valid(self, t: Array) -> Array | None:
        """For which rows [rows, 1] step `t` is valid; None where all have the full length."""
        return None if self.length is None else (t < self.length)[:, None]

    def longest(self, steps: int) -> Array:
        """The number of steps after which all rows of this tile are ignored."""
        return jnp.int32(steps) if self.length is None else jnp.max(self.length)

    def is_reset(self, t: Array, valid: Array | None) -> Array | None:
        """Which rows [rows, 1] are reset before step `t`; None where there are no resets."""
        if self.shared.resets is None:
            return None
        flags = (triton.load(self.shared.resets.at[self.group, self.rows, t]) != 0)[:, None]
        return flags if valid is None else flags & valid

    def write_timed(self, array: Reference, t: Array, pre_activation: int | None, value: Array) -> None:
        """Into an array [S B T C H], or [S B T H] where there are no pre-activations."""
        row, unit = self.written
        at = (self.group, row, t, unit) if pre_activation is None else (self.group, row, t, pre_activation, unit)
        self._write(array.at[at], value)

    def write_state(self, array: Reference, field: int, value: Array) -> None:
        """Into an array [S B F H]."""
        row, unit = self.written
        self._write(array.at[self.group, row, field, unit], value)

    def _write(self, reference: Reference, value: Array) -> None:
        triton.store(reference, value.astype(reference.dtype), mask=self.mask)
