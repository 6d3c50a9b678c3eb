"""The diagonal linear recurrence: its kernels, in the interpreters, and all that JAX does with its primitive."""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxtyping import Array, PyTree
from linear_scans import WAYS, assert_same, by_loop, draw, gradients_by_loop, operands

import rnnjax
from rnnjax.kernels.linear_scan import cpu, gpu, reference, tpu
from rnnjax.kernels.linear_scan.primitive import linear_scan, linear_scan_p
from rnnjax.kernels.pallas import tpu as pallas_tpu
from rnnjax.marks import Marks


def watching_for_races(*arguments: Any, **ways: bool) -> Array:
    interpreter = pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    return tpu.scan(*arguments, **ways, interpret=interpreter)


SCANS: dict[str, Callable[..., Array]] = {
    "cpu": cpu.scan,
    "plain": partial(reference.scan, block=10_000),
    "blocks": partial(reference.scan, block=7),
    "cuda": partial(gpu.scan, interpret=True),
    "tpu": partial(tpu.scan, interpret=True),
    "tpu_races": watching_for_races,
}

FORWARD, REVERSE = "rnnjax_linear_scan", "rnnjax_linear_scan_reverse"
WITH_PALLAS = partial(linear_scan, pallas=True)
DEVICE = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")  # to lower for, where there is none


@pytest.fixture
def small(monkeypatch):
    """Windows of few steps, which the interpreter is quick to compile, and blocks of which small arrays need many."""
    monkeypatch.setattr(gpu, "WINDOW", 32)
    monkeypatch.setattr(tpu, "BLOCK", 2**13)
    monkeypatch.setattr(tpu, "WIDEST", tpu.LANES)


DTYPES = "float32", "complex64"
SIZES = [(1, 1, 1, 1), (1, 3, 2, 7), (1, 1, 1000, 33), (2, 2, 37, 129), (1, 2, 127, 5), (9, 9, 3, 133)]
FEW = SIZES[-2:]  # for the interpreter that looks for races, which takes its time
QUICK = {name: [(2, 2, 37, 129), (1, 2, 127, 5)] for name in SCANS} | {"tpu_races": [(9, 9, 3, 133)]}
CASES = [
    pytest.param(
        name, size, id=f"{name}-{'-'.join(map(str, size))}", marks=[] if size in QUICK[name] else pytest.mark.slow
    )
    for name in SCANS
    for size in (FEW if name == "tpu_races" else SIZES)
]


