"""The one door to Pallas: every import of it, and what changed in it from JAX 0.10 to 0.12 that kernels must know.

0.10   on CUDA a `pallas_call` is for Mosaic GPU, unless its `compiler_params` are those of `triton`
0.11   Triton is lowered under a DeprecationWarning
0.12   on CUDA every `pallas_call` is for Triton, under that warning; where there is no device, it is lowered for the
       abstract device of the mesh in use

So every call here names its backend by its `compiler_params`. Those of `tpu` are the same in all three.
"""

from jax.experimental import pallas
from jax.experimental.pallas import tpu, triton

__all__ = ["pallas", "tpu", "triton"]
