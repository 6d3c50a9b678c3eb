"""The linear recurrence for CPUs: compiled code that reads `a` and `b` once, and writes `h` once.

Its speed is limited by memory: the bytes of `a`, `b` and `h` over the rate at which the machine reads two arrays and
writes a third. Rows are distributed over the threads. If there are fewer rows than threads, chunks of time are: each
chunk first runs from zero; the contribution of the preceding chunk is then added until it has decayed to zero.
"""

import jax
import numpy as np
from jaxtyping import Array, Inexact

from ..native import library
from ..recurrence.cpu.cpu import InstructionSet

SHORTEST = 8  # steps: for fewer, a call costs more than XLA's own loop
# With fewer units and at least so many rows, XLA's loop is faster: it computes many rows at once.
NARROWEST, MANY = 4, 8


def is_here() -> bool:
    """Whether the compiled code is available."""
    return library.absence() is None


def pays_for(T: int) -> bool:
    """Whether it is available and a call pays off for T steps, unless there are many rows of few units."""
    return is_here() and T >= SHORTEST


def pays(B: int, T: int, H: int) -> bool:
    """Whether it is available and a call pays off."""
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
    """All states; A is B, or 1 for one `a` of all rows. `max_instruction_set` is there for comparisons."""
    call = jax.ffi.ffi_call(library.custom_call("rnnjax_linear_scan"), jax.ShapeDtypeStruct(b.shape, b.dtype))
    return call(a, b, initial, reverse=reverse, late=late, max_instruction_set=np.int32(max_instruction_set))
