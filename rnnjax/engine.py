"""The noun *engine*: a way to run a cell along time."""

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

    A plan contains no arrays: `run` gets the cell, the state and the inputs. It is hashable, so that it can be a static
    argument of a compiled program; a plan with fields is a frozen dataclass.
    """

    @abc.abstractmethod
    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        """The last state, and what each step emits (`cell.emit`; by default its state). All engines give the same
        values and gradients.

        `cell` and `xs` are those that the plan was made for, or others of the same shapes. T >= 1, inputs are checked,
        and ignored steps have safe values. The plan has to apply `marks` (`scan_body` does so for a plan that runs
        step by step). A caller who uses the last state alone does not pay for the other states: XLA removes them.
        """

    @abc.abstractmethod
    def __str__(self) -> str:
        """How it runs, in one line that begins with the name of the engine."""

    def over_parts(self, axis: str | None) -> "Plan":
        """This plan for a part of time on each device of the mesh axis `axis`; None: for all of time, the plan itself.

        The parts run one device after the other, and pass on the state (`Relay`). An engine whose parts can run at the
        same time makes a plan for the axis itself.
        """
        return self if axis is None else Relay(self, axis)

    @property
    def part_axis(self) -> str | None:
        """The mesh axis of the parts of time that it runs; None: it runs all of time."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that `explain` adds, such as the reasons of the engines and kernels that were skipped."""
        return ()


@dataclass(frozen=True)
class Relay(Plan):
    """Parts of time on the devices of a mesh axis; the state is passed from device to device, inside a `shard_map`.

    `xs` and `marks` are those of the part, `state` is the one before the whole sequence. The results are the state
    after the part, and the states of the part. While one device runs its part the others wait, so it takes as long as
    on one device; then all devices run their parts again from the states that they received. The gradient runs the same
    way backwards, and stores only the states that were passed. So memory is divided by the number of devices, and time
    is not.
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
        """How to run `cell` on `xs`, or why this engine cannot and which one can. `xs` may be arrays or shapes alone.

        `axis` is a mesh axis: then `xs` is one part of a sequence that is spread over its devices, and the plan runs
        inside a `shard_map`. An engine that runs one part after the other returns `plan.over_parts(axis)`.
        """

    def within(self, network: object) -> "AbstractEngine":
        """The engine for the layers of `network`: this one. `explain` overrides it to record the path of each cell."""
        del network
        return self


def plan_or_raise(engine: AbstractEngine, cell: AbstractCell, xs: PyTree[Shaped]) -> Plan:
    """The plan of `engine`; a ValueError with its reason if it refuses."""
    plan = engine.plan(cell, xs)
    if isinstance(plan, Refusal):
        raise ValueError(f"engine: {plan}")
    return plan


def refuse_symbolic(engine: str, cell: AbstractCell, xs: PyTree[Shaped]) -> Refusal | None:
    """The refusal of an engine that needs T, if `jax.export` makes it a symbol; None if T is a number."""
    if all(isinstance(leaf.shape[0], int) for leaf in jax.tree.leaves(xs)):
        return None
    return Refusal(
        f"{engine} cannot run {describe(cell)} with a symbolic T: it needs to know the number of steps. Use Scan()."
    )


def check_engine(engine: object) -> None:
    """Raise unless `engine` is an engine."""
    if isinstance(engine, type) and issubclass(engine, AbstractEngine):
        raise TypeError(f"engine: expected an engine, got the class {engine.__name__}. Write {engine.__name__}()")
    if not isinstance(engine, AbstractEngine):
        raise TypeError(
            f"engine: expected an engine, such as Scan(), got {engine!r}. Leave engine out for the default, Auto()"
        )


def scan_body(
    cell: AbstractCell, initial: State
) -> Callable[[State, tuple[PyTree[Array], StepMarks]], tuple[State, PyTree[Array]]]:
    """One step of `cell` with its marks applied, as a body for `lax.scan`: the new state, and what the step emits.

    `initial` is the state after a reset. The gradient of narrow weights is summed over time in float32.
    """
    wide, narrow = widen(cell)

    def body(before: State, inputs: tuple[PyTree[Array], StepMarks]) -> tuple[State, PyTree[Array]]:
        u, marks = inputs
        inner = narrow(wide)
        before = before_step(marks, initial, before)
        after = _valid_step(inner.step, initial, before, u, marks)
        return after, inner.emit(after, before, u)

    return body


def marked_step(
    step: Callable[[State, PyTree], State], initial: State, before: State, inputs: tuple[PyTree[Array], StepMarks]
) -> tuple[State, State]:
    """One step by the function `step`, with its marks applied, as a body for `lax.scan`: the new state, twice."""
    u, marks = inputs
    after = _valid_step(step, initial, before_step(marks, initial, before), u, marks)
    return after, after


def before_step(marks: StepMarks, initial: State, before: State) -> State:
    """The state that a step starts from: `before`, or `initial` after a reset. Also of all steps over time."""
    return before if marks.reset is None else select(marks.reset, initial, before)


def _valid_step(
    step: Callable[[State, PyTree], State], initial: State, before: State, u: PyTree[Array], marks: StepMarks
) -> State:
    """The state after a step, or before it if it is ignored; then the step gets a safe state."""
    if marks.ignored is None:
        return step(before, u)
    return select(marks.ignored, before, step(select(marks.ignored, initial, before), u))
