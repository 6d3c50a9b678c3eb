"""The kernel of processors: compiled code, handed the cell's elementwise step as a vector program."""

from enum import IntEnum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...native import library
from ..contract import AbstractKernel, Cotangents, Pointwise, Sequences, Trajectory, Weights, carried
from .code import Code
from .program import Program, translate

LIMITS = {"gates": 32, "fields": 16, "gains": 64, "registers": 512}  # what the tables of the compiled code hold


class InstructionSet(IntEnum):
    """What the compiled code is compiled for; a processor that lacks one gets the widest below it."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3


class CPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, forward and backward, on all cores.

    A tile of sequences goes through all of time on one core, or, where there are fewer tiles than cores, on several
    that share its hidden units. Its gates stay in the first-level cache; weights are packed once per call; products,
    elementwise steps and weight gradients are all made inside. float32 and float64 are computed as they are. Weights
    and inputs of bfloat16 are read as they are, and h is rounded to bfloat16 for its product, whose sums are float32;
    where the processor multiplies bfloat16, gate cotangents are rounded for theirs, too. float16 is made float32 first.
    `widest` bounds the instructions used, for comparison.
    """

    widest: InstructionSet = eqx.field(static=True, default=InstructionSet.AVX512_BF16)

    def __check_init__(self):
        if not isinstance(self.widest, InstructionSet):
            raise TypeError(f"widest: expected an InstructionSet, got {self.widest!r}")

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        missing = library.absence()
        if missing is not None:
            return f"The CPU kernel is not here: {missing}."
        program = translate(pointwise, carried(weights))
        if isinstance(program, str):
            return f"The CPU kernel has no program for it: {program}."
        sizes = {
            "gates": pointwise.gates,
            "fields": pointwise.fields,
            "gains": pointwise.gains.num_leaves,
            "registers": max(program.forward.registers, program.backward.registers),
        }
        for name, most in LIMITS.items():
            if sizes[name] > most:
                return f"The CPU kernel takes at most {most} {name}, and the cell has {sizes[name]}."
        return None

    def describe(self, pointwise: Pointwise, weights: Weights) -> str:
        program = _program(pointwise, weights)
        forward, backward = len(program.forward.instructions), len(program.backward.instructions)
        return f"compiled code, with a program of {forward} instructions forward and {backward} backward"

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        return len(_program(pointwise, weights).columns)

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        dtype = carried(weights)
        program = _program(pointwise, weights)
        S, B, T, _ = sequences.xs.shape
        F, H = sequences.state.shape[2:]
        over_time = [jax.ShapeDtypeStruct((S, B, T, H) if look else (0,), dtype) for look in seen]
        last = jax.ShapeDtypeStruct((S, B, F, H), dtype)
        columns = len(program.columns)
        kept = jax.ShapeDtypeStruct((S, B, T, columns, H) if keep else (0,), dtype)
        operands = *_sequences(sequences), *_stored(weights)
        call = jax.ffi.ffi_call("rnnjax_forward", [*over_time, last, kept])
        *made, last, kept = call(*operands, **self._attributes(program, program.forward))
        states = tuple(leaf if look else None for leaf, look in zip(made, seen, strict=True))
        if not keep:
            return Trajectory(states, last, jnp.zeros((S, B, T, 0, H), dtype))
        return Trajectory(states, last, jnp.pad(kept, [(0, 0)] * 3 + [(0, keep - columns), (0, 0)]))

    def backward(
        self,
        pointwise: Pointwise,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        wanted: Cotangents,
    ) -> Cotangents:
        dtype = carried(weights)
        program = _program(pointwise, weights)
        absent = jnp.zeros(0, dtype)
        operands = (
            *_sequences(sequences),
            *_stored(weights),
            trajectory.kept[:, :, :, : len(program.columns)],
            absent if dlast is None else dlast,
            *trajectory.states,
            *(absent if leaf is None else leaf for leaf in dstates),
        )
        asked = wanted.xs, *wanted.weights, wanted.state
        groups = sequences.xs.shape[:1]
        shapes = sequences.xs.shape, *(groups + leaf.shape[1:] for leaf in weights), sequences.state.shape
        sizes = [shape if want else (0,) for want, shape in zip(asked, shapes, strict=True)]
        dtypes = _in_store(sequences.xs).dtype, *(dtype for _ in sizes[1:])
        call = jax.ffi.ffi_call("rnnjax_backward", list(map(jax.ShapeDtypeStruct, sizes, dtypes)))
        made = call(*operands, **self._attributes(program, program.backward))
        answers: list[Any] = [leaf if want else None for want, leaf in zip(asked, made, strict=True)]
        dxs, *dweights, dstate = answers
        return Cotangents(Weights(*dweights), None if dxs is None else dxs.astype(sequences.xs.dtype), dstate)

    def _attributes(self, program: Program, code: Code) -> dict[str, Any]:
        columns = [(column.gate, column.input, column.recurrent) for column in program.columns]
        return {
            "instructions": np.asarray(code.instructions, np.int32).ravel(),
            "outputs": np.asarray(code.outputs, np.int32),
            "columns": np.asarray(columns, np.int32).ravel(),
            "constants": np.asarray(code.constants, np.float64),
            "registers": np.int32(code.registers),
            "widest": np.int32(self.widest),
        }


def _program(pointwise: Pointwise, weights: Weights) -> Program:
    program = translate(pointwise, carried(weights))
    assert isinstance(program, Program), program
    return program


def _in_store(array: Array) -> Array:
    """An array of a dtype that the compiled code reads."""
    return array.astype(jnp.float32) if array.dtype == jnp.float16 else array


def _stored(weights: Weights) -> Weights:
    return Weights(*map(_in_store, weights))


def _sequences(sequences: Sequences) -> list[Array]:
    """What each sequence has for itself; an array without elements stands for none."""
    length = jnp.zeros(0, jnp.int32) if sequences.length is None else sequences.length
    resets = jnp.zeros(0, bool) if sequences.resets is None else sequences.resets
    return [_in_store(sequences.xs), sequences.state, length, resets]
