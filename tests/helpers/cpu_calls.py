"""Calls of the entry points of the CPU library, argument by argument, as the private protocol has them."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import ShapeDtypeStruct, lax
from jaxtyping import Array
from random_shapes import Sizes, pointwise_of

from rnnjax.kernels import InstructionSet
from rnnjax.kernels.linear_scan import cpu as linear_scan
from rnnjax.kernels.native import library
from rnnjax.kernels.recurrence.cpu.program import Program, translate
from rnnjax.kernels.recurrence.prepared.packing import PREPARED_UNITS as P


class Call(NamedTuple):
    """A call of an entry point of the library, or of a copy of it; arrays and results by name, in order."""

    target: str
    arguments: dict[str, np.ndarray]
    results: dict[str, ShapeDtypeStruct]
    attributes: dict[str, Any]

    def __call__(self, *arguments: Array | np.ndarray) -> list[Array]:
        """The results, where this is compiled."""
        target = library.custom_call(self.target) if self.target in library.ENTRY_POINTS else self.target
        return jax.ffi.ffi_call(target, list(self.results.values()))(*arguments, **self.attributes)

    def run(self) -> list[Array]:
        return jax.block_until_ready(jax.jit(self.__call__)(*self.arguments.values()))


def switch(calls: Sequence[Call]) -> Callable[[int], Array]:
    """One compiled program of many calls, which makes the one of the given number, and gives a number of its results.

    An error of the call is raised by `jax.block_until_ready` at the latest.
    """
    branches = [partial(_one_number, call) for call in calls]
    return jax.jit(lambda number: lax.switch(number, branches))


def _one_number(call: Call) -> Array:
    largest = max(call(*call.arguments.values()), key=lambda result: result.size)
    first = lax.slice(lax.reshape(largest, (largest.size,)), (0,), (1,))
    return lax.convert_element_type(first, np.float64)


S, B, T, I, G, H, F, K = 2, 3, 6, 2, 3, 5, 1, 1  # noqa: E741
HALVES = ("forward", "backward")
ENTRIES = (*HALVES, "prepared")  # those that run a program


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape) for name, shape in shapes.items()}


FEW = Sizes(S, B, T, I, 1, H)


@lru_cache
def call_of(half: str, sizes: Sizes = FEW) -> Call:
    """A call of a GRU that is in order."""
    S, B, T, I, _, H = sizes  # noqa: E741
    assert library.absence() is None
    program = translate(pointwise_of("gru"), np.dtype("float64"))
    assert isinstance(program, Program)
    code = program.backward if half == "backward" else program.forward
    pre_activations = len(program.pre_activations)
    attributes = {
        "instructions": np.asarray(code.instructions, np.int32).ravel(),
        "outputs": np.asarray(code.outputs, np.int32),
        "pre_activations": np.asarray(program.pre_activations, np.int32).ravel(),
        "constants": np.asarray(code.constants, np.float64),
        "registers": np.int32(code.registers),
        "max_instruction_set": np.int32(InstructionSet.AVX512_BF16),
    }
    arguments = {
        **zeros(xs=(S, B, T, I), state=(S, B, F, H)),
        "length": np.full((S, B), T, np.int32),
        "resets": np.zeros((S, B, T), bool),
        **zeros(W=(1, I, G, H), b=(1, G, H), R=(1, 1, H, G, H), unit_parameters=(1, K, H), initial=(1, F, H)),
    }
    states = zeros(states=(S, B, T, H))
    if half == "prepared":
        blocks = -(-H // P)
        arguments |= zeros(W=(1, blocks, I, G, P), R=(1, blocks, H, G, P), W_scale=(1, G, H), R_scale=(1, G, H))
        results = states | zeros(last=(S, B, F, H))
    elif half == "forward":
        results = states | zeros(last=(S, B, F, H), residuals=(S, B, T, pre_activations, H))
    else:
        arguments |= (
            zeros(residuals=(S, B, T, pre_activations, H), dlast=(S, B, F, H)) | states | zeros(dstates=(S, B, T, H))
        )
        results = zeros(dxs=(S, B, T, I), dW=(S, I, G, H), db=(S, G, H), dR=(S, 1, H, G, H), dunit_parameters=(S, K, H))
        results |= zeros(dinitial=(S, F, H), dstate=(S, B, F, H))
    types = {name: ShapeDtypeStruct(array.shape, array.dtype) for name, array in results.items()}
    return Call(f"rnnjax_{half}", arguments, types, attributes)


def linear_scan_call() -> Call:
    """A call of the linear recurrence that is in order."""
    assert linear_scan.is_here()
    attributes = {"reverse": False, "late": False, "max_instruction_set": np.int32(InstructionSet.AVX512_BF16)}
    results = {"h": ShapeDtypeStruct((B, T, H), np.float64)}
    return Call("rnnjax_linear_scan", zeros(a=(B, T, H), b=(B, T, H), initial=(B, H)), results, attributes)
