"""The engine `Fused`: a gated cell as one kernel."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import check
from ..arrays import PyTree, Shaped, State, States, by_gate, by_head, carry_dtype, cast, count_steps
from ..cell import AbstractCell, describe
from ..engine import AbstractEngine, Plan, refuse_symbolic
from ..gated_cell import AbstractGatedCell
from ..kernels.recurrence import primitive
from ..kernels.recurrence.contract import AbstractKernel, Pointwise, Sequences, Trajectory, Weights
from ..kernels.recurrence.cpu.cpu import CPU
from ..kernels.recurrence.prepared import primitive as prepared_primitive
from ..kernels.recurrence.prepared.cell import PreparedCell
from ..marks import Marks
from ..refusal import Refusal

DTYPES = ("float64", "float32", "bfloat16", "float16")
EXAMPLES = {"cpu": "CPU()", "cuda": "GPU()", "tpu": "TPU()"}  # a kernel for each platform
EXPLICIT = "its arrays are sharded by explicit axes of a mesh, which a kernel sees under jax.shard_map alone"
DEVICES = {"cpu": "CPUs", "cuda": "GPUs", "tpu": "TPUs"}  # as a plan calls those without a kernel


class Fused(AbstractEngine):
    """A gated cell by the kernel of its platform, which computes projection, steps and gradients.

    `cpu`, `cuda` and `tpu` are the kernels of the platforms; a program may be lowered for several platforms, each with
    its own kernel. By default only CPUs have one: the kernels of GPUs and TPUs are experimental, since no device has
    measured them yet. `Fused(cuda=GPU())` and `Fused(tpu=TPU())` run them. A platform that has no kernel, or whose
    kernel refuses the cell, runs the reference: plain JAX, step by step, with the large products outside of the loop.
    `explain` shows the plan of each kernel. The engine refuses a cell that all its kernels refuse, so that
    `Fused()` refuses every cell where the library of the CPU kernel was not built.

    Under `jax.vmap` the whole batch is one call, and so is its gradient. It needs an `AbstractGatedCell`, whose one
    product inside the loop is `R h`. Forward mode and second derivatives are computed by the reference, which is
    slower. A batch that is sharded over devices stays so under `jax.shard_map`. In a program of
    `jax.export` the CPU kernel is the reference, unless it is `CPU(exported=True)`; a symbolic T is refused.

    A kernel packs the weights once per call, which does not pay off for short sequences and few units: the engine
    refuses sequences of fewer than `min_steps` steps and cells of fewer than `min_units` units. By default it refuses
    none of them. A cell that `rnnjax.prepare` made is packed already, and is never refused for its size.
    """

    cpu: AbstractKernel | None = CPU()
    cuda: AbstractKernel | None = None
    tpu: AbstractKernel | None = None
    min_steps: int = eqx.field(static=True, default=1)
    min_units: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        for name, kernel in self._kernels():
            if not isinstance(kernel, AbstractKernel):
                raise TypeError(
                    f"{name}: expected a kernel, such as {EXAMPLES[name]}, or None, got {kernel!r}. "
                    "Pass None to run plain JAX there"
                )
        for name, bound in (("min_steps", self.min_steps), ("min_units", self.min_units)):
            check.positive(name, bound, "an integer of at least 1", "Pass 1 to set no lower bound")

    def plan(self, cell: AbstractCell, xs: PyTree[Shaped], axis: str | None = None) -> Plan | Refusal:
        symbolic = refuse_symbolic("Fused", cell, xs)
        if symbolic is not None:
            return symbolic
        if isinstance(cell, PreparedCell):
            return self._plan_prepared(cell, xs, axis)
        reason = misfit(cell, xs)
        if reason is not None:
            return Refusal(f"Fused cannot run {describe(cell)}: {reason}. Use Scan().")
        assert isinstance(cell, AbstractGatedCell)
        steps = count_steps(xs)
        for name, size, unit in (("min_steps", steps, "steps"), ("min_units", cell.hidden_size, "units")):
            if size < getattr(self, name):
                least = getattr(self, name)
                return Refusal(f"Fused({name}={least}) does not run {size} {unit} of {describe(cell)}. Use Scan().")
        return self._plan_kernels(cell, axis)

    def _plan_kernels(self, cell: AbstractGatedCell, axis: str | None) -> Plan | Refusal:
        """The plans of the kernels, for a cell that fits; a refusal if there are kernels and all of them refuse."""
        pointwise, weights = Pointwise.of(cell), _weight_types(cell)
        answers = [(platform, kernel.plan(pointwise, weights)) for platform, kernel in self._kernels()]
        return _plan_of(FusedPlan, cell, pointwise, answers, axis)

    def _plan_prepared(self, cell: PreparedCell, xs: PyTree[Shaped], axis: str | None) -> Plan | Refusal:
        """The plans of the kernels of a prepared cell, of however few steps and units: nothing is packed in a call."""
        if _has_explicit(cell, xs):
            return Refusal(f"Fused cannot run {describe(cell)}: {EXPLICIT}. Use Scan().")
        answers = [
            (platform, kernel.plan_prepared(cell.pointwise, cell.weights)) for platform, kernel in self._kernels()
        ]
        return _plan_of(PreparedFusedPlan, cell, cell.pointwise, answers, axis)

    def _kernels(self) -> tuple[tuple[str, AbstractKernel], ...]:
        """The kernels that are not None, with their platforms."""
        kernels = ("cpu", self.cpu), ("cuda", self.cuda), ("tpu", self.tpu)
        return tuple((platform, kernel) for platform, kernel in kernels if kernel is not None)


@dataclass(frozen=True)
class FusedPlan(Plan):
    """The plan of each platform's kernel, with JAX's name of the platform, and the refusals of the other kernels."""

    pointwise: Pointwise
    kernels: tuple[tuple[str, Any], ...]  # a `KernelPlan`, or a `PreparedPlan`, of each
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        planned = [platform for platform, _ in self.kernels]
        others = [name for platform, name in DEVICES.items() if platform not in planned]
        plain = [f"{_listed(others)} step by step in plain JAX"] if others else []
        return f"Fused: {'; '.join([*(str(plan) for _, plan in self.kernels), *plain])}"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(map(str, self.refusals))

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        length = None if marks.length is None else marks.length.astype(jnp.int32)
        sequence = Sequences(xs, jnp.stack(list(state)), length, marks.resets)
        one = jax.tree.map(lambda leaf: jax.lax.expand_dims(leaf, (0, 1)), sequence)  # a group of one sequence
        trajectory = self._trajectory(cell, marks.initial, one)
        last, states = jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, (0, 1)), (trajectory.last, trajectory.states))
        return type(state)(*last), type(state)(*states)

    def _trajectory(self, cell: AbstractCell, initial: State, sequences: Sequences) -> Trajectory:
        assert isinstance(cell, AbstractGatedCell)
        return primitive.run(self.pointwise, self.kernels, _weights(cell, initial), sequences)


@dataclass(frozen=True)
class PreparedFusedPlan(FusedPlan):
    """The same of a cell whose weights are packed already."""

    def _trajectory(self, cell: AbstractCell, initial: State, sequences: Sequences) -> Trajectory:
        assert isinstance(cell, PreparedCell)
        weights = cell.weights._replace(initial=jnp.stack(list(initial)))
        one = jax.tree.map(lambda leaf: jax.lax.expand_dims(leaf, (0,)), weights)
        sequences = sequences._replace(xs=sequences.xs.astype(weights.b.dtype))
        return prepared_primitive.run(self.pointwise, self.kernels, one, sequences)


def _plan_of(
    kind: type[FusedPlan], cell: AbstractCell, pointwise: Pointwise, answers: list[tuple[str, Any]], axis: str | None
) -> Plan | Refusal:
    """The plan by what the kernels answered; a refusal where there are kernels, and all of them refuse."""
    plans = tuple((platform, plan) for platform, plan in answers if not isinstance(plan, Refusal))
    refusals = tuple(refusal for _, refusal in answers if isinstance(refusal, Refusal))
    if refusals and not plans:
        return Refusal(f"Fused has no kernel for {describe(cell)}. {' '.join(map(str, refusals))} Use Scan().")
    return kind(pointwise, plans, refusals).over_parts(axis)


def _listed(names: list[str]) -> str:
    """Names with commas, and an "and" before the last."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def misfit(cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
    """Why no kernel can run `cell` on `xs`, on any platform."""
    if not isinstance(cell, AbstractGatedCell):
        return "it needs an AbstractGatedCell"
    for name in ("project", "step", "advance", "emit"):
        if getattr(type(cell), name) is not getattr(AbstractGatedCell, name):
            return f"it overrides `{name}`, which kernels do not call"
    dtypes = {leaf.dtype.name for leaf in (cell.input_weight, cell.recurrent_weight, cell.bias) if leaf is not None}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"its weights are {' and '.join(sorted(dtypes))}, and kernels take one of {', '.join(DTYPES)}"
    state = jax.tree.leaves(jax.eval_shape(cell.initial))
    if any(leaf.shape != (cell.hidden_size,) for leaf in jax.tree.leaves(cell.unit_parameters) + state):
        return f"not all its unit parameters and states are vectors of {cell.hidden_size} units"
    carry = carry_dtype(cell.dtype)
    if any(leaf.dtype != carry for leaf in state):
        return f"not all its states are {carry}"
    if not _is_hashable(Pointwise.of(cell)):
        return "one of its static fields, such as an array, cannot be hashed"
    return EXPLICIT if _has_explicit(cell, xs) else None


