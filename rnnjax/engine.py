"""The noun *engine*: how a cell is run along time."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .arrays import Shaped, State, States, select, widen
from .cell import AbstractCell, describe
from .marks import Marks, StepMarks


class AbstractEngine(eqx.Module):
    """A way to run a cell along one sequence. Options live on the object.

    Subclass requirements: `run`, the same function whatever the engine, in value and in gradient; and `refusal`, which
    says of every cell that `run` would not serve why not and what to use instead, be `xs` arrays or their shapes alone.
    Inputs arrive checked, T >= 1, with safe values in ignored steps; `marks` are to be honoured (`marked_step` does so
    for one that goes step by step).
    """

    @abc.abstractmethod
    def refusal(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        """Why this engine cannot run `cell` on `xs`, and what can; None if it can."""

    @abc.abstractmethod
    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        """The last state, and all states over time.

        Both are given, so that one who uses the last state alone does not pay for the others: XLA drops them.
        """

    def refusal_of_part(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        """As `refusal`, of `run_part`: `xs` is one part of a sequence."""
        return self.refusal(cell, xs)

    def run_part(
        self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks, axis: str
    ) -> tuple[State, States]:
        """As `run`, of this device's part of a sequence that is spread over the mesh axis `axis`, inside a `shard_map`.

        `xs` and `marks` are of the part, `state` is the one before the whole. Returns the state after the part, and the
        states of the part. An engine that can pass on more than a state overrides this; here the state is handed from
        device to device. While one runs its part the others wait, so that the way is as long as on one device; then
        all run their parts again from the states that came in. The gradient goes the same way back, and keeps of the
        hand-off its states alone: what it costs is memory divided, not time.
        """
        index, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
        wide, narrow = widen(cell)

        @jax.checkpoint
        def hand_on(state: State, sender: Array) -> tuple[State, None]:
            after = jax.lax.cond(index == sender, lambda: self.run(narrow(wide), state, xs, marks)[0], lambda: state)
            received = jax.lax.ppermute(after, axis, [(device, device + 1) for device in range(size - 1)])
            return select(index == sender + 1, received, state), None

        before, _ = jax.lax.scan(hand_on, state, jnp.arange(size - 1))
        return self.run(narrow(wide), before, xs, marks)


def refusal_of_symbolic(engine: str, cell: Any, xs: PyTree[Shaped]) -> str | None:
    """Why an engine that needs to know T cannot run where `jax.export` keeps it a symbol; None if T is a number."""
    if all(isinstance(leaf.shape[0], int) for leaf in jax.tree.leaves(xs)):
        return None
    return f"{engine} cannot run {describe(cell)} with a symbolic T: it needs to know the number of steps. Use Scan()."


def check_engine(engine: Any) -> None:
    """Raise unless `engine` is one."""
    if isinstance(engine, type) and issubclass(engine, AbstractEngine):
        raise TypeError(f"engine: expected an engine, got the class {engine.__name__}. Write {engine.__name__}()")
    if not isinstance(engine, AbstractEngine):
        raise TypeError(f"engine: expected an engine, such as Scan(), got {engine!r}")


def steps_of(cell: AbstractCell) -> Callable[[State, Any], State]:
    """`cell.step` for a loop: the gradient by narrow weights is summed over time in float32."""
    wide, narrow = widen(cell)
    return lambda state, u: narrow(wide).step(state, u)


def marked_step(
    step: Callable[[State, Any], State], initial: State, before: State, inputs: tuple[PyTree[Array], StepMarks]
) -> tuple[State, State]:
    """One step, such as `cell.step`, under its marks, as a body for `lax.scan`: the new state, twice."""
    u, marks = inputs
    if marks.reset is not None:
        before = select(marks.reset, initial, before)
    if marks.ignored is None:
        after = step(before, u)
    else:
        after = select(marks.ignored, before, step(select(marks.ignored, initial, before), u))
    return after, after