def with_zeros_and_nan(A: int, B: int, T: int, H: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands with NaN, which lasts until a zero in `a` forgets it."""
    a, b, initial = operands(A, B, T, H, dtype)
    a[:, T // 2, ::2] = 0
    b[:, T // 4, ::3] = b[:, T - 1 - T // 4, ::3] = np.nan
    return a, b, initial


def ways(T: int, dtype: str) -> list[tuple[bool, bool]]:
    """Two of four, in turn."""
    return [WAYS[(T + turn + (dtype == "complex64")) % 4] for turn in (0, 2)]


@lru_cache
def states(name: str, size: tuple[int, int, int, int]) -> dict[tuple[str, bool, bool], Array]:
    """What an implementation gives in each dtype and way: one program, if its interpreter bears more than a kernel."""
    given = {dtype: with_zeros_and_nan(*size, dtype) for dtype in DTYPES}
    asked = [(dtype, *way) for dtype in DTYPES for way in ways(size[2], dtype)]

    def run(asked: list[tuple[str, bool, bool]], given: dict[str, tuple[Array, Array, Array]]) -> list[Array]:
        return [SCANS[name](*given[dtype], reverse=reverse, late=late) for dtype, reverse, late in asked]

    programs = [[each] for each in asked] if name == "tpu_races" else [asked]
    made = [state for program in programs for state in jax.jit(partial(run, program))(given)]
    return dict(zip(asked, jax.block_until_ready(made), strict=True))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "size"), CASES)
def test_states_are_those_of_a_loop(name, size, dtype):
    """Of odd sizes, of many blocks of time and tiles of units, and with NaN."""
    if name == "cpu" and not cpu.is_here():
        pytest.skip("the library was not built")
    for reverse, late in ways(size[2], dtype):
        with np.errstate(invalid="ignore"):
            expected = by_loop(*with_zeros_and_nan(*size, dtype), reverse=reverse, late=late)
        assert_same(states(name, size)[dtype, reverse, late], expected)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("reverse", "late"), [pytest.param(*way, marks=[] if way[0] == way[1] else pytest.mark.slow) for way in WAYS]
)
def test_chunks_of_time_change_nothing(monkeypatch, reverse, late):
    """What a product of `a` that underflows hands on is nothing of what is finite, but NaN it does hand on."""
    monkeypatch.setattr(gpu, "SHORTEST", 9)
    a, b, initial = operands(1, 3, 47, 5, "complex64")
    a[:, :, 1] = 1e-20
    a[:, 22, 2:4] = 0
    b[:, 3, 1:3] = b[:, 43, 1:3] = np.nan  # in other chunks than the zero
    assert gpu._length(b[:, 0].size, 47) == 10  # no multiple of a window, and the last chunk is shorter
    with np.errstate(invalid="ignore"):
        expected = by_loop(a, b, initial, reverse=reverse, late=late)
    assert_same(jax.jit(partial(SCANS["cuda"], reverse=reverse, late=late))(a, b, initial), expected)


def test_chunks_are_made_where_they_pay():
    assert gpu._length(8 * 1536, 4096) == 4096
    assert gpu._length(4096, 4096) == 4096
    assert gpu._length(1536, 1000) == 1000
    assert gpu._length(1024, 8192) == 1024
    assert gpu._length(1, 2**20) == 512


def test_shared_a_is_the_row_of_all():
    """The interpreter would not tell: it reads what is nearest to a block that there is not."""
    assert gpu._block((1, 5, 7), 3).index_map(1, 2, 0) == (0, 0, 1)
    assert gpu._block((3, 5, 7), 3).index_map(1, 2, 0) == (2, 0, 1)


# Derivatives and batches, against the same by `jax.lax.scan`


def by_steps(a: Array, b: Array, initial: Array, *, reverse: bool = False) -> Array:
    """What `linear_scan` is."""

    def step(before: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        after = inputs[0] * before + inputs[1]
        return after, after

    return jax.lax.scan(step, initial, (a, b), reverse=reverse)[1]


STEPS, QUICK_STEPS = (1, 2, 3, 127, 1000, 16323), (1, 2, 127, 16323)
BLOCKS = (None, 100)  # the kernel of the platform, and plain JAX
BARS = {"float64": 1e-10, "complex128": 1e-10, "float32": 1e-5, "complex64": 1e-5}  # relative to the largest number


def with_gradient(scan: Any, a: Array, b: Array, initial: Array) -> PyTree:
    """All states, and the gradient of a loss that sees all of them, by all operands."""

    def loss(*operands: Array) -> tuple[Array, Array]:
        h = scan(*operands)
        return grid.contract(h), h

    gradients, h = jax.grad(loss, (0, 1, 2), has_aux=True)(a, b, initial)
    return h, gradients


def with_zeros(T: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands of which zeros in `a` fall inside blocks."""
    a, b, initial = operands(1, 1, T, 5, dtype)
    a[0, T // 2, ::2] = a[0, T - 1 - T // 7, 1] = 0
    return a, b, initial


def is_reverse(T: int) -> bool:
    return T % 2 == 0


@lru_cache
def of_all_blocks(T: int) -> dict[str, list[PyTree]]:
    """Values and gradients in every dtype, by each block, as one program."""
    scans = [partial(linear_scan, reverse=is_reverse(T), block=block) for block in BLOCKS]

    @jax.jit
    def run(given: dict[str, list[Array]]) -> dict[str, list[PyTree]]:
        return {dtype: [with_gradient(scan, *each) for scan in scans] for dtype, each in given.items()}

    return run({dtype: [each[0] for each in with_zeros(T, dtype)] for dtype in BARS})


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("T", [pytest.param(T, marks=[] if T in QUICK_STEPS else pytest.mark.slow) for T in STEPS])
def test_values_and_gradients_of_any_length(T, dtype):
    """The last block is short, too."""
    exact = with_zeros(T, dtype)
    expected = gradients_by_loop(*exact, grid.contraction(exact[1]), reverse=is_reverse(T))
    for got in of_all_blocks(T)[dtype]:
        for one, (other,) in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert one.dtype == dtype
            np.testing.assert_allclose(one, other, rtol=0, atol=BARS[dtype] * np.abs(other).max())


T, H, B = 5, 3, 4


class Operands(NamedTuple):
    """Of one sequence, or of a batch."""

    a: np.ndarray
    b: np.ndarray
    initial: np.ndarray


@lru_cache
def sequence() -> Operands:
    return Operands(*(each[0] for each in operands(1, 1, T, H)))


@lru_cache
def batch() -> Operands:
    """Each of its sequences with an `a` of its own."""
    return Operands(*operands(B, B, T, H))


def total(scan: Any) -> Any:
    return lambda *arguments: jnp.sin(scan(*arguments)).sum()


NESTS: dict[str, Callable[[Any, Operands, Operands], PyTree]] = {
    "b_mapped": lambda scan, one, many: jax.vmap(scan, (None, 0, None))(one.a, many.b, one.initial),
    "a_mapped": lambda scan, one, many: jax.vmap(scan, (0, None, None))(many.a, one.b, one.initial),
    "initial_mapped": lambda scan, one, many: jax.vmap(scan, (None, None, 1), 1)(one.a, one.b, many.initial.T),
    "grad": lambda scan, one, _: jax.grad(total(scan), (0, 1, 2))(*one),
    "grad_of_vmap": lambda scan, one, many: jax.grad(total(jax.vmap(scan, (None, 0, 0))), (0, 1, 2))(
        one.a, many.b, many.initial
    ),
    "vmap_of_grad": lambda scan, one, many: jax.vmap(jax.grad(total(scan), (0, 1, 2)), (None, 0, None))(
        one.a, many.b, one.initial
    ),
    "vmap_of_vmap": lambda scan, _, many: jax.vmap(jax.vmap(scan, (None, 0, 0)), (0, None, None))(*many),
    "vmap_of_vmap_shared": lambda scan, one, many: jax.vmap(jax.vmap(scan, (None, 0, None)), (None, 2, 0), 2)(
        one.a, jnp.stack([many.b, -many.b], 2), jnp.stack([one.initial, 2 * one.initial])
    ),
    "a_mapped_once": lambda scan, _, many: jax.vmap(jax.vmap(scan), (None, 0, None))(
        many.a, jnp.stack([many.b] * 2), many.initial
    ),
    "hessian": lambda scan, one, _: jax.hessian(total(scan), (0, 1, 2))(*one),
    "reverse_of_reverse": lambda scan, one, _: jax.jacrev(jax.grad(total(scan), (0, 2)), (0, 1, 2))(*one),
    "jvp": lambda scan, _, many: jax.jvp(jax.vmap(scan), tuple(many), tuple(map(jnp.sin, many))),
    "jvp_of_b": lambda scan, one, _: jax.jvp(lambda b: scan(one.a, b, one.initial), (one.b,), (one.a,)),
    "remat": lambda scan, one, _: jax.grad(jax.checkpoint(total(scan)), (0, 1, 2))(*one),
    "grad_of_initial": lambda scan, one, _: jax.grad(lambda initial: total(scan)(one.a, one.b, initial))(one.initial),
}


@pytest.mark.parametrize(("nest", "reverse"), [(nest, number % 2 == 0) for number, nest in enumerate(NESTS)])
def test_nest_equals_steps(nest, reverse):
    scans = [partial(scan, reverse=reverse) for scan in (linear_scan, by_steps)]
    both = jax.jit(lambda one, many: [NESTS[nest](scan, one, many) for scan in scans])
    grid.assert_close(*both(sequence(), batch()))


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "complex128"])
def test_gradients_are_those_of_differences(dtype):
    """Of the first order and the second, in both modes."""
    arguments = [each[0] for each in operands(1, 1, 3, 1, dtype)]
    check_grads(jax.jit(partial(linear_scan, reverse=dtype == "float64")), arguments, order=2, rtol=1e-5)


