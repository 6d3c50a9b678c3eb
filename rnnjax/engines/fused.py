"""The engine `Fused`: a gated cell as one kernel."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..arrays import Shaped, State, States, by_gate, by_head, carry_dtype, cast
from ..cell import AbstractCell, AbstractGatedCell, describe
from ..engine import AbstractEngine, refusal_of_symbolic
from ..kernels.recurrence import primitive
from ..kernels.recurrence.contract import AbstractKernel, Pointwise, Sequences, Weights
from ..kernels.recurrence.cpu.cpu import CPU
from ..marks import Marks

DTYPES = ("float64", "float32", "bfloat16", "float16")
EXAMPLES = {"cpu": "CPU()", "cuda": "GPU()", "tpu": "TPU()"}  # a kernel for each platform
WITHOUT_KERNEL = {  # how each platform runs without a kernel
    "cpu": "plain JAX, step by step (pass cpu=CPU() to run the CPU kernel)",
    "cuda": "plain JAX, step by step (the GPU kernel is experimental: pass cuda=GPU() to run it)",
    "tpu": "plain JAX, step by step (the TPU kernel is experimental: pass tpu=TPU() to run it)",
}


class Fused(AbstractEngine):
    """Projection, steps and gradients of a gated cell by the kernel of the platform that it runs on.

    `cpu`, `cuda` and `tpu` are the kernels of the platforms. One program may be lowered for several platforms, for each
    by its own kernel. By default only CPUs have one: the kernels of GPUs and TPUs are experimental, since no device has
    measured them yet. `Fused(cuda=GPU())` and `Fused(tpu=TPU())` run them. A platform that has no kernel, or whose
    kernel refuses the cell, runs the reference: plain JAX, step by step, with the big products outside of the loop.
    `select` says how a cell would run on each platform. The engine refuses a cell that all its kernels refuse, so that
    `Fused()` refuses every cell where the library of the CPU kernel was not built.

    `jax.vmap` hands the whole batch to one call, and its gradient is one call too. It needs an `AbstractGatedCell`,
    whose one product inside the loop is `R h`. Forward mode and derivatives of the second order are right but not fast:
    they go through the reference. A batch that is sharded over devices stays so under `jax.shard_map`. `jax.export`
    does not take the CPU kernel's calls unless told to: export with `Scan`.

    A kernel packs the weights once in a call, which short sequences and few units do not pay for: one of fewer steps
    than `shortest`, or a cell of fewer units than `narrowest`, is refused. By default none is.
    """

    cpu: AbstractKernel | None = CPU()
    cuda: AbstractKernel | None = None
    tpu: AbstractKernel | None = None
    shortest: int = eqx.field(static=True, default=1)
    narrowest: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        for name, kernel in self._kernels():
            if not isinstance(kernel, AbstractKernel):
                raise TypeError(f"{name}: expected a kernel, such as {EXAMPLES[name]}, or None, got {kernel!r}")
        for name in ("shortest", "narrowest"):
            bound = getattr(self, name)
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {bound!r}")

    def refusal(self, cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
        symbolic = refusal_of_symbolic("Fused", cell, xs)
        if symbolic is not None:
            return symbolic
        reason = _misfit(cell, xs)
        if reason is not None:
            return f"Fused cannot run {describe(cell)}: {reason}. Use Scan()."
        assert isinstance(cell, AbstractGatedCell)
        steps = jax.tree.leaves(xs)[0].shape[0]
        for name, size, unit in (("shortest", steps, "steps"), ("narrowest", cell.hidden_size, "units")):
            if size < getattr(self, name):
                return f"Fused({name}={getattr(self, name)}) leaves {size} {unit} of {describe(cell)} to Scan()."
        kernels = self._kernels()
        refusals = [kernel.refusal(*_asked(cell)) for _, kernel in kernels]
        if not kernels or None in refusals:
            return None
        return f"Fused has no kernel for {describe(cell)}. {' '.join(filter(None, refusals))} Use Scan()."

    def select(self, cell: AbstractCell, xs: PyTree[Shaped]) -> dict[str, str]:
        """How `cell` would run on each platform, or why its kernel refuses the cell: plain JAX runs there instead.

        Raises `ValueError` where it would not run at all. A plan for GPUs is one for the abstract device of the mesh in
        use, or for the first GPU that is here.
        """
        reason = self.refusal(cell, xs)
        if reason is not None:
            raise ValueError(reason)
        assert isinstance(cell, AbstractGatedCell)
        asked = _asked(cell)
        given = {name: kernel.refusal(*asked) or kernel.describe(*asked) for name, kernel in self._kernels()}
        return WITHOUT_KERNEL | given

    def run(self, cell: AbstractCell, state: State, xs: PyTree[Array], marks: Marks) -> tuple[State, States]:
        assert isinstance(cell, AbstractGatedCell)
        kernels = tuple(each for each in self._kernels() if each[1].refusal(*_asked(cell)) is None)
        length = None if marks.length is None else marks.length.astype(jnp.int32)
        sequence = Sequences(xs, jnp.stack(list(state)), length, marks.resets)
        one = jax.tree.map(lambda leaf: leaf[None, None], sequence)  # a group of one sequence
        trajectory = primitive.run(Pointwise.of(cell), kernels, _weights(cell, marks.initial), one)
        last, states = jax.tree.map(lambda leaf: leaf[0, 0], (trajectory.last, trajectory.states))
        return cell.state_type(*last), cell.state_type(*states)

    def _kernels(self) -> tuple[tuple[str, AbstractKernel], ...]:
        """The kernels there are, by the platform that each is for."""
        kernels = ("cpu", self.cpu), ("cuda", self.cuda), ("tpu", self.tpu)
        return tuple((platform, kernel) for platform, kernel in kernels if kernel is not None)


def _misfit(cell: AbstractCell, xs: PyTree[Shaped]) -> str | None:
    """Why no kernel can run `cell` on `xs`, be the platform what it may."""
    if not isinstance(cell, AbstractGatedCell):
        return "it needs an AbstractGatedCell"
    for name in ("project", "step"):
        if getattr(type(cell), name) is not getattr(AbstractGatedCell, name):
            return f"`{name}` is its own, and no kernel would call it"
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
        return "a static field of it cannot be hashed, as one that is an array"
    if any(_explicit(leaf) for leaf in jax.tree.leaves(eqx.filter((cell, xs), eqx.is_array))):
        return "its arrays are sharded by explicit axes of a mesh, which a kernel sees under jax.shard_map alone"
    return None


def _is_hashable(pointwise: Pointwise) -> bool:
    try:
        hash(pointwise)
    except TypeError:
        return False
    return True


def _explicit(leaf: Any) -> bool:
    """Whether the type of an array says how it is sharded."""
    return jax.sharding.AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def _asked(cell: AbstractGatedCell) -> tuple[Pointwise, Weights]:
    """What a kernel is asked of: shapes and dtypes."""
    return Pointwise.of(cell), jax.eval_shape(lambda: _weights(cell, cell.initial()))


def _weights(cell: AbstractGatedCell, initial: State) -> Weights:
    """The weights of `cell` for a group that is all there is."""
    gates, carried = len(cell.gates), carry_dtype(cell.dtype)
    bias = jnp.zeros(gates * cell.hidden_size, cell.dtype) if cell.bias is None else cell.bias
    W, b, R = (by_gate(leaf, gates) for leaf in (cell.input_weight, bias, by_head(cell.recurrent_weight)))
    vectors = [cast(leaf, carried) for leaf in jax.tree.leaves(cell.unit_parameters)]
    stacked = jnp.stack(vectors) if vectors else jnp.zeros((0, cell.hidden_size), carried)
    one = W, b, R, stacked, jnp.stack(list(initial))
    return Weights(*(jnp.asarray(leaf)[None] for leaf in one))
