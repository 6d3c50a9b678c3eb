"""The linear recurrence for processors: compiled code that reads `a` and `b` once, and writes `h` once.

What bounds it is memory, T H (2 + 1) numbers over the rate at which the machine copies. Rows and units are shared out
among the threads. Where there are fewer of them than a thread reads at once, time is, too: what a part of it lacks of
the parts before is added after, step by step until nothing is left of it.
"""

import jax
import numpy as np
from jaxtyping import Array, Inexact

from ..cpu import library
from ..cpu.cpu import InstructionSet


def is_here() -> bool:
    """Whether there is compiled code to call."""
    return library.absence() is None


def scan(
    a: Inexact[Array, "A T H"],
    b: Inexact[Array, "B T H"],
    initial: Inexact[Array, "B H"],
    *,
    reverse: bool,
    late: bool,
    widest: InstructionSet = InstructionSet.AVX512_BF16,
) -> Inexact[Array, "B T H"]:
    """All states; A is B, or 1 for all alike. `widest` bounds the instructions used, for comparison."""
    call = jax.ffi.ffi_call("rnnjax_linear_scan", jax.ShapeDtypeStruct(b.shape, b.dtype))
    return call(a, b, initial, reverse=reverse, late=late, widest=np.int32(widest))
