"""The operands of the matrix-state recurrence."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Inexact, Int

from ...matrix_cell import Transition

State = Inexact[Array, "*batch N K V"]
Emitted = Inexact[Array, "*batch T N V"]


class Operands(NamedTuple):
    """Of one sequence; in a batch every array has a leading axis B."""

    steps: Transition  # over time
    state: State  # before the first step
    start: State | None  # the state after a reset; None stands for zeros
    resets: Bool[Array, "*batch T"] | None  # the steps before which the state is reset
    length: Int[Array, "*batch"] | None  # int32; steps from it on leave the state alone, and emit zeros; None: T
