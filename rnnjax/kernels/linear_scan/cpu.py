"""The linear recurrence for processors: compiled code that reads `a` and `b` once, and writes `h` once.

What bounds it is memory: the bytes of `a`, `b` and `h` over the rate at which the machine reads two arrays and writes a
third. Rows are shared out among the threads. Where there are fewer of them, chunks of time are: what a chunk lacks of
the one before is added once both are there, step by step until nothing is left of it.
"""

import jax
import numpy as np
from jaxtyping import Array, Inexact

from ..native import library
from ..recurrence.cpu.cpu import InstructionSet

SHORTEST = 8  # steps: a call costs as much as fewer do in XLA's own loop
NARROWEST, MANY = 4, 8  # units of which XLA's loop sees many rows at once, and the kernel one after the other


def is_here() -> bool:
    """Whether there is compiled code to call."""
    return library.absence() is None


def pays_for(T: int) -> bool:
    """Whether there is, and a call to it is worth its price for so many steps, unless many rows have a few units."""
    return is_here() and T >= SHORTEST


def pays(B: int, T: int, H: int) -> bool:
    """Whether a call to it is worth its price."""
    return pays_for(T) and (H >= NARROWEST or B < MANY)


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    reverse: bool,
    late: bool,
    max_instruction_set: InstructionSet = InstructionSet.AVX512_BF16,
) -> Inexact[Array, "B T H"]:
    """All states; A is B, or 1 for all alike. `max_instruction_set` bounds the instructions used, for comparison."""
    call = jax.ffi.ffi_call(library.custom_call("rnnjax_linear_scan"), jax.ShapeDtypeStruct(b.shape, b.dtype))
    return call(a, b, initial, reverse=reverse, late=late, max_instruction_set=np.int32(max_instruction_set))