@pytest.mark.parametrize(("reverse", "late"), WAYS)
def test_transpose_is_the_transpose(reverse, late):
    """`<tangent(t), c> == <t, transpose(c)>`, without conjugates, where `a` is zero too."""
    a, b, initial = operands(1, B, T, H, "complex128")
    a[:, 2, 1] = 0
    c = draw(B, T, H, dtype="complex128", seed=3)

    @jax.jit
    def both(a: Array, b: Array, initial: Array, c: Array) -> tuple[Array, PyTree]:
        static = {"reverse": reverse, "late": late, "block": None, "pallas": False}
        run = lambda b, initial: linear_scan_p.bind(a, b, initial, **static)  # noqa: E731
        return run(b, initial), jax.linear_transpose(run, b, initial)(c)

    h, (db, dinitial) = both(a, b, initial, c)
    forward, backward = np.vdot(c.conj(), h), np.vdot(b.conj(), db) + np.vdot(initial.conj(), dinitial)
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_forgotten_changes_no_gradient(bad):
    """Not the values after it and not their gradients, up to the second order."""
    a, b, initial = (each[0] for each in operands(1, 1, 9, H))
    a[4] = 0
    poisoned = b.copy()
    poisoned[2] = bad
    clean, value = derivatives_after_the_zero(a, b, initial), derivatives_after_the_zero(a, poisoned, initial)
    assert np.isfinite(value[0])
    np.testing.assert_allclose(clean[0], value[0])
    for one, other in zip(jax.tree.leaves(clean[1:]), jax.tree.leaves(value[1:]), strict=True):
        np.testing.assert_allclose(np.asarray(one)[5:], np.asarray(other)[5:])
    # The step that forgets what is finite would have been moved by it; what is not moves nothing.
    assert np.all(np.asarray(clean[1][0])[4] != 0)
    assert np.all(np.asarray(value[1][0])[4] == 0)


