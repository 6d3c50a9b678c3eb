"""What calls of the compiled code have in common: the operands of sequences, and a program as attributes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..contract import Sequences
from .code import Code
from .program import Program


def in_store(array: Array) -> Array:
    """An array of a dtype that the compiled code reads."""
    return array.astype(jnp.float32) if array.dtype == jnp.float16 else array


def sequence_operands(sequences: Sequences) -> list[Array]:
    """What each sequence has for itself; an array without elements stands for none."""
    length = jnp.zeros(0, jnp.int32) if sequences.length is None else sequences.length
    resets = jnp.zeros(0, bool) if sequences.resets is None else sequences.resets
    return [in_store(sequences.xs), sequences.state, length, resets]


def attributes(program: Program, code: Code, max_instruction_set: int) -> dict[str, Any]:
    """A half of a program as attributes of its call."""
    pre_activations = [
        (pre_activation.gate, pre_activation.input, pre_activation.recurrent)
        for pre_activation in program.pre_activations
    ]
    return {
        "instructions": np.asarray(code.instructions, np.int32).ravel(),
        "outputs": np.asarray(code.outputs, np.int32),
        "pre_activations": np.asarray(pre_activations, np.int32).ravel(),
        "constants": np.asarray(code.constants, np.float64),
        "registers": np.int32(code.registers),
        "max_instruction_set": np.int32(max_instruction_set),
    }
