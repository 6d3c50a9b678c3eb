"""Blocks of deep linear networks (LRU), and the optimiser that suits them."""

from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
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
