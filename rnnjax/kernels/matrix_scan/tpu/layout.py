"""How the arrays of a matrix-state recurrence are laid out and divided into blocks for the grid of the TPU kernels.

grid     sequences, heads, tiles of columns, blocks of time; one block of time after the other
arrays   heads before time, float32, columns padded to whole tiles
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...pallas import pallas
from ..contract import Operands

ROWS, LANES = 8, 128  # of a tile of registers
STATES = 4 << 20  # bytes of vector memory for the states of a block
MOST_STEPS = 64  # of a block


class Layout(NamedTuple):
    """The blocks of the arrays, which have heads before time. `reverse`: the last block of time is the first to run."""

    T: int
    K: int
    V: int
    columns: int  # of a tile
    steps: int  # of a block of time
    reverse: bool = False

    @classmethod
    def of(cls, operands: Operands) -> "Layout":
        T, (K, V) = operands.steps.value.shape[2], operands.state.shape[2:]
        columns = min(V, LANES)
        room = STATES // (4 * LANES * pallas.cdiv(K, ROWS) * ROWS) - 1  # one more than steps
        return cls(T, K, V, columns, min(T, MOST_STEPS, max(ROWS, room // ROWS * ROWS)))

    @property
    def blocks(self) -> int:
        return pallas.cdiv(self.T, self.steps)

    def _time(self, block: Any) -> Any:
        return self.blocks - 1 - block if self.reverse else block

    def by_key(self, array: Array) -> Any:
        """Of an array [B N T K]."""
        return self._spec((self.steps, array.shape[3]), lambda _, time: (time, 0))

    def by_column(self) -> Any:
        """Of an array [B N T V]."""
        return self._spec((self.steps, self.columns), lambda tile, time: (time, tile))

    def state(self) -> Any:
        """Of an array [B N K V]."""
        return self._spec((self.K, self.columns), lambda tile, _: (0, tile))

    def border(self) -> Any:
        """Of an array [B N blocks K V]."""
        return self._spec((None, self.K, self.columns), lambda tile, time: (time, 0, tile))

    def operands(self, operands: Operands) -> Operands:
        """Of all operands; resets are [B T 1] and lengths [B 1 1]."""
        marks: Any = {
            "resets": pallas.BlockSpec((None, self.steps, 1), lambda b, _head, _tile, block: (b, self._time(block), 0)),
            "length": pallas.BlockSpec((None, 1, 1), lambda b, _head, _tile, _block: (b, 0, 0)),
        }
        there = {name: spec for name, spec in marks.items() if getattr(operands, name) is not None}
        return self._numbers(operands, self.by_key)._replace(**there)

    def gradients(self, operands: Operands) -> Operands:
        """Of the gradients; those by key are [tiles B N T K]."""
        shape = None, None, None, self.steps, self.K
        of_tile = pallas.BlockSpec(shape, lambda b, n, tile, block: (tile, b, n, self._time(block), 0))
        return self._numbers(operands, lambda _: of_tile)

    def _numbers(self, operands: Operands, by_key: Callable[[Array], Any]) -> Operands:
        """Of all but the marks."""
        steps: Any = jax.tree.map(by_key, operands.steps)._replace(value=self.by_column())
        state: Any = self.state()
        return Operands(steps, state, None if operands.start is None else state, None, None)

    def _spec(self, shape: tuple[int | None, ...], index: Callable[[Any, Any], tuple[Any, ...]]) -> Any:
        return pallas.BlockSpec((None, None, *shape), lambda b, n, tile, block: (b, n, *index(tile, self._time(block))))


def by_head(operands: Operands) -> Operands:
    """The operands as the kernels read them: heads before time, in float32, whole tiles of columns."""
    steps = jax.tree.map(lambda each: heads_first(each.astype(jnp.float32)), operands.steps)
    resets, length = operands.resets, operands.length
    return Operands(
        steps._replace(value=_whole(steps.value)),
        wide(operands.state),
        None if operands.start is None else wide(operands.start),
        None if resets is None else resets.astype(jnp.int32)[:, :, None],
        None if length is None else length[:, None, None],
    )


def heads_first(array: Array) -> Array:
    return array.swapaxes(1, 2)


def wide(array: Array) -> Array:
    return _whole(array.astype(jnp.float32))


def _whole(array: Array) -> Array:
    """`array` with columns of zeros, so that those of several tiles fill the last one."""
    V = array.shape[-1]
    more = -V % LANES if V > LANES else 0
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)])


def by_time(array: Array, like: Array) -> Array:
    """The inverse of the layout of an array over time by column."""
    return cut(array.swapaxes(1, 2), like)


def cut(array: Array, like: Array) -> Array:
    return array[..., : like.shape[-1]].astype(like.dtype)
