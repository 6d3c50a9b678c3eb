"""The plan of the GPU kernel: its strategy runs the loop over time, and the large products are outside of it."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import products
from ..contract import Cotangents, KernelPlan, NeedsGradient, Pointwise, Sequences, Trajectory, Weights
from ..pointwise.step import Step
from ..products import LoopCotangents
from ..reference import ReferencePlan
from .strategy import AbstractStrategy, Problem


@dataclass(frozen=True)
class GPUPlan(KernelPlan):
    """A plan for one device and one matmul precision."""

    pointwise: Pointwise
    dtype: np.dtype  # of states and sums
    strategy: AbstractStrategy
    interpret: Any
    step: Step = field(compare=False, repr=False)  # of `pointwise` in `dtype`

    def __str__(self) -> str:
        return f"GPU kernel, {self.strategy} (experimental: no device has measured it)"

    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        if 0 in sequences.xs.shape[:3]:
            return ReferencePlan(self.pointwise).forward(weights, sequences, residual_size, used_outputs)
        us = products.over_groups(products.inputs, weights, sequences)
        states, last = self.strategy.forward(self._problem(weights, sequences), us, used_outputs, self.interpret)
        return Trajectory(states, last, jnp.zeros((*us.shape[:3], residual_size, us.shape[4]), last.dtype))

    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Float[Array, "S B T H"] | None, ...],
        dlast: Float[Array, "S B F H"] | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        if 0 in sequences.xs.shape[:3]:
            reference = ReferencePlan(self.pointwise)
            return reference.backward(weights, sequences, trajectory, dstates, dlast, needs_gradient)
        before, pre_activations = products.step_inputs(self.step, weights, sequences, trajectory.states)
        dlast = jnp.zeros_like(sequences.state) if dlast is None else dlast
        problem = self._problem(weights, sequences)
        results = self.strategy.backward(problem, pre_activations, before, dstates, dlast, self.interpret)
        none = jnp.zeros((*dlast.shape[:2], 0, dlast.shape[3]), dlast.dtype)
        loop = LoopCotangents(
            *products.by_gate(self.step, results.dpre_activations),
            none if results.dunit_parameters is None else results.dunit_parameters,
            jnp.zeros_like(dlast) if results.dinitial is None else results.dinitial,
            results.dstate,
        )
        group = partial(products.cotangents, needs_gradient)
        return products.over_groups(group, weights, sequences, before[:, :, :, 0], loop)

    def _problem(self, weights: Weights, sequences: Sequences) -> Problem:
        return Problem(self.pointwise.name, self.step, weights, sequences)
