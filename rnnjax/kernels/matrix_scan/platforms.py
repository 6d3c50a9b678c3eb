"""Which kernel of the matrix-state recurrence runs a call on a platform."""

from typing import Any

from . import cpu
from .contract import Operands
from .gpu import gpu
from .tiles import misfit
from .tpu import tpu

PALLAS = {"cuda": gpu, "tpu": tpu}  # no device has measured them yet, so they are lowered on request only
PLATFORMS = "cpu", *PALLAS


def kernel_of(platform: str | None, operands: Operands, *, pallas: bool, is_for_export: bool) -> Any:
    """The module with both halves for operands of such types; None: plain JAX, as on CPUs in files of `jax.export`."""
    K, dtype = operands.state.shape[-2], operands.state.dtype
    if platform == "cpu":
        return cpu if cpu.runs(dtype) and not is_for_export else None
    is_empty = operands.steps.value.size == 0 or operands.state.size == 0
    return None if not pallas or is_empty or misfit(K, dtype) is not None else PALLAS.get(platform or "")
