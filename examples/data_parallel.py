"""Data parallel training: each batch is spread over all devices, of this process or of several.

    python examples/data_parallel.py --devices 8
    python -m rnnjax.training.launch --processes 2 examples/data_parallel.py --folder runs/added [--resume]

The adding problem: two numbers of a sequence are marked, and the network has to output their sum at the end.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import FOLDER, RESUME, command_line, option, steps_option
from jaxtyping import Array

import rnnjax

B, T, H = 64, 30, 32


class Adder(eqx.Module):
    """A GRU with one output, at the last step."""

    cell: rnnjax.GRU
    weight: Array

    def __call__(self, xs: Array) -> Array:
        last, _ = rnnjax.unroll(self.cell, None, xs)
        return last.h @ self.weight


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step: inputs [B, T, 2], a number and its mark, and sums [B]. All processes draw the same."""
    draw = np.random.default_rng(step)
    marks = np.zeros((B, T))
    for row in marks:
        row[draw.choice(T, 2, replace=False)] = 1
    xs = np.stack([draw.random((B, T)), marks], -1).astype(np.float32)
    return xs, xs.prod(-1).sum(-1)


def loss(model: Adder, carry: None, batch: tuple[Array, Array], key: Array) -> tuple[Array, None]:
    """The mean squared error of the part of a batch that is on this device; 1/6 is that of always saying one."""
    del key
    xs, sums = batch
    return jnp.mean((jax.vmap(model)(xs) - sums) ** 2), carry


parse = command_line(
    __doc__,
    option("--devices", type=int, default=1, help="of each process, made of its CPU (%(default)s)"),
    steps_option(1000),
    FOLDER,
    RESUME,
)


def run(options: argparse.Namespace) -> None:
    """Train over all devices, and print the result."""
    jax.config.update("jax_num_cpu_devices", options.devices)

    model = Adder(rnnjax.GRU(2, H, key=jax.random.key(0)), jnp.zeros(H))
    fitted = rnnjax.training.fit(
        model,
        loss,
        batch,
        optax.adam(3e-3),
        steps=options.steps,
        key=jax.random.key(1),
        folder=options.folder,
        resume=options.resume,
        mesh=jax.make_mesh((jax.device_count(),), ("batch",)),
    )
    error = float(loss(fitted.model, None, jax.tree.map(jnp.asarray, batch(10**9)), jax.random.key(2))[0])
    where = f"{jax.device_count()} devices of {jax.process_count()} processes"
    print(f"mean squared error on new sequences after {fitted.steps} steps over {where}: {error:.6f}")


if __name__ == "__main__":
    run(parse())
