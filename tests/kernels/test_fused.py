"""`Fused` and what lies under it: the halves of a kernel, three primitives, and how axes fold into a kernel's batch."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import kernel_problems
import laws
import numpy as np
import pytest
from jaxtyping import Array, PyTree
from kernel_problems import LENGTH, MARKS, B, H, I, S, T, dot, draw, shapes

import rnnjax
from rnnjax.engines import Refusal
from rnnjax.engines.fused import Fused, FusedPlan
from rnnjax.kernels.recurrence import primitive
from rnnjax.kernels.recurrence.contract import (
    AbstractKernel,
    Cotangents,
    KernelPlan,
    NeedsGradient,
    Pointwise,
    Sequences,
    Trajectory,
    Weights,
    carried,
)
from rnnjax.kernels.recurrence.functions import KernelPlans
from rnnjax.kernels.recurrence.reference import ReferencePlan

KERNELS: dict[str, KernelPlans] = {"reference": ()}  # where there is no other, the reference runs


@pytest.mark.parametrize(
    ("cell", "marks"),
    [
        ("elman", "plain"),
        ("gru", "length"),
        ("gru", "resets"),
        pytest.param("gru", "both", marks=pytest.mark.slow),
        ("lstm_options", "both"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_backward_is_the_transpose(kernel, cell, marks):
    """`<tangent(t), c> == <t, backward(c)>`, with cotangents on held steps too; it needs no oracle."""
    built = grid.build(cell)
    pointwise = Pointwise.of(built)

    @jax.jit
    def both(marks: PyTree, primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
        def run(weights: Weights, xs: Array, state: Array) -> PyTree:
            return primitive.run(pointwise, KERNELS[kernel], weights, Sequences(xs, state, *marks))[:2]

        moved = jax.jvp(run, primals, tangents)[1]
        cotangents = draw(moved, 3)
        return dot(moved, cotangents), dot(tangents, jax.vjp(run, *primals)[1](cotangents))

    forward, backward = both(MARKS[marks], draw(shapes(built), 1), draw(shapes(built), 2))
    np.testing.assert_allclose(forward, backward, rtol=1e-11)


# Every nesting of vmap, grad and jvp equals that of `Scan`


class Problem(NamedTuple):
    """Some of the weights of a GRU and all of them, by name; states, inputs and lengths of a batch; and an LSTM."""

    cell: rnnjax.GRU
    lstm: rnnjax.LSTM
    some: dict[str, PyTree]
    all: dict[str, PyTree]
    batch: tuple[PyTree, np.ndarray, np.ndarray]


@grid.once
def problem() -> Problem:
    cell = rnnjax.GRU(I, 4, key=grid.KEY, heads=2, learn_initial=True, dtype=jnp.float64)
    candidate_bias = np.asarray(cell.candidate_bias)
    some = {"recurrent_weight": np.asarray(cell.recurrent_weight), "candidate_bias": candidate_bias + 0.1}
    rest = {"input_weight": np.asarray(cell.input_weight), "bias": np.asarray(cell.bias) + 0.1}
    state, xs = jax.tree.map(np.asarray, (grid.random_state(cell, B), grid.inputs(B, T)))
    batch = state, xs, LENGTH[0].astype(int)
    return Problem(
        cell, grid.build("lstm"), some, some | rest | {"initial_state": rnnjax.Hidden(candidate_bias - 0.2)}, batch
    )


def scalar(engine: rnnjax.AbstractEngine, part: dict[str, PyTree], state: PyTree, xs: Array, length: Array) -> Array:
    """A loss on all outputs and the last state, of some of the weights and of one sequence that has resets."""
    cell = eqx.tree_at(lambda cell: [getattr(cell, name) for name in part], problem().cell, list(part.values()))
    return grid.contract(rnnjax.unroll(cell, state, xs, length=length, resets=np.arange(T) == 2, engine=engine))


def members(tree: PyTree) -> PyTree:
    """An ensemble of three."""
    return jax.tree.map(lambda leaf: np.stack([leaf, -leaf, np.cos(leaf)]), tree)


def sine(tree: PyTree) -> PyTree:
    """A direction."""
    return jax.tree.map(np.sin, tree)


def over_members(f: Any) -> Any:
    return jax.vmap(f, (0, None, None, None))


def over_batch(f: Any) -> Any:
    return jax.vmap(f, (None, 0, 0, 0))


def total(f: Any) -> Any:
    return lambda *arguments: grid.contract(f(*arguments))


def nest_ensemble_of_batches(f: Any, p: Problem) -> PyTree:
    return jax.grad(total(over_members(over_batch(f))), (0, 1, 2))(members(p.some), *p.batch)


def nest_batch_of_ensembles(f: Any, p: Problem) -> PyTree:
    return jax.grad(total(over_batch(over_members(f))), (0, 1, 2))(members(p.some), *p.batch)


def nest_gradient_of_each_member_and_sequence(f: Any, p: Problem) -> PyTree:
    return over_members(over_batch(jax.grad(f, (0, 1, 2))))(members(p.some), *p.batch)


def nest_gradient_of_each_sequence_and_member(f: Any, p: Problem) -> PyTree:
    return over_batch(over_members(jax.grad(f)))(members(p.all), *p.batch)


def nest_gradient_of_each_member(f: Any, p: Problem) -> PyTree:
    return over_members(jax.grad(total(over_batch(f)), (0, 2)))(members(p.some), *p.batch)


def nest_jvp_of_each_sequence(f: Any, p: Problem) -> PyTree:
    moved = lambda *arguments: jax.jvp(partial(f, length=T), arguments, jax.tree.map(jnp.sin, arguments))  # noqa: E731
    return jax.vmap(moved, (None, 0, 0))(p.all, *p.batch[:2])


def nest_jvp_of_batch_and_members(f: Any, p: Problem) -> PyTree:
    state, xs, length = p.batch
    run = lambda part, xs: over_members(over_batch(f))(part, state, xs, length)  # noqa: E731
    return jax.jvp(run, (members(p.all), xs), (members(sine(p.all)), np.sin(xs)))


def nest_jacobians(f: Any, p: Problem) -> PyTree:
    state, xs, length = p.batch
    run = lambda part, xs: over_batch(f)(part, state, xs, length)  # noqa: E731
    return jax.jacfwd(run)(p.some, xs), jax.jacrev(run, (0, 1))(p.some, xs)


def nest_hessian(f: Any, p: Problem) -> PyTree:
    state, xs, length = jax.tree.map(lambda leaf: leaf[2], p.batch)
    run = lambda bias, xs, state: f({"candidate_bias": bias}, state, xs, length)  # noqa: E731
    return jax.hessian(run, (0, 1, 2))(p.some["candidate_bias"], xs[:, :1] * np.ones(I), state)


def nest_grad_of_grad(f: Any, p: Problem) -> PyTree:
    inner = jax.grad(total(over_batch(f)), (0, 1, 2))
    return jax.grad(total(inner), (0, 1, 2))(p.all, *p.batch)


def nest_grad_of_grad_of_each_member(f: Any, p: Problem) -> PyTree:
    return over_members(jax.grad(total(over_batch(jax.grad(f)))))(members(p.some), *p.batch)


def nest_grad_of_jvp(f: Any, p: Problem) -> PyTree:
    def moved(part: PyTree, *batch: Array) -> Array:
        return jax.jvp(lambda part: over_batch(f)(part, *batch).sum(), (part,), (jax.tree.map(jnp.sin, part),))[1]

    return jax.grad(moved, (0, 1, 2))(p.some, *p.batch)


def nest_scan_of_remat(f: Any, p: Problem) -> PyTree:
    state, xs, length = p.batch

    @jax.checkpoint
    def step(part: PyTree, xs: Array) -> tuple[PyTree, Array]:
        value, moved = jax.value_and_grad(lambda part: over_batch(f)(part, state, xs, length).sum())(part)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, part, moved), value

    return jax.grad(lambda part: grid.contract(jax.lax.scan(step, part, np.stack([xs, -xs]))))(p.some)


NESTS = {name.removeprefix("nest_"): nest for name, nest in dict(globals()).items() if name.startswith("nest_")}


# These meet every rule of the primitives: batches by group and not, one and both at once, derivatives of each of them.
QUICK_NESTS = {
    *("ensemble_of_batches", "batch_of_ensembles", "gradient_of_each_member_and_sequence"),
    *("jvp_of_batch_and_members", "jacobians", "grad_of_grad", "grad_of_jvp"),
}


@pytest.mark.parametrize(
    "nest", [pytest.param(nest, marks=[] if nest in QUICK_NESTS else pytest.mark.slow) for nest in NESTS]
)
def test_nesting_equals_scan(nest):
    p = problem()
    both = jax.jit(lambda: [NESTS[nest](partial(scalar, engine), p) for engine in (Fused(), grid.ORACLE)])
    grid.assert_close(*both())


# What a kernel is asked for

CALLS: list[tuple] = []


class Recorder(AbstractKernel):
    """The reference, which writes down how it is called, and answers zero where its residuals were lost."""

    reason: str | None = eqx.field(static=True, default=None)

    def plan(self, pointwise: Pointwise, weights: Weights) -> KernelPlan | Refusal:
        assert {leaf.shape[0] for leaf in weights} == {1}
        CALLS.append(("plan",))
        return RecorderPlan(pointwise) if self.reason is None else Refusal(self.reason)


@dataclass(frozen=True)
class RecorderPlan(ReferencePlan):
    @property
    def residual_size(self) -> int:
        return 2

    def forward(
        self, weights: Weights, sequences: Sequences, residual_size: int, used_outputs: tuple[bool, ...]
    ) -> Trajectory:
        assert {leaf.dtype for leaf in (weights.W, weights.b, weights.R, sequences.xs)} == {weights.W.dtype}
        assert {leaf.dtype for leaf in (weights.unit_parameters, weights.initial, sequences.state)} == {
            carried(weights)
        }
        assert sequences.length is None or sequences.length.dtype == jnp.int32
        CALLS.append(("forward", *sequences.xs.shape[:2], residual_size))
        trajectory = super().forward(weights, sequences, residual_size, used_outputs)
        return trajectory._replace(residuals=jnp.ones_like(trajectory.residuals))

    def backward(
        self,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Array | None, ...],
        dlast: Array | None,
        needs_gradient: NeedsGradient,
    ) -> Cotangents:
        given = tuple(cotangent is not None for cotangent in (*dstates, dlast))
        names = [name for name, is_needed in needs_gradient.weights._asdict().items() if is_needed]
        names += [name for name in ("xs", "state") if getattr(needs_gradient, name)]
        CALLS.append(("backward", *sequences.xs.shape[:2], *names, given))
        made = super().backward(weights, sequences, trajectory, dstates, dlast, needs_gradient)
        return jax.tree.map(lambda leaf: leaf * trajectory.residuals[0, 0, 0, 1, 0].astype(leaf.dtype), made)


BOTH = (True, True)


def recorded(*arguments: Any) -> Array:
    return scalar(Fused(Recorder()), *arguments)


def ys_of(part: PyTree, xs: Array) -> Array:
    """A loss on the outputs of an LSTM, which do not show its field `c`."""
    return rnnjax.unroll(part, None, xs, engine=Fused(Recorder()))[1].sum()


def last_of(part: PyTree, xs: Array) -> Array:
    return rnnjax.unroll(part, None, xs, engine=Fused(Recorder()))[0].c.sum()


NEEDED: dict[str, tuple[Callable[[Problem], PyTree], list[tuple]]] = {
    "values_of_a_batch": (lambda p: over_batch(recorded)(p.all, *p.batch), [("forward", 1, B, 0)]),
    "gradient_of_a_batch": (
        lambda p: jax.grad(total(over_batch(recorded)))(p.all, *p.batch),
        [("forward", 1, B, 2), ("backward", 1, B, "W", "b", "R", "unit_parameters", "initial", "state", BOTH)],
    ),
    "gradient_of_each_by_weights": (
        lambda p: over_batch(jax.grad(recorded))(p.some, *p.batch),
        [("forward", 1, B, 2), ("backward", B, 1, "R", "unit_parameters", BOTH)],
    ),
    "gradient_of_each_by_inputs": (
        lambda p: over_batch(jax.grad(recorded, (1, 2)))(p.some, *p.batch),
        [("forward", 1, B, 2), ("backward", 1, B, "xs", "state", BOTH)],
    ),
    "gradient_of_an_ensemble": (
        lambda p: jax.grad(total(over_members(over_batch(recorded))))(members(p.some), *p.batch),
        [("forward", 3, B, 2), ("backward", 3, B, "R", "unit_parameters", BOTH)],
    ),
    "gradient_of_each_member_and_sequence": (
        lambda p: over_members(over_batch(jax.grad(recorded)))(members(p.some), *p.batch),
        [("forward", 3, B, 2), ("backward", 3 * B, 1, "R", "unit_parameters", BOTH)],
    ),
    "outputs_without_a_field": (
        lambda p: jax.grad(lambda xs: ys_of(p.lstm, xs))(p.batch[1][0]),
        [("forward", 1, 1, 2), ("backward", 1, 1, "xs", (True, False, False))],
    ),
    "last_state_alone": (
        lambda p: jax.grad(lambda xs: last_of(p.lstm, xs))(p.batch[1][0]),
        [("forward", 1, 1, 2), ("backward", 1, 1, "xs", (False, False, True))],
    ),
}


@pytest.mark.parametrize("needed", NEEDED)
def test_a_kernel_is_planned_and_called_once_and_for_no_more_than_is_needed(needed):
    """Neither lowering, nor batching, nor transposition plans again."""
    function, expected = NEEDED[needed]
    given = problem()
    CALLS.clear()
    jax.clear_caches()  # of traces, in which the plan was made before
    jax.jit(lambda: function(given)).lower()
    assert [("plan",), *expected] == CALLS


@pytest.mark.parametrize("dtype", grid.NARROW)
def test_a_kernel_is_given_weights_in_their_dtype_and_states_in_the_carried(dtype):
    """As the recorder asserts."""
    CALLS.clear()
    run = partial(grid.values_and_gradients, engine=Fused(Recorder()))
    eqx.filter_jit(run).lower(grid.build("lstm_options", dtype), grid.inputs(T, dtype=dtype))
    assert {call[0] for call in CALLS} == {"plan", "forward", "backward"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", grid.NARROW)
def test_narrow_dtypes(dtype):
    got = grid.rounded("lstm_options", Fused(Recorder()))[dtype]
    grid.assert_close(got, grid.expected_rounded("lstm_options")[dtype], dtype)


def largest(function: Any, *arguments: Any) -> int:
    """The number of entries of the largest array in the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return max(int(np.prod([int(size) for size in found.split(",")])) for found in re.findall(r"f64\[([\d,]+)\]", text))


