"""`Fused` and what lies under it: the halves of a kernel, three primitives, and how axes fold into a kernel's batch."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import sharded_run
from jaxtyping import Array, PyTree
from kernel_problems import LENGTH, MARKS, B, H, I, S, T, dot, draw, shapes

import rnnjax
from rnnjax.engines.fused import Fused
from rnnjax.kernel import Cotangents, Pointwise, Sequences, Trajectory, Weights, carried
from rnnjax.kernels import recurrence
from rnnjax.kernels.functions import Kernels
from rnnjax.kernels.reference import Reference

KERNELS: dict[str, Kernels] = {"reference": ()}  # where there is no other, the reference runs


@pytest.mark.parametrize(
    ("cell", "marks"),
    [("elman", "plain"), ("gru", "length"), ("gru", "resets"), ("gru", "both"), ("lstm_options", "both")],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_backward_is_the_transpose(kernel, cell, marks):
    """`<tangent(t), c> == <t, backward(c)>`, with cotangents on held steps too; it needs no oracle."""
    built = grid.build(cell)
    length, resets = MARKS[marks]

    def run(weights: Weights, xs: Array, state: Array) -> PyTree:
        sequences = Sequences(xs, state, length, resets)
        return recurrence.run(Pointwise.of(built), KERNELS[kernel], weights, sequences)[:2]

    @jax.jit
    def both(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
        moved = jax.jvp(run, primals, tangents)[1]
        cotangents = draw(moved, 3)
        return dot(moved, cotangents), dot(tangents, jax.vjp(run, *primals)[1](cotangents))

    forward, backward = both(draw(shapes(built), 1), draw(shapes(built), 2))
    np.testing.assert_allclose(forward, backward, rtol=1e-11)


# Every nesting of vmap, grad and jvp equals that of `Scan`

CELL = rnnjax.GRU(I, 4, key=grid.KEY, heads=2, learn_initial=True, dtype=jnp.float64)
SOME = {"recurrent_weight": CELL.recurrent_weight, "gains": CELL.gains + 0.1}
ALL = SOME | {"input_weight": CELL.input_weight, "bias": CELL.bias + 0.1, "start": rnnjax.Hidden(CELL.gains - 0.2)}
BATCH = grid.random_state(CELL, B), grid.inputs(B, T), LENGTH[0].astype(int)
ONE = jax.tree.map(lambda leaf: leaf[2], BATCH)


def scalar(engine: rnnjax.AbstractEngine, part: dict[str, PyTree], state: PyTree, xs: Array, length: Array) -> Array:
    """A loss on all outputs and the last state, of some of the weights and of one sequence that has resets."""
    cell = eqx.tree_at(lambda cell: [getattr(cell, name) for name in part], CELL, list(part.values()))
    return grid.contract(rnnjax.unroll(cell, state, xs, length=length, resets=jnp.arange(T) == 2, engine=engine))


def members(tree: PyTree) -> PyTree:
    """An ensemble of three."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, jnp.cos(leaf)]), tree)


def over_members(f: Any) -> Any:
    return jax.vmap(f, (0, None, None, None))


def over_batch(f: Any) -> Any:
    return jax.vmap(f, (None, 0, 0, 0))


def total(f: Any) -> Any:
    return lambda *arguments: grid.contract(f(*arguments))


def nest_ensemble_of_batches(f: Any) -> PyTree:
    return jax.grad(total(over_members(over_batch(f))), (0, 1, 2))(members(SOME), *BATCH)


def nest_batch_of_ensembles(f: Any) -> PyTree:
    return jax.grad(total(over_batch(over_members(f))), (0, 1, 2))(members(SOME), *BATCH)


def nest_gradient_of_each_member_and_sequence(f: Any) -> PyTree:
    return over_members(over_batch(jax.grad(f, (0, 1, 2))))(members(SOME), *BATCH)


def nest_gradient_of_each_sequence_and_member(f: Any) -> PyTree:
    return over_batch(over_members(jax.grad(f)))(members(ALL), *BATCH)


def nest_gradient_of_each_member(f: Any) -> PyTree:
    return over_members(jax.grad(total(over_batch(f)), (0, 2)))(members(SOME), *BATCH)


