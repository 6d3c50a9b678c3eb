"""Skeleton of a new engine: copy it, change how it runs, and every cell runs on it. The tests run this file.

An engine makes a plan for a cell, or says in a sentence why it cannot. A plan runs the cell, and says how in one line.
Put the finished engine into rnnjax/engines/, export it from rnnjax/__init__.py, and add it to ENGINES in
tests/helpers/grid.py and in benchmarks/cases.py: then the grid and the laws test it, and the benchmark measures it.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

import rnnjax


class Doubled(rnnjax.AbstractEngine):
    """Two steps in each turn of the loop, as `Scan(unroll=2)` does; the last step of an odd T comes after the loop."""

    def plan(self, cell: rnnjax.AbstractCell, xs, axis: str | None = None):
        """It goes step by step, so it can run any cell. One that cannot returns `rnnjax.engines.Refusal(sentence)`."""
        del cell, xs
        return DoubledPlan().over_parts(axis)


class DoubledPlan(rnnjax.engines.Plan):
    """One with fields, such as a number of steps, is a `dataclass(frozen=True)`."""

    def __str__(self) -> str:
        return "Doubled: two steps to a turn of the loop"

    def run(self, cell: rnnjax.AbstractCell, state, xs, marks: rnnjax.engines.Marks):
        """The last state, and all states over time."""
        T = jax.tree.leaves(xs)[0].shape[0]
        step = partial(rnnjax.engines.marked_step, cell.step, marks.initial)
        inputs = cell.project(xs), marks.over_time(T)

        def two_steps(state, inputs):
            first, _ = step(state, jax.tree.map(lambda leaf: leaf[0], inputs))
            second, _ = step(first, jax.tree.map(lambda leaf: leaf[1], inputs))
            return second, jax.tree.map(lambda *states: jnp.stack(states), first, second)

        pairs = jax.tree.map(lambda leaf: leaf[: T - T % 2].reshape(T // 2, 2, *leaf.shape[1:]), inputs)
        state, states = jax.lax.scan(two_steps, state, pairs)
        states = jax.tree.map(lambda leaf: leaf.reshape(T - T % 2, *leaf.shape[2:]), states)
        if T % 2 == 0:
            return state, states
        state, _ = step(state, jax.tree.map(lambda leaf: leaf[-1], inputs))
        return state, jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), states, state)


def main() -> None:
    """Run a cell by it, and by `Scan`."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cell = rnnjax.GRU(3, 8, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (101, 3))
    _, ys = rnnjax.unroll(cell, None, xs, engine=Doubled(), length=90)
    _, expected = rnnjax.unroll(cell, None, xs, engine=rnnjax.Scan(), length=90)
    print(f"largest difference from Scan: {jnp.abs(ys - expected).max():.2e}")


if __name__ == "__main__":
    main()
