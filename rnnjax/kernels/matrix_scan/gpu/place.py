"""The columns of a state that a block of threads computes, and how it reads and writes its arrays."""

from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ....matrix_cell import Transition
from ...pallas import Reference, pallas, triton
from ..contract import Operands

STATE = 2048  # numbers of a tile of a state: 16 in each of 128 threads, and as many of its cotangent
FEWEST = 8  # columns of a tile
CHUNK = 64  # steps at most, all states of which are in memory at a time, beside one for each chunk


class Form(NamedTuple):
    """Sizes of a call, and of what each of its programs computes."""

    reads_before: bool
    T: int
    K: int
    V: int
    columns: int  # of a tile
    chunk: int  # steps

    @classmethod
    def of(cls, operands: Operands, reads_before: bool) -> "Form":
        T, (K, V) = operands.steps.value.shape[1], operands.state.shape[2:]
        columns = max(FEWEST, min(power_of_two(V), STATE // power_of_two(K)))
        return cls(reads_before, T, K, V, columns, min(CHUNK, power_of_two(isqrt(T))))

    @property
    def tiles(self) -> int:
        return pallas.cdiv(self.V, self.columns)

    @property
    def chunks(self) -> int:
        return pallas.cdiv(self.T, self.chunk)


def power_of_two(size: int) -> int:
    """The next power of two: the size of every array of Triton."""
    return 1 << (size - 1).bit_length()


class Place:
    """The columns that a program computes, and how it reads and writes: zeros beyond the last key and column."""

    def __init__(self, form: Form, operands: Operands):
        self.form, self.operands = form, operands
        self.tile, self.head, self.sequence = (pallas.program_id(axis) for axis in range(3))
        self.keys = jnp.arange(power_of_two(form.K), dtype=jnp.int32)
        self.columns = self.tile * form.columns + jnp.arange(form.columns, dtype=jnp.int32)
        self.of_keys, self.of_columns = self.keys < form.K, self.columns < form.V
        self.of_states = self.of_keys[:, None] & self.of_columns[None, :]
        self.start = None if operands.start is None else self.state(operands.start)

    def step(self, t: Array) -> Transition:
        """The coefficients of a step."""
        value = self.by_column(self.operands.steps.value, t)
        rows = jax.tree.map(lambda each: self.by_key(each, t), self.operands.steps._replace(value=None))
        return rows._replace(value=value)

    def by_key(self, array: Reference, t: Array) -> Array:
        """A step of an array [B T N K], or of [B T N 1] with one number for all keys."""
        keys = self.keys if array.shape[-1] == self.form.K else jnp.zeros_like(self.keys)
        return _load(array.at[self._time(t, keys)], self.of_keys)

    def by_column(self, array: Reference, t: Array) -> Array:
        """A step of an array [B T N V]."""
        return _load(array.at[self._time(t, self.columns)], self.of_columns)

    def write_by_key(self, array: Reference | None, t: Array, row: Array | None) -> None:
        """The part of this tile of an array [tiles B T N K], if there is one."""
        if array is not None and row is not None:
            _store(array.at[(self.tile, *self._time(t, self.keys))], row, self.of_keys)

    def write_by_column(self, array: Reference, t: Array, row: Array) -> None:
        _store(array.at[self._time(t, self.columns)], row, self.of_columns)

    def state(self, array: Reference, *step: Array) -> Array:
        """Of an array [B N K V], or [B N steps K V] with the number of a step."""
        return _load(array.at[self._state(step)], self.of_states)

    def write_state(self, array: Reference, S: Array, *step: Array) -> None:
        _store(array.at[self._state(step)], S, self.of_states)

    def valid_steps(self) -> Array:
        T: Any = jnp.int32(self.form.T)
        length: Any = self.operands.length
        return T if length is None else jnp.clip(triton.load(length.at[self.sequence]), 0, T)

    def is_reset(self, t: Array) -> Array | None:
        resets: Any = self.operands.resets
        return None if resets is None else triton.load(resets.at[self.sequence, t]) != 0

    def before(self, t: Array, S: Array) -> Array:
        """The state that a step starts from, where S is the one after the step before it."""
        reset = self.is_reset(t)
        return S if reset is None else jnp.where(reset, jnp.zeros_like(S) if self.start is None else self.start, S)

    def _time(self, t: Array, within: Array) -> tuple[Array, ...]:
        return self.sequence, t, self.head, within

    def _state(self, step: tuple[Array, ...]) -> tuple[Array, ...]:
        return self.sequence, self.head, *step, self.keys[:, None], self.columns[None, :]


def _load(reference: Reference, mask: Array) -> Array:
    return triton.load(reference, mask=mask, other=jnp.asarray(0, reference.dtype)).astype(jnp.float32)


def _store(reference: Reference, values: Array, mask: Array) -> None:
    triton.store(reference, values.astype(reference.dtype), mask=mask)
