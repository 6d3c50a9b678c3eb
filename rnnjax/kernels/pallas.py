"""The one door to Pallas: every import of it, and what its versions changed that kernels here must know.

JAX 0.10  `pallas_call` on CUDA means Mosaic GPU unless `compiler_params` are those of Triton; `pallas.dot` became
          `triton.dot`; `pallas.core_map`'s kernels for Mosaic GPU are made by `mosaic_gpu.kernel`, which has no
          interpreter yet.
JAX 0.11  `mosaic_gpu.InterpretGPUParams`: blocks, clusters, barriers and races are emulated on a CPU.
JAX 0.12  `pallas_call` on CUDA means Triton again; Mosaic GPU is `mosaic_gpu.kernel` alone. Triton is lowered for the
          device at hand, or, where there is none, for the abstract device of the mesh in use.

So every kernel here names its backend by its compiler parameters, and none relies on a default.
"""

from jax.experimental import pallas
from jax.experimental.pallas import tpu, triton

__all__ = ["pallas", "tpu", "triton"]
