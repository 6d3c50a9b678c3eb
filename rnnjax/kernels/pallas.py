"""The one door to Pallas: every import of it, and what its versions changed that kernels here must know.

JAX 0.10  `pallas_call` on CUDA means Mosaic GPU unless `compiler_params` are those of Triton. `mosaic_gpu.load` wants
          an index, `transpose_ref` transposes a reference, and Mosaic GPU has no emulator yet.
JAX 0.11  `mosaic_gpu.InterpretGPUParams` emulates blocks, clusters and barriers on a CPU, and detects races. It keeps a
          thread of XLA's pool for each block that waits: with fewer threads than blocks it hangs.
          Triton is lowered under a DeprecationWarning from here on.
JAX 0.12  `pallas_call` on CUDA means Triton again; Mosaic GPU is `mosaic_gpu.kernel` alone. Triton is lowered for the
          device at hand, or, where there is none, for the abstract device of the mesh in use. A race is raised.

So every kernel here names its backend by its compiler parameters, and none relies on a default.
"""

from typing import Any

import jax
from jax.experimental import pallas
from jax.experimental.pallas import mosaic_gpu, tpu, triton
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array

ACC = mosaic_gpu.ACC  # pyright: ignore[reportPrivateImportUsage]

__all__ = ["ACC", "assembly", "load", "mosaic_gpu", "output", "pallas", "tpu", "transposed", "triton"]

_SINCE_0_11 = hasattr(mosaic_gpu, "InterpretGPUParams")


def output(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An output of a `pallas_call`, which under `jax.shard_map` has to say what it varies over: nothing it knows of."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType())


def load(reference: Any, layout: Any, optimized: bool = True) -> Array:
    """All of a reference to shared or global memory, by Mosaic GPU, in registers of that layout."""
    index = () if _SINCE_0_11 else ((),)
    return mosaic_gpu.load(reference, *index, layout=layout, optimized=optimized)


def transposed(reference: Any) -> Any:
    """A reference [columns, rows] to a matrix in shared memory."""
    return reference.transpose((1, 0)) if _SINCE_0_11 else mosaic_gpu.transpose_ref(reference, (1, 0))


def assembly(instruction: str) -> None:
    """An instruction of PTX without operands, in a kernel of Mosaic GPU."""

    @mosaic_gpu.inline_mgpu()
    def emit(_: Any) -> None:
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)

    emit()  # pyright: ignore[reportCallIssue]  the decorator gives the context