def nest_jvp_of_each_sequence(f: Any) -> PyTree:
    moved = lambda *arguments: jax.jvp(partial(f, length=T), arguments, jax.tree.map(jnp.sin, arguments))  # noqa: E731
    return jax.vmap(moved, (None, 0, 0))(ALL, *BATCH[:2])


def nest_jvp_of_batch_and_members(f: Any) -> PyTree:
    run = lambda part, xs: over_members(over_batch(f))(part, BATCH[0], xs, BATCH[2])  # noqa: E731
    return jax.jvp(run, (members(ALL), BATCH[1]), (members(jax.tree.map(jnp.sin, ALL)), jnp.sin(BATCH[1])))


def nest_jacobians(f: Any) -> PyTree:
    run = lambda part, xs: over_batch(f)(part, BATCH[0], xs, BATCH[2])  # noqa: E731
    return jax.jacfwd(run)(SOME, BATCH[1]), jax.jacrev(run, (0, 1))(SOME, BATCH[1])


def nest_hessian(f: Any) -> PyTree:
    run = lambda gains, xs, state: f({"gains": gains}, state, xs, ONE[2])  # noqa: E731
    return jax.hessian(run, (0, 1, 2))(SOME["gains"], ONE[1][:, :1] * jnp.ones(I), ONE[0])


def nest_grad_of_grad(f: Any) -> PyTree:
    inner = jax.grad(total(over_batch(f)), (0, 1, 2))
    return jax.grad(total(inner), (0, 1, 2))(ALL, *BATCH)


def nest_grad_of_grad_of_each_member(f: Any) -> PyTree:
    return over_members(jax.grad(total(over_batch(jax.grad(f)))))(members(SOME), *BATCH)


def nest_grad_of_jvp(f: Any) -> PyTree:
    def moved(part: PyTree, *batch: Array) -> Array:
        return jax.jvp(lambda part: over_batch(f)(part, *batch).sum(), (part,), (jax.tree.map(jnp.sin, part),))[1]

    return jax.grad(moved, (0, 1, 2))(SOME, *BATCH)


def nest_scan_of_remat(f: Any) -> PyTree:
    @jax.checkpoint
    def step(part: PyTree, xs: Array) -> tuple[PyTree, Array]:
        value, moved = jax.value_and_grad(lambda part: over_batch(f)(part, BATCH[0], xs, BATCH[2]).sum())(part)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, part, moved), value

    return jax.grad(lambda part: grid.contract(jax.lax.scan(step, part, jnp.stack([BATCH[1], -BATCH[1]]))))(SOME)


NESTS = {name.removeprefix("nest_"): nest for name, nest in dict(globals()).items() if name.startswith("nest_")}


@pytest.mark.parametrize("nest", NESTS)
def test_nesting_equals_scan(nest):
    got = jax.jit(lambda: NESTS[nest](partial(scalar, Fused())))()
    grid.assert_close(got, jax.jit(lambda: NESTS[nest](partial(scalar, grid.ORACLE)))())


# What a kernel is asked

CALLS: list[tuple] = []


class Recorder(Reference):
    """The reference, which writes down what it is asked, and answers zero where what it kept was lost."""

    reason: str | None = eqx.field(static=True, default=None)

    def refusal(self, pointwise: Pointwise, weights: Weights) -> str | None:
        del pointwise
        assert {leaf.shape[0] for leaf in weights} == {1}
        return self.reason

    def keeps(self, pointwise: Pointwise, weights: Weights) -> int:
        del pointwise, weights
        return 2

    def forward(
        self, pointwise: Pointwise, weights: Weights, sequences: Sequences, keep: int, seen: tuple[bool, ...]
    ) -> Trajectory:
        assert {leaf.dtype for leaf in (weights.W, weights.b, weights.R, sequences.xs)} == {weights.W.dtype}
        assert {leaf.dtype for leaf in (weights.gains, weights.initial, sequences.state)} == {carried(weights)}
        assert sequences.length is None or sequences.length.dtype == jnp.int32
        CALLS.append(("forward", *sequences.xs.shape[:2], keep))
        trajectory = super().forward(pointwise, weights, sequences, keep, seen)
        return trajectory._replace(kept=jnp.ones_like(trajectory.kept))

    def backward(
        self,
        pointwise: Pointwise,
        weights: Weights,
        sequences: Sequences,
        trajectory: Trajectory,
        dstates: tuple[Array | None, ...],
        dlast: Array | None,
        wanted: Cotangents,
    ) -> Cotangents:
        given = tuple(cotangent is not None for cotangent in (*dstates, dlast))
        names = [name for name, want in wanted.weights._asdict().items() if want]
        names += [name for name in ("xs", "state") if getattr(wanted, name)]
        CALLS.append(("backward", *sequences.xs.shape[:2], *names, given))
        made = super().backward(pointwise, weights, sequences, trajectory, dstates, dlast, wanted)
        return jax.tree.map(lambda leaf: leaf * trajectory.kept[0, 0, 0, 1, 0].astype(leaf.dtype), made)


