"""Skeleton of a new engine: copy it, change how it runs, and every cell runs on it. The tests run this file.

An engine makes a plan for a cell, or says in a sentence why it cannot. A plan runs the cell, and says how in one line.
Put the finished engine into rnnjax/engines/, export it from rnnjax/__init__.py, and add it to ENGINES in
tests/helpers/grid.py and in benchmarks/cases.py: then the grid and the laws test it, and the benchmark measures it.
"""

import argparse

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
        """The last state, and what each step emits: by default its state."""
        T = jax.tree.leaves(xs)[0].shape[0]
        step = rnnjax.engines.scan_body(cell, marks.initial)
        inputs = cell.project(xs), marks.over_time(T)

        def two_steps(state, inputs):
            state, first = step(state, jax.tree.map(lambda leaf: leaf[0], inputs))
            state, second = step(state, jax.tree.map(lambda leaf: leaf[1], inputs))
            return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)

        pairs = jax.tree.map(lambda leaf: leaf[: T - T % 2].reshape(T // 2, 2, *leaf.shape[1:]), inputs)
        state, emitted = jax.lax.scan(two_steps, state, pairs)
        emitted = jax.tree.map(lambda leaf: leaf.reshape(T - T % 2, *leaf.shape[2:]), emitted)
        if T % 2 == 0:
            return state, emitted
        state, last = step(state, jax.tree.map(lambda leaf: leaf[-1], inputs))
        return state, jax.tree.map(lambda leaf, one: jnp.concatenate([leaf, one[None]]), emitted, last)


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