def test_no_weight_gradient_of_each_sequence_is_made():
    cell = grid.build("lstm")
    state, xs = grid.random_state(cell, 9), grid.inputs(9, 3)
    run = lambda cell, state, xs: grid.contract(rnnjax.unroll(cell, state, xs, engine=Fused()))  # noqa: E731
    batched = lambda cell: jax.vmap(partial(run, cell))(state, xs).sum()  # noqa: E731
    per_sequence = 9 * cell.recurrent_weight.size
    assert largest(jax.grad(batched), cell) < per_sequence
    assert largest(jax.vmap(jax.grad(run), (None, 0, 0)), cell, state, xs) == per_sequence


# Which kernel runs, and which does not


class Scaled(rnnjax.Elman):
    @property
    def unit_parameters(self) -> np.ndarray:
        return np.ones(())


class OwnStep(rnnjax.Elman):
    def step(self, state: Any, u: Array) -> Any:
        return super().step(state, u)


class OwnAdvance(rnnjax.Elman):
    def advance(self, u: Array, v: Array, state: Any) -> Any:
        return super().advance(u, v, state)


def elman(**changed: Any) -> rnnjax.Elman:
    cell = rnnjax.Elman(I, H, key=grid.KEY)
    return eqx.tree_at(
        lambda cell: [getattr(cell, name) for name in changed],
        cell,
        list(changed.values()),
        is_leaf=lambda leaf: leaf is None,
    )


