"""The engine `Sharded`: time spread over the devices of a mesh."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ..arrays import PyTree, Shaped, State, States, count_steps, widen
from ..cell import AbstractCell, describe
from ..engine import AbstractEngine, Plan
from ..marks import Marks, padded
from ..refusal import Refusal


class Sharded(AbstractEngine):
    """Sequence parallel: each device of the mesh axis `axis` stores and runs its part of time, by `engine`.

    For sequences that do not fit into the memory of one device: the memory of the gradient is divided by the number of
    devices. `Chunked` runs all parts at once, and so does `Associative`, unless the cell emits something else than its
    state. The engines that run step by step pass the state from device to device, one after the other: their time is
    not divided (see `Relay` in `rnnjax/engine.py`).

    Pass `xs` sharded along time, `jax.device_put(xs, jax.NamedSharding(mesh, jax.P(axis)))`, and call `unroll` under
    `jax.jit`: the states, and the outputs computed from them, stay on their devices. If T is not a multiple of the
    number of devices, the inputs are padded; JAX cannot shard such an array, so if memory matters, pad it yourself, and
    pass `length`. `reverse` together with `length` shifts the sequence by a number of steps that the compiler does not
    know: it gathers all of time on each device. `vmap(..., spmd_axis_name=other)` spreads a batch over another axis of
    the same mesh.
    """

    engine: AbstractEngine
    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.engine, AbstractEngine) or isinstance(self.engine, Sharded):
            raise TypeError(
                f"engine: expected an engine to run each part by, such as Scan(), got {self.engine!r}. "
                "Write Sharded(Scan(), mesh, axis)"
            )
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                f"mesh: expected a jax.sharding.Mesh, as jax.make_mesh makes, got {self.mesh!r}. "
                f"Write {_like(jax.device_count(), 'time')}"
            )
        if not isinstance(self.axis, str):
            raise TypeError(
                f"axis: expected the name of one axis of the mesh, got {self.axis!r}. "
                f"Pass one of {self.mesh.axis_names}"
            )
        if self.axis not in self.mesh.axis_names:
            raise ValueError(
                f"axis: expected one of the mesh's, {self.mesh.axis_names}, got {self.axis!r}. Name one of these, or "
                f"make a mesh with it: {_like(self.mesh.size, self.axis)}"
            )
        if AxisType.Explicit in self.mesh.axis_types:
            devices = self.mesh.shape[self.axis]
            raise ValueError(
                "mesh: expected axes of the type Auto, got Explicit ones, along which JAX neither slices nor pads. "
                f"Make the mesh by {_like(devices, self.axis)}"
            )

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        if axis is not None:
            return Refusal(f"Sharded cannot run {describe(cell)} on a part of time, which it makes itself. Use Scan().")
        steps = -(-count_steps(xs) // self.mesh.shape[self.axis])
        part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape[1:]), leaf.dtype), xs)
        plan = self.engine.plan(cell, part, self.axis)
        if isinstance(plan, Refusal):
            return plan
        if plan.part_axis != self.axis:
            raise TypeError(
                f"engine: expected {type(self.engine).__name__}.plan to plan for parts of time along {self.axis!r}, "
                "got a plan for all of time. Let it return plan.over_parts(axis)"
            )
        return ShardedPlan(plan, self.mesh, self.axis)


@dataclass(frozen=True)
class ShardedPlan(Plan):
    """The plan of each part of time, on its device of the mesh axis."""

    part: Plan
    mesh: Mesh
    axis: str

    def __str__(self) -> str:
        return f"Sharded over {self.mesh.shape[self.axis]} devices: {self.part}"

    @property
    def notes(self) -> tuple[str, ...]:
        return self.part.notes

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        T = count_steps(xs)
        last, states = self._spread(cell, state, *padded(xs, marks, -T % self.mesh.shape[self.axis]))
        return jax.tree.map(lambda leaf: leaf[-1], last), jax.tree.map(lambda leaf: leaf[:T], states)

    def _spread(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        """The state after each device's part, and all states. T is a multiple of the number of devices."""
        wide, narrow = widen(cell)
        arrays, static = eqx.partition(wide, eqx.is_array)

        def run_part(arrays: Any, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
            if marks.length is not None:
                steps = count_steps(xs)
                first = jax.lax.axis_index(self.axis) * steps
                marks = marks._replace(length=jnp.clip(marks.length - first, 0, steps))
            last, states = self.part.run(narrow(eqx.combine(arrays, static)), state, xs, marks)
            return jax.tree.map(lambda leaf: leaf[None], last), states

        spec: Any = P(self.axis)
        shared: Any = P()
        in_specs = shared, shared, spec, Marks(shared, spec, shared)
        mesh, axes = self._place()
        parts = jax.shard_map(
            run_part, mesh=mesh, in_specs=in_specs, out_specs=spec, axis_names=axes, check_vma=False
        )  # cells do not have to state which of their arrays vary from device to device
        return jax.jit(parts)(arrays, state, xs, marks)

    def _place(self) -> tuple[Mesh | AbstractMesh, set[str]]:
        """The mesh, which may be inside of a `shard_map` over some of its axes, and the names of its other axes."""
        around = jax.sharding.get_abstract_mesh()
        mesh = around if self.axis in around.axis_names else self.mesh
        return mesh, set(mesh.axis_names) - set(around.manual_axes)


def _like(devices: int, axis: str) -> str:
    """Code that makes a mesh of one axis, for messages."""
    return f"jax.make_mesh(({devices},), ({axis!r},), axis_types=(jax.sharding.AxisType.Auto,))"
