"""The kernel for GPUs: it chooses the first strategy that fits the cell and the device."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ....refusal import Refusal
from ..contract import AbstractKernel, KernelPlan, Pointwise, Weights, carried
from ..pointwise.step import Step, translate
from .block import Block
from .cluster import Cluster
from .device import Device
from .plan import GPUPlan
from .strategy import AbstractStrategy


class GPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, in float32, bfloat16 or float16.

    Experimental: no device has measured it. It is emulated, lowered and compiled; `Fused(cuda=GPU())` runs it.

    R of a head stays in shared memory for all steps: in that of one block of threads if it fits, from Ampere on; else,
    on Hopper, in that of a cluster of up to 16 blocks, which exchange h at every step. The backward half reads the
    states and the pre-activations, which one product recomputes, and writes the cotangents of the pre-activations; the
    products with these are outside. Sums and states are float32; the cotangents of pre-activations have the dtype of
    the weights, so that float16 needs a loss scale. float32 is multiplied as TF32 if `jax_default_matmul_precision`
    allows it, as it does by default; a cluster always uses TF32.

    device      the device to plan for; None: the device lowered for
    interpret   emulate it elsewhere: True, or, for a cluster, Pallas' `InterpretGPUParams`, from JAX 0.11 on
    """

    device: Device | None = eqx.field(static=True, default=None)
    interpret: Any = eqx.field(static=True, default=False)

    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        dtype = carried(weights)
        if dtype != jnp.float32 and not self.interpret:
            return Refusal(f"The GPU kernel carries float32, and the cell {dtype}. Build the cell in float32.")
        step = translate(pointwise, dtype)
        if isinstance(step, Refusal):
            return Refusal(f"The GPU kernel has no program for it: {step}.")
        strategy = fit(pointwise, step, weights, self.device or Device.current())
        if isinstance(strategy, Refusal):
            return strategy
        return GPUPlan(pointwise, dtype, strategy, self.interpret, step)


def fit(pointwise: Pointwise, step: Step, weights: Weights, device: Device) -> AbstractStrategy | Refusal:
    """The strategy for such a cell, or why none of them takes it."""
    reasons = []
    for kind in (Block, Cluster):
        strategy = kind.fit(pointwise, step, weights, device)
        if isinstance(strategy, AbstractStrategy):
            return strategy
        reasons.append(strategy)
    return Refusal(f"The GPU kernel does not take it: as one block of threads, {'; '.join(reasons)}.")