RECORDED = partial(scalar, Fused(Recorder()))
BOTH = (True, True)
LSTM = grid.build("lstm")


def ys_of(part: PyTree, xs: Array) -> Array:
    """A loss on the outputs of an LSTM, which do not show its field `c`."""
    return rnnjax.unroll(part, None, xs, engine=Fused(Recorder()))[1].sum()


def last_of(part: PyTree, xs: Array) -> Array:
    return rnnjax.unroll(part, None, xs, engine=Fused(Recorder()))[0].c.sum()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: over_batch(RECORDED)(ALL, *BATCH), [("forward", 1, B, 0)]),
        (
            lambda: jax.grad(total(over_batch(RECORDED)))(ALL, *BATCH),
            [("forward", 1, B, 2), ("backward", 1, B, "W", "b", "R", "gains", "initial", "state", BOTH)],
        ),
        (
            lambda: over_batch(jax.grad(RECORDED))(SOME, *BATCH),
            [("forward", 1, B, 2), ("backward", B, 1, "R", "gains", BOTH)],
        ),
        (
            lambda: over_batch(jax.grad(RECORDED, (1, 2)))(SOME, *BATCH),
            [("forward", 1, B, 2), ("backward", 1, B, "xs", "state", BOTH)],
        ),
        (
            lambda: jax.grad(total(over_members(over_batch(RECORDED))))(members(SOME), *BATCH),
            [("forward", 3, B, 2), ("backward", 3, B, "R", "gains", BOTH)],
        ),
        (
            lambda: over_members(over_batch(jax.grad(RECORDED)))(members(SOME), *BATCH),
            [("forward", 3, B, 2), ("backward", 3 * B, 1, "R", "gains", BOTH)],
        ),
        (
            lambda: jax.grad(lambda xs: ys_of(LSTM, xs))(BATCH[1][0]),
            [("forward", 1, 1, 2), ("backward", 1, 1, "xs", (True, False, False))],
        ),
        (
            lambda: jax.grad(lambda xs: last_of(LSTM, xs))(BATCH[1][0]),
            [("forward", 1, 1, 2), ("backward", 1, 1, "xs", (False, False, True))],
        ),
    ],
)
def test_a_kernel_is_asked_once_and_for_no_more_than_is_wanted(function, expected):
    CALLS.clear()
    jax.jit(function).lower()
    assert expected == CALLS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_dtypes(dtype):
    cell, xs = grid.build("lstm_options", dtype), grid.inputs(grid.T, dtype=dtype)
    got = eqx.filter_jit(grid.values_and_gradients)(cell, xs, Fused(Recorder()))
    grid.assert_close(got, grid.expected_rounded("lstm_options", dtype), dtype)


