"""The kernel for CPUs: compiled code, which gets the cell's elementwise step as a vector program."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ....check import flags
from ....refusal import Refusal
from ...native import library
from ..contract import (
    AbstractKernel,
    Cotangents,
    KernelPlan,
    NeedsGradient,
    Pointwise,
    PreparedPlan,
    PreparedWeights,
    Sequences,
    Trajectory,
    Weights,
    carried,
)
from .call import attributes, in_store, sequence_operands
from .prepared import PreparedCPUPlan
from .program import Program, translate

LIMITS = {"gates": 32, "fields": 16, "unit parameters": 64, "registers": 512}  # of the tables of the compiled code


class InstructionSet(IntEnum):
    """The instruction sets that the code is compiled for; a processor without one uses the next one below."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3


class CPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, forward and backward, on all cores.

    One core runs all steps of a tile of sequences; if there are fewer tiles than cores, several cores share its hidden
    units. The gates stay in the first-level cache, and weights are packed once per call. Products, elementwise steps
    and weight gradients are all computed inside. Arithmetic is in float32 or float64. Weights and inputs of bfloat16
    are read as they are, and h is rounded to bfloat16 for its product, whose sums are float32; where the processor
    multiplies pairs of bfloat16 faster than floats (AMD), gate cotangents are rounded to bfloat16 for their products,
    too. float16 is converted to float32 first. Weights that `rnnjax.prepare` has packed are read where they are, by
    code for few rows. `max_instruction_set` limits the instructions used, for comparisons.

    A program of `jax.export` is plain JAX in place of the kernel, so that it runs without rnnjax. With `exported` it
    holds the kernel's calls, which JAX lets through if they are named; it then runs only where this version of rnnjax
    is imported:

        checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in rnnjax.kernels.CUSTOM_CALLS]
        jax.export.export(jax.jit(function), disabled_checks=checks)(xs)
    """

    max_instruction_set: InstructionSet = eqx.field(static=True, default=InstructionSet.AVX512_BF16)
    exported: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not isinstance(self.max_instruction_set, InstructionSet):
            raise TypeError(
                f"max_instruction_set: expected an InstructionSet, got {self.max_instruction_set!r}. "
                "Take one of them, such as InstructionSet.AVX2"
            )
        flags(exported=self.exported)

    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        dtype = carried(weights)
        program = self._program(pointwise, dtype)
        if isinstance(program, Refusal):
            return program
        return CPUPlan(pointwise, dtype, self.max_instruction_set, program, self.exported)

    def plan_prepared(self, pointwise: Pointwise, weights: PreparedWeights) -> PreparedPlan | Refusal:
        dtype, stored = np.dtype(weights.b.dtype), np.dtype(weights.W.dtype)
        program = self._program(pointwise, dtype)
        if isinstance(program, Refusal):
            return program
        return PreparedCPUPlan(pointwise, dtype, stored, self.max_instruction_set, program, self.exported)

    def _program(self, pointwise: Pointwise, dtype: np.dtype) -> Program | Refusal:
        """The program of a cell whose states are in `dtype`, if the compiled code can run it."""
        missing = library.absence()
        if missing is not None:
            return Refusal(f"The CPU kernel is not here: {missing}.")
        program = translate(pointwise, dtype)
        if isinstance(program, Refusal):
            return Refusal(f"The CPU kernel has no program for it: {program}.")
        sizes = {
            "gates": pointwise.gates,
            "fields": pointwise.fields,
            "unit parameters": pointwise.unit_parameters.num_leaves,
            "registers": max(program.forward.registers, program.backward.registers),
        }
        for name, most in LIMITS.items():
            if sizes[name] > most:
                return Refusal(f"The CPU kernel takes at most {most} {name}, and the cell has {sizes[name]}.")
        return program


@dataclass(frozen=True)
class CPUPlan(KernelPlan):
    """One call of the compiled code for each half, with the half's program."""

    pointwise: Pointwise
    dtype: np.dtype  # of states and sums
    max_instruction_set: InstructionSet
    program: Program = field(compare=False, repr=False)  # of `pointwise` in `dtype`
    exported: bool = False

    @property
    def residual_size(self) -> int:
        return len(self.program.pre_activations)

    def __str__(self) -> str:
        forward, backward = len(self.program.forward.instructions), len(self.program.backward.instructions)
        return f"CPU kernel, a program of {forward} instructions forward and {backward} backward"

    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        S, B, T, _ = sequences.xs.shape
        F, H = sequences.state.shape[2:]
        over_time = [jax.ShapeDtypeStruct((S, B, T, H) if used else (0,), self.dtype) for used in used_outputs]
        last = jax.ShapeDtypeStruct((S, B, F, H), self.dtype)
        residuals = jax.ShapeDtypeStruct((S, B, T, self.residual_size, H) if residual_size else (0,), self.dtype)
        operands = *sequence_operands(sequences), *map(in_store, weights)
        call = jax.ffi.ffi_call(library.custom_call("rnnjax_forward"), [*over_time, last, residuals])
        *results, last, residuals = call(
            *operands, **attributes(self.program, self.program.forward, self.max_instruction_set)
        )
        states = tuple(leaf if used else None for leaf, used in zip(results, used_outputs, strict=True))
        if not residual_size:
            return Trajectory(states, last, jnp.zeros((S, B, T, 0, H), self.dtype))
        spare = residual_size - self.residual_size
        return Trajectory(states, last, jnp.pad(residuals, [(0, 0)] * 3 + [(0, spare), (0, 0)]))

    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        absent = jnp.zeros(0, self.dtype)
        operands = (
            *sequence_operands(sequences),
            *map(in_store, weights),
            trajectory.residuals[:, :, :, : self.residual_size],
            absent if dlast is None else dlast,
            *trajectory.states,
            *(absent if leaf is None else leaf for leaf in dstates),
        )
        needed = needs_gradient.xs, *needs_gradient.weights, needs_gradient.state
        groups = sequences.xs.shape[:1]
        shapes = sequences.xs.shape, *(groups + leaf.shape[1:] for leaf in weights), sequences.state.shape
        sizes = [shape if is_needed else (0,) for is_needed, shape in zip(needed, shapes, strict=True)]
        dtypes = in_store(sequences.xs).dtype, *(self.dtype for _ in sizes[1:])
        call = jax.ffi.ffi_call(library.custom_call("rnnjax_backward"), list(map(jax.ShapeDtypeStruct, sizes, dtypes)))
        results = call(*operands, **attributes(self.program, self.program.backward, self.max_instruction_set))
        cotangents: list[Any] = [leaf if is_needed else None for is_needed, leaf in zip(needed, results, strict=True)]
        dxs, *dweights, dstate = cotangents
        return Cotangents(Weights(*dweights), None if dxs is None else dxs.astype(sequences.xs.dtype), dstate)
