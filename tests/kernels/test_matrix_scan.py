"""The matrix-state recurrence as a primitive: its kernel at any shape, nested transformations, compiled programs."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grid
import jax
import jax.numpy as jnp
import matrix_scans
import numpy as np
import pytest
from kernel import needs_kernel
from matrix_scans import TOGETHER, by_kernel, draw

import rnnjax
from rnnjax.cells import MatrixRecurrence, Transition
from rnnjax.engines import Chunked
from rnnjax.kernels.matrix_scan import cpu, reference
from rnnjax.kernels.matrix_scan.contract import Operands
from rnnjax.kernels.matrix_scan.primitive import matrix_scan
from rnnjax.kernels.native import library

HELPERS = Path(matrix_scans.__file__).parent
pytestmark = needs_kernel


# The kernel against the loop


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(TOGETHER, 300, TOGETHER))]
)
def test_random_shapes(first):
    """Every instruction set in both dtypes; many in a program, whose calls share the cores."""
    for case, made in by_kernel(map(draw, range(first, first + TOGETHER))):
        assert max(matrix_scans.errors(case, made)) <= 1, case.title


def sized(B: int, T: int, N: int, K: int, V: int, dtype: str = "float64", **options: Any) -> Operands:
    """Operands of these sizes, with an erase that has a key of its own."""
    generator = np.random.default_rng(0)
    normal: Any = lambda *shape: generator.normal(size=shape).astype(dtype)  # noqa: E731
    decay: Any = generator.uniform(0.9, 1, (B, T, N, K)).astype(dtype)
    keys = [(normal(B, T, N, K) / np.sqrt(K)).astype(dtype) for _ in range(4)]
    steps = Transition(decay, keys[0], normal(B, T, N, V), *keys[1:])
    return Operands(steps, normal(B, N, K, V), None, None, None)._replace(**options)


SIZES = {
    "no steps": (2, 0, 1, 3, 4),
    "no sequences": (0, 3, 1, 3, 4),
    "strips of one vector": (1, 9, 1, 150, 70),
    "several borders": (3, 300, 3, 70, 37),
    "many heads": (3, 5, 4, 2, 200),
}


def test_sizes_at_which_the_work_is_divided_in_another_way():
    cases = []
    for number, sizes in enumerate(SIZES.values()):
        operands = sized(*sizes)
        case = draw(number)._replace(title=str(sizes), operands=operands, needs_gradient=(True,) * 7)
        cases.append(case._replace(dys=np.cos(operands.steps.value), dlast=np.sin(operands.state)))
    for case, made in by_kernel(cases):
        assert max(matrix_scans.errors(case, made)) <= 1, case.title


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 1, 2, 6), (7, 8, 12, 13), (14, 18, 19, 20)])
def test_plain_chunks_equal_the_loop(seeds):
    """What runs on other platforms, and in forward mode: the same problems in float64, in chunks of four steps."""
    cases = [draw(seed, most=14) for seed in seeds]

    def run(operands: Operands, dys: Any, dlast: Any, *, reads_before: bool) -> Any:
        scan = jax.vmap(partial(reference.scan, reads_before=reads_before, size=4))
        marks = {"resets": operands.resets, "length": operands.length}
        results, transpose = jax.vjp(lambda each: scan(each._replace(**marks)), matrix_scans.numbers(operands))
        return results, transpose((dys, dlast))

    problems = [(case.operands, case.dys, case.dlast) for case in cases]
    runs = [partial(run, reads_before=case.reads_before) for case in cases]
    made = jax.jit(lambda given: [run(*each) for run, each in zip(runs, given, strict=True)])(problems)
    for case, found in zip(cases, made, strict=True):
        assert max(matrix_scans.errors(case._replace(needs_gradient=(True,) * 8), found)) <= 1, case.title


def test_float32_is_accurate_over_4096_steps():
    wide = sized(1, 4096, 2, 16, 8)
    keys = wide.steps.key / np.linalg.norm(wide.steps.key, axis=-1, keepdims=True)  # a delta rule, which does not grow
    wide = wide._replace(steps=wide.steps._replace(key=keys, erase=wide.steps.decay * keys, erase_key=None))
    narrow = jax.tree.map(lambda leaf: leaf.astype("float32"), wide)
    run = partial(draw(0)._replace(reads_before=False, needs_gradient=(True,) * 6).run)
    both = jax.jit(lambda *given: [run(*each) for each in given])
    exact, rounded = both((wide, wide.steps.value, wide.state), (narrow, narrow.steps.value, narrow.state))
    for one, other in zip(*(map(np.asarray, jax.tree.leaves(each)) for each in (rounded, exact)), strict=True):
        assert one.dtype == "float32"
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()


# Transformations


def single() -> Operands:
    """Of one sequence, with every array that there may be."""
    operands = sized(1, 5, 2, 3, 4)
    start, flags = np.cos(operands.state), np.asarray([[False, True, False, False, True]])
    return jax.tree.map(lambda leaf: leaf[0], operands._replace(start=start, resets=flags))


def numbers(operands: Operands) -> list[Any]:
    return jax.tree.leaves(operands._replace(resets=None))


def total(scan: Callable[..., Any], resets: Any, *leaves: Any) -> Any:
    """A loss on all that a run gives, by its leaves."""
    form = jax.tree.structure(single()._replace(resets=None))
    ys, last = scan(jax.tree.unflatten(form, leaves)._replace(resets=resets))
    return jnp.sin(ys).sum() + (jnp.cos(last) * last).sum()


EVERY = tuple(range(8))


def mapped(loss: Any, axes: Any) -> Any:
    return lambda *leaves: jax.vmap(loss, axes)(*leaves).sum()


def first_order(scan: Any, leaves: list[Any], resets: Any) -> dict[str, Any]:
    loss = partial(total, scan, resets)
    two = [jnp.stack([leaf, 0.5 * leaf], leaf.ndim) for leaf in leaves]
    axes = [2 if number in (0, 2) else None for number in EVERY]  # in the middle, and of some operands alone
    some = [jnp.moveaxis(pair, -1, 2) if axis else leaf for pair, leaf, axis in zip(two, leaves, axes, strict=True)]
    return {
        "grad of vmap": jax.grad(mapped(loss, -1), EVERY)(*two),
        "vmap of grad": jax.vmap(jax.grad(jax.checkpoint(loss), EVERY), axes)(*some),
        "vmap of resets": jax.vmap(lambda flags: jax.grad(partial(total, scan, flags), 2)(*leaves))(
            jnp.stack([resets, ~resets])
        ),
        "vmap of lengths": jax.vmap(
            lambda length: jax.grad(partial(total, lambda it: scan(it._replace(length=length)), resets), 2)(*leaves)
        )(jnp.arange(3, dtype="int32")),
        "jvp of one": jax.jvp(lambda key: loss(leaves[0], key, *leaves[2:]), leaves[1:2], leaves[3:4]),
    }


def second_order(scan: Any, leaves: list[Any], resets: Any) -> dict[str, Any]:
    loss = partial(total, scan, resets)
    turned = [jnp.sin(leaf) for leaf in leaves]
    return {
        "forward over reverse": jax.jvp(jax.grad(loss, EVERY), tuple(leaves), tuple(turned)),
        "reverse over reverse": jax.grad(lambda *leaves: jnp.sin(jax.grad(loss, 1)(*leaves)).sum(), EVERY)(*leaves),
        "hessian": jax.hessian(loss, 7)(*leaves),
    }


@pytest.mark.parametrize("nests", [first_order, pytest.param(second_order, marks=pytest.mark.slow)])
def test_every_nest_equals_that_of_plain_jax(nests):
    def both(leaves: list[Any], resets: Any) -> Any:
        plain = partial(reference.scan, reads_before=True, size=2)
        return [nests(scan, leaves, resets) for scan in (partial(matrix_scan, reads_before=True, size=2), plain)]

    operands = single()
    by_primitive, by_plain = jax.jit(both)(numbers(operands), operands.resets)
    for name, made in by_primitive.items():
        grid.assert_close(made, by_plain[name])


def test_the_gradient_under_shard_map():
    """Of a sequence on each device, which share the decays."""
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    part, shared = jax.P("device"), jax.P()
    operands = sized(1, 5, 2, 3, 4)
    leaves = jax.tree.leaves(operands)

    def gradient(decay: Any, *others: Any) -> Any:
        loss = lambda decay, *others: total(  # noqa: E731
            partial(matrix_scan, reads_before=False, size=4), None, decay, *others, jnp.zeros_like(others[-1])
        )
        run = lambda decay, *others: jax.vmap(loss, (None, *[0] * 6))(decay, *others).sum()  # noqa: E731
        return jax.grad(run, tuple(range(7)))(decay, *others)

    specs = (shared, *[part] * 6)
    made = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs))(leaves[0][0], *leaves[1:])
    grid.assert_close(made, jax.jit(gradient)(leaves[0][0], *leaves[1:]))


# Compiled programs


def batch(dtype: str = "float32", T: int = 40) -> tuple[MatrixRecurrence, Any]:
    cell = MatrixRecurrence(2, 8, 8, erases=True, dtype=dtype)
    return cell, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, T, *leaf.shape), leaf.dtype), cell.input_type())


def gradient_of(cell: MatrixRecurrence, engine: Any) -> Any:
    run = lambda xs: rnnjax.unroll(cell, None, xs, engine=engine)[1]  # noqa: E731
    return jax.grad(lambda xs: jnp.abs(jax.vmap(run)(xs)).sum())


def targets(text: str) -> list[str]:
    """The entry points of the compiled library that a program calls."""
    return re.findall(r'"?(rnnjax_\w+)_v\d+"?', text)


HALVES = ["rnnjax_matrix_scan", "rnnjax_matrix_scan_backward"]


@pytest.mark.parametrize("engine", [Chunked(), rnnjax.Auto()])
def test_a_gradient_is_one_call_of_each_half_and_no_loop(engine):
    cell, xs = batch()
    text: Any = jax.jit(gradient_of(cell, engine)).lower(xs).compile().as_text()
    assert sorted(re.findall(r'custom_call_target="(rnnjax_\w+)_v\d+"', text)) == HALVES
    assert " while(" not in text


def test_what_is_not_mapped_runs_once():
    cell, xs = batch()
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), xs)
    run = lambda factor: factor * rnnjax.unroll(cell, None, one, engine=Chunked())[1]  # noqa: E731
    text = str(jax.make_jaxpr(jax.vmap(run))(jnp.ones(7, "float32")))
    (sequences,) = re.findall(r"\w+:f\d+\[(\d+),[\d,]+\] = matrix_scan\[", text)
    assert sequences == "1"


def test_other_platforms_complex_numbers_and_exports_run_plain_chunks():
    cell, xs = batch()
    traced = jax.jit(gradient_of(cell, Chunked(8))).trace(xs)
    for platform in ("cuda", "tpu", "rocm"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (targets(text), "stablehlo.while" in text) == ([], True)
    exported = jax.export.export(jax.jit(gradient_of(cell, Chunked(8))))(xs).mlir_module()
    assert (targets(exported), "stablehlo.while" in exported) == ([], True)
    cell, xs = batch("complex64")
    assert targets(jax.jit(gradient_of(cell, Chunked(8))).lower(xs).as_text()) == []


def test_plain_gradients_store_one_state_for_each_chunk(monkeypatch):
    """Of 256 steps of 4 heads of 32 by 32, all states are 4 MiB."""
    monkeypatch.setattr(cpu, "is_here_for", lambda _: False)
    cell = MatrixRecurrence(4, 32, 32, scalar_decay=True)
    xs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((256, *leaf.shape), leaf.dtype), cell.input_type())
    loss = lambda xs: rnnjax.unroll(cell, None, xs, engine=Chunked())[1].sum()  # noqa: E731
    analysis: Any = jax.jit(jax.grad(loss)).lower(xs).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 256 * 4 * 32 * 32 * 4 / 2


def test_auto_takes_it_where_the_kernel_runs_it(monkeypatch):
    cell, xs = batch()
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    auto = rnnjax.Auto()
    assert str(auto.plan(cell, one)) == str(Chunked().plan(cell, one))
    assert "compiled recurrence on CPUs; GPUs and TPUs by matrix products" in str(auto.plan(cell, one))
    short = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), one)
    assert "Scan" in str(auto.plan(cell, short))
    assert grid.refusal(Chunked(min_steps=4), cell, short) == (
        "Chunked(min_steps=4) does not run 2 steps of MatrixRecurrence. Use Scan()."
    )
    monkeypatch.setattr(cpu, "is_here_for", lambda _: False)
    assert "Scan" in str(auto.plan(cell, one))
    assert str(Chunked().plan(cell, one)).startswith("Chunked: matrix products in chunks of 64 steps")
    assert "there is no compiled recurrence for it" in (grid.refusal(Chunked(needs_kernel=True), cell, one) or "")


# Misuse of the entry points


def call(operands: Operands, types: list[Any], half: str, *more: Any) -> Any:
    made = jax.ffi.ffi_call(library.custom_call(half), types)
    arrays = [
        np.zeros((0,), {8: bool, 9: "int32"}.get(n, "float32")) if leaf is None else leaf
        for n, leaf in enumerate([*operands.steps, *operands[1:]])
    ]
    return jax.block_until_ready(made(*arrays, *more, reads_before=False, max_instruction_set=np.int32(3)))


FAULTS: dict[str, tuple[Callable[[Operands], Operands], str]] = {
    "a key of another size": (
        lambda it: it._replace(steps=it.steps._replace(key=it.steps.key[..., :2])),
        "the shape or dtype of key",
    ),
    "a decay of another dtype": (
        lambda it: it._replace(steps=it.steps._replace(decay=it.steps.decay.astype("float64"))),
        "the shape or dtype of",
    ),
    "integers": (lambda it: jax.tree.map(lambda leaf: leaf.astype("int32"), it), "expected float32 or float64"),
    "a key of nothing": (lambda it: it._replace(steps=it.steps._replace(erase=None)), "expected an erase with its key"),
    "states of another rank": (lambda it: it._replace(state=it.state[0]), "expected other ranks"),
    "lengths of another dtype": (lambda it: it._replace(length=np.zeros(1, "int64")), "the shape or dtype of length"),
    "resets of another length": (lambda it: it._replace(resets=np.zeros((1, 4), bool)), "the shape or dtype of resets"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_call_of_what_does_not_fit_is_an_error(name):
    spoil, message = FAULTS[name]
    operands = sized(1, 5, 2, 3, 4, "float32")
    types = [jax.ShapeDtypeStruct(leaf.shape, "float32") for leaf in (operands.steps.value, operands.state)]
    call(operands, types, HALVES[0])
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
        call(spoil(operands), types, HALVES[0])
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="the shape or dtype of last"):
        call(operands, [types[0], types[0]], HALVES[0])


def test_missing_and_extra_buffers_are_an_error():
    operands = sized(1, 5, 2, 3, 4, "float32")
    ys, last = (jax.ShapeDtypeStruct(leaf.shape, "float32") for leaf in (operands.steps.value, operands.state))
    for types, more, message in [
        ([ys], (), "expected a buffer for last"),
        ([ys, last], (operands.state,), "more buffers than expected"),
        ([ys, last, last], (), "more buffers than expected"),
    ]:
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
            call(operands, types, HALVES[0], *more)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="expected a buffer for dys"):
        call(operands, [ys], HALVES[1])


@pytest.mark.slow
def test_the_same_bits_by_one_thread_and_by_several():
    def digest(threads: int) -> str:
        command = [sys.executable, str(HELPERS / "matrix_bits_run.py")]
        ended = subprocess.run(command, env=os.environ | {"NPROC": str(threads)}, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert digest(1) == digest(2) == digest(2)
