"""A command: every cell that runs in parallel in time, at many lengths, against `Scan`: `parallel_run.py [CELL ...]`.

Values, and the gradients by weights, state and inputs, with lengths and resets in the middle of blocks: within 1e-10 in
float64 and 1e-5 in float32 of what float64 `Scan` gives for the same numbers, relative to the largest entry of each
array. Ends with status 1 where one is not. It takes too long to be a test; `test_newton` and `test_linear_scan` hold
samples of it.
"""

import sys

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import rnnjax
from rnnjax import Associative, Newton, Scan
from rnnjax.engines import Diagonal

LENGTHS = (1, 2, 3, 127, 1000, 16323)
BARS = {"float64": 1e-10, "float32": 1e-5}
LINEAR = {"Associative": Associative(), "Associative(100)": Associative(block=100)}
NEWTON = {"Newton(Dense)": Newton(), "Newton(Diagonal)": Newton(Diagonal()), "damped": Newton(Diagonal(), damping=0.1)}


def engines(part: object) -> dict[str, rnnjax.AbstractEngine]:
    """Those that run it in parallel."""
    if isinstance(part, rnnjax.AbstractNetwork):
        return LINEAR
    if isinstance(part, rnnjax.AbstractLinearCell):
        return LINEAR | {"Newton(Diagonal)": NEWTON["Newton(Diagonal)"]}
    if isinstance(part, rnnjax.ProjectedLSTM):
        return {"Newton(Dense)": NEWTON["Newton(Dense)"]}
    return NEWTON


@eqx.filter_jit
def values_and_gradients(part: object, engine: rnnjax.AbstractEngine, state: PyTree, xs: Array) -> PyTree:
    T = xs.shape[0]
    options = {"length": max(1, T - T // 7), "resets": jnp.arange(T) % 61 == 41}
    weights, static = eqx.partition(part, eqx.is_inexact_array)
    state, rest = eqx.partition(state, eqx.is_inexact_array)

    def loss(weights: PyTree, state: PyTree, xs: Array) -> tuple[Array, PyTree]:
        whole = eqx.combine(weights, static), eqx.combine(state, rest), xs
        last, ys = rnnjax.unroll(*whole, engine=engine, **options)
        values = eqx.filter(last, eqx.is_inexact_array), ys
        return grid.contract(values), values

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(weights, state, xs)


def distance(got: PyTree, expected: PyTree) -> float:
    """The most that two trees differ, over the largest entry of each array; NaN where one holds it."""

    def apart(one: Array, other: Array) -> float:
        one, other = np.asarray(one), np.asarray(other)
        return np.abs(one - other).max() / (np.abs(other).max() or 1.0)

    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return float(np.max([apart(*pair) for pair in pairs]))


def own(inputs: PyTree, expected: PyTree) -> float:
    """How far step by step, in the same dtype, is from it."""
    part, *others = inputs
    return distance(values_and_gradients(part, Scan(), *others), expected)


def widened(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: grid.widen(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    named = sys.argv[1:] or [*grid.CELLS, *grid.POOLED]
    missed = 0
    for name in named:
        for dtype, bar in BARS.items():
            jax.clear_caches()  # compiled programs hold memory maps, of which a process may have so many and no more
            part = grid.build(name, dtype)
            for T in LENGTHS:
                inputs = part, grid.random_state(part), grid.inputs(T, dtype=dtype)
                exact, state, xs = widened(inputs)
                expected = values_and_gradients(exact, Scan(), state, xs)
                for engine, run in engines(part).items():
                    apart = distance(values_and_gradients(part, run, *inputs[1:]), expected)
                    missed += not apart <= bar
                    verdict = "" if apart <= bar else f"  MISSED; {own(inputs, expected):.1e} by Scan in this dtype"
                    print(f"{name:<18}{dtype:<9}{T:>6}  {engine:<18}{apart:.1e}{verdict}", flush=True)
    print(f"{missed} missed" if missed else "all within 1e-10 in float64 and 1e-5 in float32")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