def _is_hashable(pointwise: Pointwise) -> bool:
    try:
        hash(pointwise)
    except TypeError:
        return False
    return True


def _has_explicit(cell: AbstractCell, xs: PyTree[Shaped]) -> bool:
    return any(_explicit(leaf) for leaf in jax.tree.leaves(eqx.filter((cell, xs), eqx.is_array)))


def _explicit(leaf: Any) -> bool:
    """Whether an array is sharded by explicit axes of a mesh."""
    return jax.sharding.AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def _weight_types(cell: AbstractGatedCell) -> Weights:
    """The shapes and dtypes of `_weights`, for a cell that fits."""
    (inputs, _), gates, units, carried = (
        cell.input_weight.shape,
        len(cell.gates),
        cell.hidden_size,
        carry_dtype(cell.dtype),
    )
    heads = 1 if cell.recurrent_weight.ndim == 2 else cell.recurrent_weight.shape[0]
    matrices = (inputs, gates, units), (gates, units), (heads, units // heads, gates, units // heads)
    shapes = tuple((shape, cell.dtype) for shape in matrices)
    vectors = len(jax.tree.leaves(cell.unit_parameters)), len(cell.state_type._fields)
    shapes = *shapes, *(((count, units), carried) for count in vectors)
    types: list[Any] = [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in shapes]
    return Weights(*types)


def _weights(cell: AbstractGatedCell, initial: State) -> Weights:
    """The weights of `cell`, for one group."""
    gates, carried = len(cell.gates), carry_dtype(cell.dtype)
    bias = jnp.zeros(gates * cell.hidden_size, cell.dtype) if cell.bias is None else cell.bias
    W, b, R = (by_gate(leaf, gates) for leaf in (cell.input_weight, bias, by_head(cell.recurrent_weight)))
    vectors = [cast(leaf, carried) for leaf in jax.tree.leaves(cell.unit_parameters)]
    stacked = jnp.stack(vectors) if vectors else jnp.zeros((0, cell.hidden_size), carried)
    one = W, b, R, stacked, jnp.stack(list(initial))
    return Weights(*(jax.lax.expand_dims(jnp.asarray(leaf), (0,)) for leaf in one))
