"""Sequence parallel: one long sequence, and the memory of its gradient, spread over the devices of a mesh.

    python examples/sequence_parallel.py --devices 8

`MinGRU` by `Associative`, all parts of time at once; `GRU` by `Fused`, passing the state from device to device.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from common.command_line import command_line, option
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

import rnnjax

I, H = 8, 32  # noqa: E741


def gradient(cell: rnnjax.AbstractCell, engine: rnnjax.AbstractEngine, xs: Array) -> tuple[Any, int]:
    """The gradient of a loss on all outputs, by the weights, and the bytes that it takes on each device meanwhile."""

    def loss(cell: rnnjax.AbstractCell, xs: Array) -> Array:
        _, ys = rnnjax.unroll(cell, None, xs, engine=engine)
        return jnp.mean(ys**2)

    compiled = jax.jit(jax.grad(loss)).lower(cell, xs).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return compiled(cell, xs), memory.temp_size_in_bytes


parse = command_line(
    __doc__,
    option("--devices", type=int, default=8, help="made of this CPU (%(default)s)"),
    option("--steps", type=int, default=2**16, help="of the sequence (%(default)s)"),
)


def run(options: argparse.Namespace) -> None:
    """Compare one device with all of them."""
    jax.config.update("jax_num_cpu_devices", options.devices)

    mesh = jax.make_mesh((options.devices,), ("time",), axis_types=(AxisType.Auto,))
    xs = jax.random.normal(jax.random.key(1), (options.steps, I))
    spread = jax.device_put(xs, NamedSharding(mesh, P("time")))  # each device holds its part of time
    key = jax.random.key(0)
    cases = (rnnjax.MinGRU(I, H, key=key), rnnjax.Associative()), (rnnjax.GRU(I, H, key=key), rnnjax.Fused())
    for cell, engine in cases:
        expected, whole = gradient(cell, engine, xs)
        got, part = gradient(cell, rnnjax.Sharded(engine, mesh, "time"), spread)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
        deviation = max(float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other))) for one, other in pairs)
        print(
            f"{type(cell).__name__:<7} T = {options.steps}: {whole / 1e6:.1f} MB on one device, {part / 1e6:.1f} MB on "
            f"each of {options.devices}; gradients differ by {deviation:.1e} of their largest entry"
        )


if __name__ == "__main__":
    run(parse())