REFUSALS: dict[str, tuple[Fused, Callable[[], Any], str | None]] = {
    "none": (Fused(), lambda: grid.build("gru"), None),
    "none_of_the_recorder": (Fused(Recorder()), lambda: grid.build("gru"), None),
    "not_gated": (
        Fused(),
        lambda: grid.build("min_gru"),
        "Fused cannot run MinGRU: it needs an AbstractGatedCell. Use Scan().",
    ),
    "own_step": (
        Fused(),
        lambda: OwnStep(I, H, key=grid.KEY),
        "Fused cannot run OwnStep: it overrides `step`, which kernels do not call. Use Scan().",
    ),
    "own_advance": (
        Fused(),
        lambda: OwnAdvance(I, H, key=grid.KEY),
        "Fused cannot run OwnAdvance: it overrides `advance`, which kernels do not call. Use Scan().",
    ),
    "two_dtypes": (
        Fused(),
        lambda: elman(recurrent_weight=np.zeros((H, H), jnp.bfloat16)),
        "Fused cannot run Elman: its weights are bfloat16 and float32, and kernels take one of "
        "float64, float32, bfloat16, float16. Use Scan().",
    ),
    "scalar_unit_parameter": (
        Fused(),
        lambda: Scaled(I, H, key=grid.KEY),
        "Fused cannot run Scaled: not all its unit parameters and states are vectors of 8 units. Use Scan().",
    ),
    "by_the_kernel": (
        Fused(Recorder(reason="The recorder is tired."), tpu=Recorder(reason="So is this one.")),
        lambda: grid.build("gru"),
        "Fused has no kernel for GRU. The recorder is tired. So is this one. Use Scan().",
    ),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_refusal(refused):
    engine, cell, sentence = REFUSALS[refused]
    assert grid.refusal(engine, cell(), grid.inputs(T)) == sentence


PLANS: dict[str, tuple[Fused, str, tuple[str, ...]]] = {
    "no_kernel": (Fused(cpu=None), "Fused: CPUs, GPUs and TPUs step by step in plain JAX", ()),
    "one_kernel": (
        Fused(Recorder()),
        "Fused: reference kernel, step by step in plain JAX; GPUs and TPUs step by step in plain JAX",
        (),
    ),
    "one_of_two_refuses": (
        Fused(cpu=None, cuda=Recorder(reason="The recorder is tired."), tpu=Recorder()),
        "Fused: reference kernel, step by step in plain JAX; CPUs and GPUs step by step in plain JAX",
        ("The recorder is tired.",),
    ),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_describes_every_platform(plan):
    engine, sentence, notes = PLANS[plan]
    made = engine.plan(grid.build("gru"), grid.inputs(T))
    assert isinstance(made, FusedPlan)
    assert (str(made), made.notes) == (sentence, notes)


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Explicit,))
    xs = jax.device_put(grid.inputs(T), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert "explicit axes" in str(grid.refusal(Fused(), grid.build("gru"), xs))


def test_a_platform_without_a_kernel_runs_the_reference():
    cell = grid.build("gru")
    pointwise, weights = Pointwise.of(cell), draw(shapes(cell)[0], 1)
    sequences = Sequences(*draw(shapes(cell)[1:], 2), None, None)
    CALLS.clear()

    @jax.jit
    def both(weights: Weights, sequences: Sequences) -> tuple[Trajectory, Trajectory]:
        expected = ReferencePlan(pointwise).forward(weights, sequences, 0, (True,) * pointwise.fields)
        return primitive.run(pointwise, (("tpu", RecorderPlan(pointwise)),), weights, sequences), expected

    got, expected = both(weights, sequences)
    assert CALLS == []  # the kernel of another platform is not even traced
    assert got.residuals.shape == (S, B, T, 0, H)
    grid.assert_close(got, expected)


# Corners


@pytest.mark.parametrize(
    "law",
    [
        *(pytest.param(law, marks=pytest.mark.slow) for law in ("length_zero_is_identity", "padding_is_ignored")),
        "everything_composes",
    ],
)
def test_law_of_the_reference(law):
    laws.LAWS[law](laws.runner("gru", Fused(cpu=None)))


def test_without_jit():
    """A primitive is compiled where it stands alone."""
    built = grid.build("gru")
    weights, xs, state = jax.tree.map(grid.place, draw(shapes(built), 1))
    last = lambda xs: primitive.run(Pointwise.of(built), (), weights, Sequences(xs, state, None, None)).last  # noqa: E731
    pull = lambda xs: jax.vjp(last, xs)[1](state)  # noqa: E731
    with jax.disable_jit():
        value = last(xs)
    grid.assert_close((value, pull(xs)), jax.jit(lambda xs: (last(xs), pull(xs)))(xs))


@pytest.mark.slow
def test_unroll_without_jit():
    cell, xs = grid.build("lstm"), problem().batch[1][:, :2]
    gradient = jax.vmap(jax.grad(lambda xs: last_of(cell, xs)))
    grid.assert_close(gradient(xs), jax.jit(gradient)(xs))
    with jax.disable_jit():
        value = last_of(cell, xs[0])
    grid.assert_close(value, last_of(cell, xs[0]))


def test_no_sequences_and_no_members():
    f, some = partial(scalar, Fused()), problem().some
    ensemble, batch = members(some), problem().batch
    nobody, none = jax.tree.map(lambda leaf: leaf[:0], (ensemble, batch))
    each = over_members(over_batch(jax.grad(f)))
    of_batch = jax.grad(total(over_batch(f)))
    zero, by_nothing, by_nobody = jax.jit(
        lambda: (of_batch(some, *none), each(ensemble, *none), each(nobody, *batch))
    )()
    grid.assert_close(zero, jax.tree.map(np.zeros_like, some))
    assert by_nothing["candidate_bias"].shape == (3, 0, 4)
    assert by_nobody["candidate_bias"].shape == (0, B, 4)


def test_weights_may_be_numpy_arrays():
    cell = grid.build("gru")
    loaded = jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, cell)
    run = partial(rnnjax.unroll, state=None, xs=grid.inputs(T), engine=Fused())
    grid.assert_close(*jax.jit(lambda: (run(loaded), run(cell)))())


def test_shared_weights_and_a_sharded_batch():
    """`jax.shard_map` sums the gradients of what the devices share."""
    script = Path(kernel_problems.__file__).with_name("sharded_run.py")
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    settings = {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-W", "error", str(script)], env=os.environ | settings, check=True)