@jax.jit
def derivatives_after_the_zero(a: Array, b: Array, initial: Array) -> PyTree:
    """Of the states from step 4 on: a loss, its gradient, and how that moves."""

    def after(a: Array, b: Array) -> Array:
        return jnp.sin(linear_scan(a, b, initial)[4:]).sum()

    return after(a, b), *jax.jvp(jax.grad(after, (0, 1)), (a, b), (jnp.sin(a), jnp.cos(b)))


def mesh(kind: AxisType) -> Any:
    return jax.make_mesh((1,), ("device",), axis_types=(kind,))


@pytest.mark.parametrize("shared", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_gradient_under_shard_map(shared):
    """Of a loss that is summed over the devices, which share one of the operands."""
    pairs = zip(sequence(), batch(), strict=True)
    arguments = [each if number == shared else rows for number, (each, rows) in enumerate(pairs)]
    axes, parts = zip(*((None, P()) if number == shared else (0, P("device")) for number in range(3)), strict=True)

    def gradient(scan: Any, *arguments: Array) -> PyTree:
        return jax.grad(total(jax.vmap(scan, axes)), (0, 1, 2))(*arguments)

    def sharded(mesh: Any) -> Any:
        return jax.shard_map(partial(gradient, WITH_PALLAS), mesh=mesh, in_specs=parts, out_specs=parts)

    both = jax.jit(lambda *arguments: [sharded(mesh(AxisType.Auto))(*arguments), gradient(by_steps, *arguments)])
    grid.assert_close(*both(*arguments))
    elsewhere = AbstractMesh((1,), ("device",), (AxisType.Auto,), abstract_device=DEVICE)
    traced = jax.jit(sharded(elsewhere)).trace(*(argument.astype("float32") for argument in arguments))
    for platform in ("cuda", "tpu"):
        assert kernels(traced.lower(lowering_platforms=(platform,)).as_text()) == [FORWARD, REVERSE]


def test_batch_of_explicit_sharding():
    """What is not mapped is sharded as what is."""
    gradient = lambda scan: jax.grad(total(jax.vmap(scan, (None, 0, None))), (0, 1, 2))  # noqa: E731
    a, b, initial = sequence().a, batch().b, sequence().initial
    with jax.set_mesh(mesh(AxisType.Explicit)):
        rows = jax.sharding.reshard(b, P("device"))
        got = jax.jit(gradient(linear_scan))(a, rows, initial)
    grid.assert_close(got, jax.jit(gradient(by_steps))(a, b, initial))


def test_no_steps():
    assert jax.jit(linear_scan)(np.zeros((0, H)), np.zeros((0, H)), np.zeros(H)).shape == (0, H)


# The kernels are what is lowered


def lowered(function: Callable[..., Any], *arguments: Any, platforms: tuple[str, ...]) -> list[str]:
    """The kernels in `function`, one for each call; of no platform is there a device at hand."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=DEVICE)):
        return kernels(jax.jit(function).trace(*arguments).lower(lowering_platforms=platforms).as_text())


def kernels(text: str) -> list[str]:
    return sorted(re.findall(r'name = "(rnnjax_\w+)"', text))


def shapes(B: int, T: int, H: int, dtype: str) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in [(B, T, H), (B, T, H), (B, H)]]


def gradient(reverse: bool, scan: Callable[..., Array] = linear_scan) -> Callable[..., Any]:
    batched = jax.vmap(partial(scan, reverse=reverse))
    return jax.grad(lambda *arguments: jnp.abs(batched(*arguments)).sum(), (0, 1, 2))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kernel_is_lowered(platform, dtype):
    """A gradient is two calls, one in each direction."""
    arguments = shapes(3, 40, 50, dtype)
    assert lowered(jax.vmap(WITH_PALLAS), *arguments, platforms=(platform,)) == [FORWARD]
    assert lowered(gradient(True, WITH_PALLAS), *arguments, platforms=(platform,)) == [FORWARD, REVERSE]


def targets(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The entry points of the compiled library that the program calls."""
    return re.findall(r"custom_call @(rnnjax_\w+)_v\d+\(", jax.jit(function).lower(*arguments).as_text())


@pytest.fixture
def library():
    if not cpu.is_here():
        pytest.skip("the library was not built")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_compiled_code_is_called_on_a_cpu(dtype):
    """Once, or once in each direction; with a block never."""
    arguments = shapes(3, 40, 50, dtype)
    assert targets(jax.vmap(linear_scan), *arguments) == [FORWARD]
    assert targets(gradient(True), *arguments) == [FORWARD, FORWARD]
    assert targets(jax.vmap(partial(linear_scan, block=7)), *arguments) == []
    assert targets(gradient(True, partial(linear_scan, block=7)), *arguments) == []


@pytest.mark.usefixtures("library")
def test_the_compiler_adds_no_call():
    text = jax.jit(gradient(True)).lower(*shapes(3, 40, 50, "float32")).compile().as_text()
    assert re.findall(r'custom_call_target="(rnnjax_\w+)_v\d+"', text) == [FORWARD, FORWARD]


def test_engine_hands_its_block_on_to_derivatives_and_batches():
    cell, xs = grid.build("min_gru"), grid.inputs(3, 20)

    def loss(engine: Any, xs: Array) -> Array:
        return jax.vmap(lambda xs: grid.contract(rnnjax.unroll(cell, None, xs, engine=engine)))(xs).sum()

    assert targets(jax.grad(partial(loss, rnnjax.Associative(block=6))), xs) == []
    if cpu.is_here():
        assert targets(jax.grad(partial(loss, rnnjax.Associative())), xs) == [FORWARD, FORWARD]


@pytest.mark.parametrize("block", [10, pytest.param(100, marks=pytest.mark.slow), None])
def test_plain_memory_is_that_of_a_loop(monkeypatch, block):
    """A step fewer than a multiple of the block: beside `h`, no more than the copy of it that its rest is put to."""
    monkeypatch.setattr(cpu, "is_here", lambda: False)
    run = jax.jit(jax.vmap(partial(linear_scan, block=block))).lower(*shapes(2, 9_999, 16, "float32")).compile()
    memory = run.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1.8 * memory.output_size_in_bytes


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_plain_programs_do_not_grow_with_time(dtype):
    """From a thousand steps to a million, one level of blocks is added."""

    def size(T: int) -> int:
        run = jax.vmap(partial(linear_scan, block=reference.length(T)))
        return len(jax.jit(run).lower(*shapes(1, T, 8, dtype)).as_text().splitlines())

    assert size(1_000_003) < 2 * size(1_003)


def test_long_sequences_of_few_units_are_cut_on_cuda():
    names = [FORWARD, REVERSE, REVERSE + "_summary"]
    cut = jax.vmap(partial(WITH_PALLAS, reverse=True))
    assert lowered(cut, *shapes(1, 4096, 50, "float32"), platforms=("cuda",)) == names


def test_other_platforms_trace_no_kernel(monkeypatch):
    arguments = shapes(3, 40, 50, "float32")
    of_all = gradient(False, WITH_PALLAS)
    assert lowered(of_all, *arguments, platforms=("cpu", "cuda", "tpu")) == sorted([FORWARD, REVERSE] * 2)
    for platform in (gpu, tpu):
        monkeypatch.setattr(platform.pallas, "pallas_call", None)
    for platform, dtype in [("cpu", "float32"), ("rocm", "float32"), ("tpu", "float64"), ("cuda", "bfloat16")]:
        assert lowered(gradient(True, WITH_PALLAS), *shapes(3, 40, 50, dtype), platforms=(platform,)) == []


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_associative_runs_by_the_kernel(platform):
    cell = grid.build("min_gru", "float32")

    def loss(cell: Any, xs: Array, length: Array, resets: Array) -> Array:
        run = partial(rnnjax.unroll, cell, None, engine=rnnjax.Associative(pallas=True))
        return jax.vmap(lambda xs, length, resets: run(xs, length=length, resets=resets)[1])(xs, length, resets).sum()

    weights, static = eqx.partition(cell, eqx.is_inexact_array)
    of_weights = jax.grad(lambda weights, *rest: loss(eqx.combine(weights, static), *rest))
    arguments = grid.inputs(3, 6, dtype="float32"), np.asarray([6, 0, 2]), np.zeros((3, 6), bool)
    assert lowered(of_weights, weights, *arguments, platforms=(platform,)) == [FORWARD, REVERSE]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(("pallas", "names"), [(False, []), (True, [*[FORWARD] * 3, *[REVERSE] * 3])])
def test_a_part_of_time_runs_by_the_kernel_on_request(pallas, names, platform):
    """On each device: the part from zero, the maps of all parts, and the part again; its gradient likewise."""
    cell, engine = grid.build("min_gru", "float32"), rnnjax.Associative(pallas=pallas)
    elsewhere = AbstractMesh((2,), ("time",), (AxisType.Auto,), abstract_device=DEVICE)

    def run_part(xs: Array) -> Array:
        initial = cell.initial()
        return engine.plan(cell, xs, "time").run(cell, initial, xs, Marks(None, None, initial))[1].h

    run = jax.shard_map(run_part, mesh=elsewhere, in_specs=P("time"), out_specs=P("time"))
    traced = jax.jit(jax.grad(total(run))).trace(grid.inputs(6, dtype="float32"))
    assert kernels(traced.lower(lowering_platforms=(platform,)).as_text()) == names


def test_without_jit():
    a, b, initial = map(jax.device_put, (np.full((4, 3), 0.5), np.ones((4, 3)), np.zeros(3)))
    with jax.disable_jit():
        value = linear_scan(a, b, initial)
    np.testing.assert_array_equal(value, linear_scan(a, b, initial))
