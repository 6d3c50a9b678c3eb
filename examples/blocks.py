"""What the examples of deep linear networks share: their blocks, how long to train, and where figures are kept."""

import json
import os
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

import rnnjax
from rnnjax.training.checkpoint import write_atomically


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


def machine() -> dict[str, Any]:
    """Where it runs, and how busy that is, as fields of a record."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    device = jax.devices()[0]
    name = names[0] if names and device.platform == "cpu" else device.device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"machine": name, "cores": cores, "load_average": os.getloadavg()[0], "jax": jax.__version__}


def keep(path: Path, record: dict[str, Any], names: Sequence[str]) -> None:
    """Add a record to a file of records, in place of one that is like it in the fields `names`."""
    held = json.loads(path.read_text()) if path.exists() else []
    others = [other for other in held if any(other[name] != record[name] for name in names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps([*others, record], indent=1) + "\n").encode())
