"""The reference of prepared weights: plain JAX, which widens what is stored narrow. For devices without a kernel."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ..contract import Pointwise, PreparedPlan, PreparedWeights, Sequences, Trajectory
from ..products import over_groups
from ..reference import run
from .packing import input_product, state_product


@dataclass(frozen=True)
class PreparedReferencePlan(PreparedPlan):
    """A scan over time for each sequence."""

    pointwise: Pointwise

    def __str__(self) -> str:
        return "reference kernel of prepared weights, step by step in plain JAX"

    def forward(
        self, weights: PreparedWeights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        batch = jax.vmap(partial(run, self.pointwise, input_product, state_product), (None, 0))
        last, states = over_groups(batch, weights, sequences)
        residuals = jnp.zeros((*states[0].shape[:3], residual_size, states[0].shape[3]), sequences.state.dtype)
        used = tuple(leaf if is_used else None for leaf, is_used in zip(states, used_outputs, strict=True))
        return Trajectory(used, last, residuals)
