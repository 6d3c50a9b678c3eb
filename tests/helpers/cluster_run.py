"""For `test_pallas`, in a process of its own: the cluster of the GPU kernel emulated, a thread for each of its blocks.

`python tests/cluster_run.py [barrier]`: with `barrier` the one of the cluster is left out, and a race is found.
"""

import os
import sys

os.environ["NPROC"] = "16"  # XLA's threads: with fewer than blocks, the emulator hangs

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu

import rnnjax
from rnnjax.arrays import by_gate, by_head
from rnnjax.kernels.recurrence.contract import NeedsGradient, Pointwise, Sequences, Trajectory, Weights
from rnnjax.kernels.recurrence.gpu import cluster
from rnnjax.kernels.recurrence.gpu.device import Device
from rnnjax.kernels.recurrence.gpu.exchange import ClusterExchange
from rnnjax.kernels.recurrence.reference import Reference

SMALL = Device("a small device", 90, 130_000, 132)  # one block is too small for the cells below
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
GROUPS, BATCH, STEPS, INPUTS = 2, 5, 4, 3
CELLS = {
    "gru": lambda: rnnjax.GRU(INPUTS, 192, heads=2, key=jax.random.key(0)),
    "lstm": lambda: rnnjax.LSTM(INPUTS, 96, peepholes=True, key=jax.random.key(0), dtype=jnp.bfloat16),
    "elman": lambda: rnnjax.Elman(INPUTS, 192, key=jax.random.key(0)),
}


def main() -> None:
    emulated = rnnjax.kernels.GPU(device=SMALL, interpret=mosaic_gpu.InterpretGPUParams(detect_races=True))
    if sys.argv[1:] == ["barrier"]:
        cluster.ClusterExchange = NoExchange
        jax.block_until_ready(halves(emulated, "elman"))
    else:
        for name in CELLS:
            compare(name, halves(emulated, name), halves(Reference(), name))
        compare("elman", one_step(emulated), one_step(Reference()))
    print("done")


class NoExchange(ClusterExchange):
    """The exchange without its barrier."""

    def publish(self, barrier):
        del barrier
        mosaic_gpu.wait_smem_to_gmem(0)

    def collect(self, barrier):
        del barrier


def compare(name, got, expected) -> None:
    tolerance = TOLERANCE[str(CELLS[name]().dtype)]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = max(1.0, float(np.abs(other).max(initial=0.0)))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=name)


def halves(kernel, name):
    """Values and cotangents of a ragged batch with resets, of an LSTM's without either."""
    cell, random = CELLS[name](), np.random.default_rng(0)
    pointwise, carry = Pointwise.of(cell), jnp.dtype("float32")
    draw = lambda *shape, dtype=carry: jnp.asarray(0.3 * random.standard_normal(shape), dtype)  # noqa: E731
    gates, H, fields = len(cell.gates), cell.hidden_size, pointwise.fields
    weights = Weights(
        draw(1, INPUTS, gates, H, dtype=cell.dtype),
        draw(GROUPS, gates, H, dtype=cell.dtype),
        draw(GROUPS, *by_gate(by_head(cell.recurrent_weight), gates).shape, dtype=cell.dtype),
        draw(1, pointwise.unit_parameters.num_leaves, H),
        draw(GROUPS, fields, H),
    )
    marked = name != "lstm"
    length = jnp.asarray(random.integers(0, STEPS + 1, (GROUPS, BATCH)), jnp.int32) if marked else None
    resets = jnp.asarray(random.random((GROUPS, BATCH, STEPS)) < 0.3) if marked else None
    xs, state = draw(GROUPS, BATCH, STEPS, INPUTS, dtype=cell.dtype), draw(GROUPS, BATCH, fields, H)
    sequences = Sequences(xs, state, length, resets)
    dstates, dlast = tuple(draw(GROUPS, BATCH, STEPS, H) for _ in range(fields)), draw(GROUPS, BATCH, fields, H)
    plan, needs_gradient = kernel.plan(pointwise, weights), NeedsGradient(Weights(*[True] * 5), True, True)

    @eqx.filter_jit
    def run():
        trajectory = plan.forward(weights, sequences, 0, (True,) * fields)
        return trajectory[:2], plan.backward(weights, sequences, trajectory, dstates, dlast, needs_gradient)

    return run()


def one_step(kernel):
    """The last state of two tiles of sequences after one step, nobody looking at the states, and its cotangents."""
    cell, batch = CELLS["elman"](), 70
    pointwise, none = Pointwise.of(cell), jnp.zeros((1, 0, cell.hidden_size))
    initial = jnp.zeros((1, 1, cell.hidden_size))
    W, b, R = (by_gate(leaf[None], 1) for leaf in (cell.input_weight, cell.bias, by_head(cell.recurrent_weight)))
    weights = Weights(W, b, R, none, initial)
    state = jnp.sin(jnp.arange(batch * cell.hidden_size, dtype=jnp.float32)).reshape(1, batch, 1, -1)
    sequences = Sequences(jnp.ones((1, batch, 1, INPUTS)), state, None, None)
    plan, needs_gradient = kernel.plan(pointwise, weights), NeedsGradient(Weights(*[True] * 5), True, True)

    @eqx.filter_jit
    def run():
        last = plan.forward(weights, sequences, 0, (False,)).last
        trajectory = Trajectory((last,), last, jnp.zeros((1, batch, 1, 0, cell.hidden_size)))
        return last, plan.backward(weights, sequences, trajectory, (None,), state, needs_gradient)

    return run()


if __name__ == "__main__":
    main()
