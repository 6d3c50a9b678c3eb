"""All imports of Pallas, and the differences between its versions that affect the kernels here.

JAX 0.10  `pallas_call` on CUDA means Mosaic GPU unless `compiler_params` are those of Triton. `mosaic_gpu.load` takes
          an index, `transpose_ref` transposes a reference, and Mosaic GPU has no emulator yet.
JAX 0.11  `mosaic_gpu.InterpretGPUParams` emulates blocks, clusters and barriers on a CPU, and detects races. It keeps a
          thread of XLA's pool for each block that waits: with fewer threads than blocks it hangs.
          Triton is lowered under a DeprecationWarning from here on.
JAX 0.12  `pallas_call` on CUDA means Triton again; Mosaic GPU is `mosaic_gpu.kernel` alone. Triton is lowered for the
          device at hand, or, where there is none, for the abstract device of the mesh in use. A race is raised.

So every kernel here names its backend by its compiler parameters, and none relies on a default.

Importing Pallas takes as long as importing half of JAX, and most programs lower no kernel of it. So its modules are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jaxlib.mlir import ir
from jaxtyping import Array

from ..arrays import DType
from ..checked import Checked

__all__ = [
    "Interpret",
    "Reference",
    "accumulator",
    "assembly",
    "layout",
    "load",
    "mosaic_gpu",
    "output",
    "pallas",
    "tpu",
    "transposed",
    "triton",
]


class _Lazy:
    """A module that is imported when one of its attributes is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    from jax.experimental import pallas
    from jax.experimental.pallas import mosaic_gpu, tpu, triton
else:
    pallas = _Lazy("jax.experimental.pallas")
    mosaic_gpu, tpu, triton = (_Lazy(f"jax.experimental.pallas.{name}") for name in ("mosaic_gpu", "tpu", "triton"))


Interpret: TypeAlias = Checked["bool | tpu.InterpretParams"]  # whether, and how, to emulate a kernel on a CPU
Reference: TypeAlias = Any  # to memory of the device, for which Pallas has no public type


def output(shape: tuple[int, ...], dtype: DType) -> jax.ShapeDtypeStruct:
    """An output of a `pallas_call`; under `jax.shard_map` its type has to state the axes it varies over: none."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType())


def load(reference: Reference, layout: Any, optimized: bool = True) -> Array:
    """The array of a reference to shared or global memory, by Mosaic GPU, in registers of that layout."""
    index = () if _since_0_11() else ((),)
    return mosaic_gpu.load(reference, *index, layout=layout, optimized=optimized)


def transposed(reference: Reference) -> Reference:
    """A reference [columns, rows] to a matrix in shared memory."""
    return reference.transpose((1, 0)) if _since_0_11() else mosaic_gpu.transpose_ref(reference, (1, 0))


def layout() -> Any:
    """The layout of the sums of a warp group's matrix units in its registers."""
    return mosaic_gpu.Layout.WGMMA


def accumulator(shape: tuple[int, int], dtype: DType) -> Any:
    """The registers that a warp group's matrix units add to."""
    return mosaic_gpu.ACC(shape, dtype)  # pyright: ignore[reportPrivateImportUsage, reportArgumentType]


def assembly(instruction: str) -> None:
    """An instruction of PTX without operands, in a kernel of Mosaic GPU."""

    @mosaic_gpu.inline_mgpu()
    def emit(_: Any) -> None:
        from jaxlib.mlir.dialects import llvm  # with the rest of what Pallas imports

        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)

    emit()  # pyright: ignore[reportCallIssue]  the decorator gives the context


def _since_0_11() -> bool:
    return hasattr(mosaic_gpu, "InterpretGPUParams")
