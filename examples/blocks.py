"""What examples share: blocks of deep linear networks, optimisers and schedules, and how long to train."""

import time
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

import rnnjax


class Gate(eqx.Module):
    """W x * sigmoid(V x) of x after a smooth rectifier: what mixes the units that a linear cell keeps apart."""

    weight: Array

    def __init__(self, size: int, *, key: PRNGKeyArray):
        self.weight = rnnjax.initialise.lecun(key, (size, 2 * size), jnp.float32)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(jax.nn.gelu(x) @ self.weight, 2)
        return value * jax.nn.sigmoid(gate)


def gated_block(cell: rnnjax.AbstractCell, width: int, key: PRNGKeyArray) -> rnnjax.AbstractNetwork:
    """A normalisation, a linear cell and a gate, around which the input goes, too: Orvieto et al. 2023, figure 1."""
    norm = rnnjax.TimeDistributed(eqx.nn.LayerNorm(width), width)
    return rnnjax.residual(rnnjax.Stack([norm, cell, rnnjax.TimeDistributed(Gate(width, key=key), width)]))


def optimiser(learning_rate: optax.Schedule, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW after clipping, by which what turns and fades the units of an LRU moves at a tenth of the rate, undecayed.

    Over T steps an angle moves T times as far. The paper, too, gives these weights a rate of their own.
    """
    parts: dict[Hashable, optax.GradientTransformation] = {
        "recurrence": optax.adam(lambda step: 0.1 * learning_rate(step)),
        "rest": optax.adamw(learning_rate, weight_decay=weight_decay),
    }
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(parts, _part_of_each))


def _part_of_each(weights: Any) -> Any:
    def of(part: Any) -> Any:
        names = jax.tree.map(lambda _: "rest", part)
        if not isinstance(part, rnnjax.LRU):
            return names
        return eqx.tree_at(lambda cell: (cell.nu, cell.theta, cell.log_gamma), names, ("recurrence",) * 3)

    return jax.tree.map(of, weights, is_leaf=lambda part: isinstance(part, rnnjax.LRU))


def level_then_down(learning_rate: float, steps: int) -> optax.Schedule:
    """Constant, and in a straight line to zero over the last quarter of the steps."""
    quarter = steps // 4
    parts = optax.constant_schedule(learning_rate), optax.linear_schedule(learning_rate, 0.0, quarter)
    return optax.join_schedules(parts, [steps - quarter])


def count_steps(model: Any, loss: Any, batches: Any, minutes: float) -> int:
    """How many steps of training fill the minutes, by the time of a few whose gradients are thrown away."""
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model, batch, key: loss(model, None, batch, key)[0]))
    seconds = []
    for step in range(4):
        begun = time.perf_counter()
        jax.block_until_ready(gradient(model, jax.tree.map(jnp.asarray, batches(step)), jax.random.key(step)))
        seconds.append(time.perf_counter() - begun)
    return max(1, int(minutes * 60 / np.median(seconds[1:])))


def count_weights(model: Any) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
