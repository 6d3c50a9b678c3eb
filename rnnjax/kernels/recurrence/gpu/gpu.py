"""The kernel of GPUs: the loop over time by the first tier that a cell fits into, the big products outside of it."""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import products
from ..contract import AbstractKernel, Cotangents, Pointwise, Sequences, Trajectory, Weights, carried
from ..pointwise.step import step_of
from ..products import Pulled
from ..reference import Reference
from .device import Device
from .plan import plan
from .tier import AbstractTier, Problem


class GPU(AbstractKernel):
    """Every gated cell whose `pointwise` has a vector program, in float32, bfloat16 or float16.

    Experimental: no device has measured it. It is emulated, lowered and compiled; `Fused(cuda=GPU())` runs it.

    R of a head stays in shared memory for all of time: in that of one block of threads, where it fits, from Ampere on;
    else, on Hopper, in that of a cluster of up to 16 blocks, which show each other h at every step. Backward reads
    the states and the columns, which one product has made anew, and writes the columns' cotangents: the products with
    them are outside. Sums and states are float32; the cotangents of columns have the dtype of the weights, so that in
    float16 the loss wants a scale. float32 is multiplied as TF32 where
    `jax_default_matmul_precision` allows it, as it does by default, and by a cluster in no other way.

    device      what to plan for; None is the device that is lowered for
    interpret   emulate it elsewhere: True, or, of a cluster, Pallas' `InterpretGPUParams`, from JAX 0.11 on
    """

    device: Device | None = eqx.field(static=True, default=None)
    interpret: Any = eqx.field(static=True, default=False)

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        dtype = carried(weights)
        if dtype != jnp.float32 and not self.interpret:
            return f"The GPU kernel carries float32, and the cell {dtype}."
        made = self._plan(pointwise, weights)
        return made if isinstance(made, str) else None

    def describe(self, pointwise: Pointwise, weights: Weights) -> str:
        return f"{self._plan(pointwise, weights)} (experimental: no device has measured it)"

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        del pointwise, weights
        return 0

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        if 0 in sequences.xs.shape[:3]:
            return Reference().forward(pointwise, weights, sequences, keep, seen)
        us = products.over_groups(products.inputs, weights, sequences)
        tier, problem = self._tier(pointwise, weights, sequences)
        states, last = tier.forward(problem, us, seen, self.interpret)
        return Trajectory(states, last, jnp.zeros((*us.shape[:3], keep, us.shape[4]), last.dtype))

    def backward(
        self,
        pointwise: Pointwise,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        wanted: Cotangents,
    ) -> Cotangents:
        if 0 in sequences.xs.shape[:3]:
            return Reference().backward(pointwise, weights, sequences, trajectory, dstates, dlast, wanted)
        tier, problem = self._tier(pointwise, weights, sequences)
        before = products.over_groups(products.befores, weights, sequences, trajectory.states)
        columns = products.over_groups(partial(products.columns, problem.step), weights, sequences, before[:, :, :, 0])
        dlast = jnp.zeros_like(sequences.state) if dlast is None else dlast
        made = tier.backward(problem, columns, before, dstates, dlast, self.interpret)
        none = jnp.zeros((*dlast.shape[:2], 0, dlast.shape[3]), dlast.dtype)
        pulled = Pulled(
            *products.by_gate(problem.step, made.dcolumns),
            none if made.dgains is None else made.dgains,
            jnp.zeros_like(dlast) if made.dfresh is None else made.dfresh,
            made.dstate,
        )
        group = partial(products.cotangents, wanted)
        return products.over_groups(group, weights, sequences, before[:, :, :, 0], pulled)

    def _plan(self, pointwise: Pointwise, weights: Weights) -> AbstractTier | str:
        return plan(pointwise, weights, self.device or Device.current())

    def _tier(self, pointwise: Pointwise, weights: Weights, sequences: Sequences) -> tuple[AbstractTier, Problem]:
        tier = self._plan(pointwise, weights)
        if not isinstance(tier, AbstractTier):
            raise ValueError(
                f"{tier} It did when it was traced, for another device or precision: trace it for this one."
            )
        return tier, Problem(pointwise.name, step_of(pointwise, weights), weights, sequences)
