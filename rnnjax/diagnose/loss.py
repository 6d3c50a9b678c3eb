"""The loss of a sequence: a scalar function of what `unroll` returns."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Array

from ..arrays import PyTree, State
from ..checked import Checked

SequenceLoss: TypeAlias = Checked[Callable[[State, PyTree[Array]], Array]]  # (last, ys) -> scalar