def largest(function: Any, *arguments: Any) -> int:
    """The number of entries of the largest array in the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return max(int(np.prod([int(size) for size in found.split(",")])) for found in re.findall(r"f64\[([\d,]+)\]", text))


def test_no_weight_gradient_of_each_sequence_is_made():
    cell = LSTM
    state, xs = grid.random_state(cell, 9), grid.inputs(9, 3)
    run = lambda cell, state, xs: grid.contract(rnnjax.unroll(cell, state, xs, engine=Fused()))  # noqa: E731
    batched = lambda cell: jax.vmap(partial(run, cell))(state, xs).sum()  # noqa: E731
    per_sequence = 9 * cell.recurrent_weight.size
    assert largest(jax.grad(batched), cell) < per_sequence
    assert largest(jax.vmap(jax.grad(run), (None, 0, 0)), cell, state, xs) == per_sequence


# Which kernel runs, and which does not


class OwnStep(rnnjax.Elman):
    def step(self, state: Any, u: Array) -> Any:
        return super().step(state, u)


def elman(**changed: Any) -> rnnjax.Elman:
    cell = rnnjax.Elman(I, H, key=grid.KEY)
    return eqx.tree_at(
        lambda cell: [getattr(cell, name) for name in changed],
        cell,
        list(changed.values()),
        is_leaf=lambda leaf: leaf is None,
    )


@pytest.mark.parametrize(
    ("engine", "cell", "sentence"),
    [
        (Fused(), grid.build("gru"), None),
        (Fused(Recorder()), grid.build("gru"), None),
        (Fused(), grid.build("min_gru"), "Fused cannot run MinGRU: it needs an AbstractGatedCell. Use Scan()."),
        (
            Fused(),
            OwnStep(I, H, key=grid.KEY),
            "Fused cannot run OwnStep: `step` is its own, and no kernel would call it. Use Scan().",
        ),
        (
            Fused(),
            elman(recurrent_weight=jnp.zeros((1, H, 1, H), jnp.bfloat16)),
            "Fused cannot run Elman: its weights are bfloat16 and float32, and kernels take one of "
            "float64, float32, bfloat16, float16. Use Scan().",
        ),
        (
            Fused(),
            elman(gains=jnp.ones(())),
            "Fused cannot run Elman: not all its gains and states are vectors of 8 units. Use Scan().",
        ),
        (
            Fused(Recorder(reason="The recorder cannot run GRU: it is tired. Use Scan()."), cuda=None, tpu=None),
            grid.build("gru"),
            "Fused has no kernel for GRU. The recorder cannot run GRU: it is tired. Use Scan().",
        ),
    ],
)
def test_refusal(engine, cell, sentence):
    assert engine.refusal(cell, grid.inputs(T)) == sentence


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Explicit,))
    xs = jax.device_put(grid.inputs(T), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert "explicit axes" in str(Fused().refusal(grid.build("gru"), xs))


def test_a_platform_without_a_kernel_runs_the_reference():
    cell = grid.build("gru")
    pointwise, weights = Pointwise.of(cell), draw(shapes(cell)[0], 1)
    sequences = Sequences(*draw(shapes(cell)[1:], 2), None, None)
    CALLS.clear()
    got = jax.jit(lambda: recurrence.run(pointwise, (("tpu", Recorder()),), weights, sequences))()
    assert CALLS == []  # the kernel of another platform is not even traced
    assert got.kept.shape == (S, B, T, 0, H)
    grid.assert_close(got, Reference().forward(pointwise, weights, sequences, 0, (True,) * pointwise.fields))


# Corners


@pytest.mark.parametrize("law", ["length_zero_is_identity", "padding_is_ignored", "everything_composes"])
def test_law_of_the_reference(law):
    run = eqx.filter_jit(partial(rnnjax.unroll, engine=Fused(cpu=None, cuda=None, tpu=None)))
    getattr(laws, f"law_{law}")(run, grid.build("gru"))


def test_without_jit():
    xs = BATCH[1][:, :2]
    gradient = jax.vmap(jax.grad(lambda xs: last_of(LSTM, xs)))
    grid.assert_close(gradient(xs), jax.jit(gradient)(xs))
    with jax.disable_jit():
        value = last_of(LSTM, xs[0])
    grid.assert_close(value, last_of(LSTM, xs[0]))


def test_no_sequences_and_no_members():
    f = partial(scalar, Fused())
    none, nobody = jax.tree.map(lambda leaf: leaf[:0], (BATCH, members(SOME)))
    grid.assert_close(jax.jit(jax.grad(total(over_batch(f))))(SOME, *none), jax.tree.map(jnp.zeros_like, SOME))
    each = jax.jit(over_members(over_batch(jax.grad(f))))
    assert each(members(SOME), *none)["gains"].shape == (3, 0, 4)
    assert each(nobody, *BATCH)["gains"].shape == (0, B, 4)


def test_weights_may_be_numpy_arrays():
    cell = grid.build("gru")
    loaded = jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, cell)
    run = partial(rnnjax.unroll, state=None, xs=grid.inputs(T), engine=Fused())
    grid.assert_close(run(loaded), run(cell))


def test_shared_weights_and_a_sharded_batch():
    """`jax.shard_map` sums the gradients of what the devices share."""
    script = Path(sharded_run.__file__)
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    settings = {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", str(script)], env=os.environ | settings, check=True)
