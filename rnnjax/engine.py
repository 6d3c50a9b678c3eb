"""The noun *engine*: how a cell is run along time."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .arrays import PyTree, Shaped, State, States, select, widen
from .cell import AbstractCell, describe
from .marks import Marks, StepMarks
from .refusal import Refusal


class Plan(abc.ABC):
    """How an engine runs one cell on sequences of one shape. `str(plan)` says so in one line.

    A plan holds no arrays: it says how, and `run` is given the cell, the state and the inputs. It is hashable, so that
    it can be a static argument of a compiled program; one with fields is a frozen dataclass.
    """

    @abc.abstractmethod
    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        """The last state, and all states over time; the same function whatever the engine, in value and in gradient.

        `cell` and `xs` are those that the plan was made for, or others of the same shapes. T >= 1, inputs are checked,
        and ignored steps hold safe values; `marks` are to be honoured (`marked_step` does so for a plan that goes step
        by step). Both results are given, so that a caller who uses the last state alone does not pay for the others:
        XLA drops them.
        """

    @abc.abstractmethod
    def __str__(self) -> str:
        """How it runs, in one line that begins with the name of the engine."""

    def over_parts(self, axis: str | None) -> "Plan":
        """This plan for a part of time on each device of the mesh axis `axis`; None: for all of time, the plan itself.

        The parts pass on a state, one device after the other (`Relay`). A plan that can pass on more than a state is
        made for its axis by the engine instead.
        """
        return self if axis is None else Relay(self, axis)

    @property
    def part_axis(self) -> str | None:
        """The mesh axis of the parts of time that it runs; None: it runs all of time."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What `explain` adds to the line, such as the reasons of the engines and kernels that were passed over."""
        return ()


@dataclass(frozen=True)
class Relay(Plan):
    """Parts of time on the devices of a mesh axis, the state handed from device to device, inside a `shard_map`.

    `xs` and `marks` are of the part, `state` is the one before the whole. The results are the state after the part, and
    the states of the part. While one device runs its part the others wait, so that it takes as long as on one device;
    then all run their parts again from the states that came in. The gradient goes the same way back, and keeps of the
    hand-off its states alone: memory is divided, time is not.
    """

    plan: Plan
    axis: str

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        index, size = jax.lax.axis_index(self.axis), jax.lax.axis_size(self.axis)
        wide, narrow = widen(cell)

        @jax.checkpoint
        def hand_on(state: State, sender: Array) -> tuple[State, None]:
            run = lambda: self.plan.run(narrow(wide), state, xs, marks)[0]  # noqa: E731
            after = jax.lax.cond(index == sender, run, lambda: state)
            received = jax.lax.ppermute(after, self.axis, [(device, device + 1) for device in range(size - 1)])
            return select(index == sender + 1, received, state), None

        before, _ = jax.lax.scan(hand_on, state, jnp.arange(size - 1))
        return self.plan.run(narrow(wide), before, xs, marks)

    def __str__(self) -> str:
        return f"{self.plan}; one device after the other along {self.axis!r}"

    @property
    def part_axis(self) -> str | None:
        return self.axis

    @property
    def notes(self) -> tuple[str, ...]:
        return self.plan.notes


class AbstractEngine(eqx.Module):
    """A way to run a cell along one sequence. Options live on the object.

    Subclass requirements: `plan`.
    """

    @abc.abstractmethod
    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        """How to run `cell` on `xs`, or why this engine cannot and what can. `xs` may be arrays or shapes alone.

        `axis` is a mesh axis: then `xs` is one part of a sequence that is spread over its devices, and the plan runs
        inside a `shard_map`. An engine whose parts need no more than the state before them returns
        `plan.over_parts(axis)`.
        """

    def within(self, network: object) -> "AbstractEngine":
        """The engine for the parts of `network`: this one. `explain` overrides it to know where a cell stands."""
        del network
        return self


def plan_or_raise(engine: AbstractEngine, cell: AbstractCell, xs: PyTree[Shaped]) -> Plan:
    """The plan of `engine`; a ValueError with its reason where it refuses."""
    plan = engine.plan(cell, xs)
    if isinstance(plan, Refusal):
        raise ValueError(f"engine: {plan}")
    return plan


def refuse_symbolic(engine: str, cell: AbstractCell, xs: PyTree[Shaped]) -> Refusal | None:
    """Why an engine that needs to know T cannot run where `jax.export` keeps it a symbol; None if T is a number."""
    if all(isinstance(leaf.shape[0], int) for leaf in jax.tree.leaves(xs)):
        return None
    return Refusal(
        f"{engine} cannot run {describe(cell)} with a symbolic T: it needs to know the number of steps. Use Scan()."
    )


def check_engine(engine: object) -> None:
    """Raise unless `engine` is one."""
    if isinstance(engine, type) and issubclass(engine, AbstractEngine):
        raise TypeError(f"engine: expected an engine, got the class {engine.__name__}. Write {engine.__name__}()")
    if not isinstance(engine, AbstractEngine):
        raise TypeError(
            f"engine: expected an engine, such as Scan(), got {engine!r}. Leave engine out for the default, Auto()"
        )


def steps_of(cell: AbstractCell) -> Callable[[State, PyTree], State]:
    """`cell.step` for a loop: the gradient by narrow weights is summed over time in float32."""
    wide, narrow = widen(cell)
    return lambda state, u: narrow(wide).step(state, u)


def marked_step(
    step: Callable[[State, PyTree], State], initial: State, before: State, inputs: tuple[PyTree[Array], StepMarks]
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
