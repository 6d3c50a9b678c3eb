"""The plan of the CPU kernel for prepared weights."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ...native import library
from ..contract import Pointwise, PreparedPlan, PreparedWeights, Sequences, Trajectory
from .call import attributes, sequence_operands
from .program import Program


@dataclass(frozen=True)
class PreparedCPUPlan(PreparedPlan):
    """One call of the compiled code, which reads the packed weights where they are."""

    pointwise: Pointwise
    dtype: np.dtype  # of states and sums
    stored: np.dtype  # of the matrices
    max_instruction_set: int
    program: Program = field(compare=False, repr=False)  # of `pointwise` in `dtype`
    exported: bool = False

    def __str__(self) -> str:
        count = len(self.program.forward.instructions)
        return f"CPU kernel, weights prepared in {self.stored.name}, a program of {count} instructions"

    def forward(
        self, weights: PreparedWeights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        S, B, T, _ = sequences.xs.shape
        F, H = sequences.state.shape[2:]
        over_time = [jax.ShapeDtypeStruct((S, B, T, H) if used else (0,), self.dtype) for used in used_outputs]
        last = jax.ShapeDtypeStruct((S, B, F, H), self.dtype)
        absent = jnp.zeros(0, self.dtype)
        operands = [absent if leaf is None else leaf for leaf in weights]
        call = jax.ffi.ffi_call(library.custom_call("rnnjax_prepared"), [*over_time, last])
        program = attributes(self.program, self.program.forward, self.max_instruction_set)
        *results, last = call(*sequence_operands(sequences), *operands, **program)
        states = tuple(leaf if used else None for leaf, used in zip(results, used_outputs, strict=True))
        return Trajectory(states, last, jnp.zeros((S, B, T, residual_size, H), self.dtype))
