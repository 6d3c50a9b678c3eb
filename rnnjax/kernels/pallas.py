"""The one door to Pallas: every import of it, and what changed in it from JAX 0.10 to 0.12 that kernels must know.

0.10   on CUDA a `pallas_call` is for Mosaic GPU, unless its `compiler_params` are those of `triton`
0.11   Triton is lowered under a DeprecationWarning
0.12   on CUDA every `pallas_call` is for Triton, under that warning; where there is no device, it is lowered for the
       abstract device of the mesh in use

So every call here names its backend by its `compiler_params`. Those of `tpu` are the same in all three.
"""

from typing import Any

import jax
from jax.experimental import pallas
from jax.experimental.pallas import tpu, triton

__all__ = ["output", "pallas", "tpu", "triton"]


def output(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An output of a `pallas_call`, which under `jax.shard_map` has to say what it varies over: nothing it knows of."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType())
