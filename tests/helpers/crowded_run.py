"""For `test_cpu`, in a process of its own: many calls of the kernel at once, all of which must finish and be right."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

import rnnjax
from rnnjax.kernels.linear_scan import cpu as linear_scan
from rnnjax.kernels.linear_scan import reference

# B, T, heads, H and dtype: units, sequences or both are what cores can share. Of a pair of heads, one is shared itself.
SIZES = (
    (1, 30, 1, 80, "float64"),
    (3, 17, 1, 20, "float64"),
    (40, 9, 1, 8, "float64"),
    (1, 60, 2, 2 * 163, "bfloat16"),
)
THREADS, CALLS = 12, 60


class Problem(eqx.Module):
    """The gradient of a loss on a batch of its own."""

    weights: PyTree
    static: PyTree = eqx.field(static=True)
    xs: Array

    @classmethod
    def of(cls, B: int, T: int, heads: int, H: int, dtype: str) -> "Problem":
        generator = np.random.default_rng(H)
        cell = eqx.filter_eval_shape(rnnjax.LSTM, grid.I, H, heads=heads, key=grid.KEY, dtype=jnp.dtype(dtype))
        shapes, static = eqx.partition(cell, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        scaled = lambda scale, *shape: generator.normal(size=shape) * scale / np.sqrt(shape[-1])  # noqa: E731
        draw = lambda *of: jax.device_put(scaled(*of).astype(jnp.dtype(dtype)))  # noqa: E731
        weights = jax.tree.map(lambda leaf: draw(1, *leaf.shape), shapes)
        return cls(weights, static, draw(2, B, T, grid.I))

    def loss(self, engine: rnnjax.AbstractEngine, weights: PyTree, xs: Array) -> Array:
        run = partial(rnnjax.unroll, eqx.combine(weights, self.static), None, engine=engine)
        return jax.vmap(lambda xs: grid.contract(run(xs)))(xs).sum()

    def gradients(self, engine: rnnjax.AbstractEngine) -> PyTree:
        return jax.grad(partial(self.loss, engine), (0, 1))(self.weights, self.xs)

    def check(self, got: PyTree, expected: PyTree) -> None:
        grid.assert_close(got, expected, self.xs.dtype.name)


gradients = jax.jit(Problem.gradients, static_argnums=1)  # one trace for all problems that are alike


def of_threads(problems: list[Problem], expected: list[PyTree]) -> None:
    """Compiled programs, called from many threads by turns."""
    compiled = [gradients.lower(each, rnnjax.Fused()).compile() for each in problems]
    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(lambda call: compiled[call % len(problems)](problems[call % len(problems)]), range(CALLS)))
    for call, got in enumerate(made):
        problems[call % len(problems)].check(got, expected[call % len(problems)])


def of_one_program(problems: list[Problem], expected: list[PyTree]) -> None:
    """Calls that do not wait for each other within one program, each on inputs of its own."""

    def all_at_once(problems: list[Problem]) -> list[PyTree]:
        scaled = [[eqx.tree_at(lambda each: each.xs, each, each.xs + 0.01 * k) for k in range(4)] for each in problems]
        return [[gradients(each, rnnjax.Fused()) for each in copies] for copies in scaled]

    made = jax.jit(all_at_once)(problems)
    for problem, copies, one in zip(problems, made, expected, strict=True):
        problem.check(copies[0], one)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(copies))


def of_linear_scans() -> None:
    """Each of more threads than there are cores, and its time cut for as many as the pool has."""
    b = np.random.default_rng(0).normal(size=(THREADS, 1, 20_011, 9))
    a = np.random.default_rng(1).uniform(0.9, 1, b.shape)
    scan = jax.jit(partial(linear_scan.scan, reverse=True, late=True)).lower(a[0], b[0], b[0, :, 0]).compile()
    plainly = jax.jit(partial(reference.scan, reverse=True, late=True, block=100))
    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(lambda call: scan(a[call % THREADS], b[call % THREADS], b[0, :, 0]), range(CALLS)))
    expected = [plainly(*operands, b[0, :, 0]) for operands in zip(a, b, strict=True)]
    for call, h in enumerate(made):
        grid.assert_close(h, expected[call % THREADS])


def of_all_devices(problem: Problem) -> None:
    """A batch with as many sequences on every device, the loss summed over them."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = np.concatenate([np.asarray(problem.xs) + 0.01 * k for k in range(devices)])

    def summed(weights: PyTree, xs: Array) -> Array:
        return jax.lax.psum(problem.loss(rnnjax.Fused(), weights, xs), "device")

    def both(weights: PyTree, xs: Array) -> tuple[Any, Any]:
        on_devices = jax.shard_map(summed, mesh=mesh, in_specs=(P(), P("device")), out_specs=P())
        return jax.grad(on_devices)(weights, xs), jax.grad(partial(problem.loss, rnnjax.Scan()))(weights, xs)

    grid.assert_close(*jax.jit(both)(problem.weights, xs))


def main() -> None:
    problems = [Problem.of(*sizes) for sizes in SIZES]
    expected = [gradients(each, rnnjax.Scan()) for each in problems]
    of_threads(problems, expected)
    of_one_program(problems, expected)
    for problem in problems[:2]:
        of_all_devices(problem)
    of_linear_scans()


if __name__ == "__main__":
    main()
