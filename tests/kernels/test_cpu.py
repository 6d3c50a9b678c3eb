"""The CPU kernel itself: right at any shape, whatever is asked of it at once, and an error where it is misused."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cpu_faults
import crowded_run
import grid
import jax
import jax.numpy as jnp
import kernel_problems
import linear_scans
import numpy as np
import pytest
import random_shapes
from cpu_calls import ENTRIES
from cpu_faults import BLAMED, BLAMED_PREPARED, CHANGES, CORRUPT, LINEAR_SCAN, NO_CODE
from jax import ShapeDtypeStruct
from jaxtyping import Array, PyTree
from random_shapes import FACTORS, TOGETHER, Case, Sizes, draw, draw_at

import rnnjax
from rnnjax.engines.auto import AutoPlan
from rnnjax.engines.scan import ScanPlan
from rnnjax.kernels import InstructionSet
from rnnjax.kernels.linear_scan import cpu as linear_scan
from rnnjax.kernels.native import library
from rnnjax.kernels.recurrence import primitive
from rnnjax.kernels.recurrence.contract import Pointwise, Sequences, Weights
from rnnjax.kernels.recurrence.pointwise.operations import MEANINGS, NUMBERS
from rnnjax.kernels.recurrence.reference import Reference

HELPERS = Path(crowded_run.__file__).parent


# Against the oracle


def check(case: Case, *runs: Any) -> None:
    found = random_shapes.errors(case, *runs)
    assert not random_shapes.outside(case, found), (case.title, found)


def by_kernel(cases: dict[Any, Case]) -> dict[Any, tuple[Case, Any]]:
    """Each case, and what its kernel gives: all by one program."""
    made = random_shapes.by_kernel(*cases.values())
    return dict(zip(cases, zip(cases.values(), made, strict=True), strict=True))


# Of any two `FACTORS` every pair of values that there can be is in one of these.
PAIRS = (
    *(25, 40, 72, 73, 76, 113, 122, 141, 163, 232, 244, 262, 277, 297, 337, 343, 346, 354),
    *(374, 391, 417, 515, 610, 639, 651, 663, 772, 786, 788, 813, 842, 878, 903, 948, 962),
)


@pytest.mark.parametrize("seed", PAIRS)
def test_random_shape(seed):
    """A program of its own for each, so that its calls have all cores."""
    case = draw(seed)
    check(case, *random_shapes.by_kernel(case))


def test_every_pair_of_factors_is_in_a_random_shape():
    drawn = [random_shapes.factors(draw(seed)) for seed in PAIRS]
    for one, other in combinations(FACTORS, 2):
        there = {(case[one], case[other]) for case in drawn if one in case and other in case}
        missing = set(filter(random_shapes.possible, product(FACTORS[one], FACTORS[other]))) - there
        assert not missing, (one, other)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10 * TOGETHER, TOGETHER))
def test_random_shapes_together(first):
    """Many in a program, whose calls share the cores. The first 96 are all cells, dtypes and instruction sets."""
    for case, found in random_shapes.together(range(first, first + TOGETHER)):
        assert random_shapes.allowed(case, found), (case.title, found)


WIDE = Sizes(1, 3, 60, 4, 1, 160)  # a tile with work for several cores in each of its steps


@pytest.mark.parametrize("seed", [23, 19, 11], ids=["float64", "float32", "bfloat16"])
def test_sizes_of_a_tile_that_cores_share(seed):
    """Again and again: which core is late is chance."""
    case = draw_at(seed, WIDE)
    run = random_shapes.program([case])
    check(case, *(made for _ in range(20) for made in run([random_shapes.operands(case)])))


OF_REFERENCE = (25, 61, 69)


@lru_cache
def of_reference() -> dict[int, tuple[Case, Any]]:
    cases = {seed: draw_at(seed, Sizes(2, 3, 6, 4, 2, 5)) for seed in OF_REFERENCE}
    return by_kernel({seed: case._replace(kernel=Reference()) for seed, case in cases.items()})


@pytest.mark.parametrize("seed", OF_REFERENCE)
def test_the_oracle_is_the_reference(seed):
    check(*of_reference()[seed])


SMALL = [Sizes(2, 3, 0, 4, 1, 9), Sizes(2, 0, 5, 4, 1, 9), Sizes(2, 3, 5, 0, 1, 9), Sizes(1, 1, 1, 1, 1, 1)]
OF_SMALL = (13, 64, 71)


@lru_cache
def of_small() -> dict[tuple[int, Sizes], tuple[Case, Any]]:
    return by_kernel({(seed, sizes): draw_at(seed, sizes) for seed in OF_SMALL for sizes in SMALL})


@pytest.mark.parametrize("sizes", SMALL)
@pytest.mark.parametrize("seed", OF_SMALL)
def test_sizes_of_none_and_of_one(sizes, seed):
    check(*of_small()[seed, sizes])


T = 6
LENGTHS = {"none": [0, 0, 0, 0], "all": [T, T, T, T], "some": [0, T, 1, T - 1], "rising": [1, 2, 5, T]}
STEPS = np.arange(T)
RESETS = {"first": STEPS == 0, "last": STEPS == T - 1, "late": STEPS > 2, "all": STEPS >= 0}


def marked(seed: int, length: str, resets: str) -> Case:
    case = draw_at(seed, Sizes(2, 4, T, 3, 1, 5))
    marks = {
        "length": np.asarray([LENGTHS[length], LENGTHS[length][::-1]], np.int32),
        "resets": np.broadcast_to(RESETS[resets], (2, 4, T)),
    }
    return case._replace(sequences=case.sequences._replace(**marks))


@lru_cache
def of_marks(seed: int) -> Callable[..., list[Any]]:
    """One program, whatever the marks."""
    return random_shapes.program([marked(seed, "all", "all")])


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("seed", [12, 71])
def test_lengths_and_resets(seed, length, resets):
    case = marked(seed, length, resets)
    check(case, *of_marks(seed)([random_shapes.operands(case)]))


def test_lengths_out_of_range_are_brought_into_it():
    case = draw_at(0, Sizes(1, 4, T, 3, 1, 5))
    wild = np.asarray([[-3, T + 1, 2**31 - 1, -(2**31)]], np.int32)
    limited = [
        case._replace(sequences=case.sequences._replace(length=length)) for length in (wild, np.clip(wild, 0, T))
    ]
    grid.assert_close(*random_shapes.by_kernel(*limited))


@pytest.mark.parametrize("max_instruction_set", [3, "avx2", True])
def test_what_is_no_instruction_set_is_an_error(max_instruction_set):
    with pytest.raises(
        TypeError, match=f"max_instruction_set: expected an InstructionSet, got {max_instruction_set!r}"
    ):
        rnnjax.kernels.CPU.__check_init__(
            SimpleNamespace(max_instruction_set=max_instruction_set)
        )  # under test, annotations are checked before it


@lru_cache
def of_bfloat16() -> dict[InstructionSet, tuple[Case, Any]]:
    case = draw_at(8, Sizes(2, 4, T, 3, 2, 37))
    return by_kernel(
        {
            max_instruction_set: case._replace(kernel=rnnjax.kernels.CPU(max_instruction_set))
            for max_instruction_set in InstructionSet
        }
    )


@pytest.mark.parametrize("max_instruction_set", InstructionSet)
def test_of_what_bfloat16_computes_h_alone_is_rounded(max_instruction_set):
    """Before its product, and to nearest, as the oracle does: the states are then right to float32's last bits."""
    case, made = of_bfloat16()[max_instruction_set]
    assert case.dtype == "bfloat16"
    assert random_shapes.errors(case, made)[0] < 1e-6


def test_what_a_bfloat16_cannot_hold():
    """What is infinite, not a number, or beyond its largest number when rounded, comes out as in the reference."""
    case = draw_at(8, Sizes(1, 4, T, 3, 1, 5))
    state, xs = np.zeros_like(case.sequences.state), case.sequences.xs.copy()
    state[0, 0, 0] = 3.4e38
    state[0, 1, 0] = np.asarray([0x7FFFFFFF, 0x7F800001, -1, 0, 0], np.int32).view(np.float32)  # NaNs; rounded, numbers
    xs[0, 2, 2, 0], xs[0, 3, 3, 1] = np.inf, np.nan
    case = case._replace(sequences=case.sequences._replace(xs=xs, state=state))
    kernels = rnnjax.kernels.CPU(), Reference()
    got, expected = random_shapes.by_kernel(*(case._replace(kernel=kernel) for kernel in kernels))
    for one, other in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


class Quotient(rnnjax.AbstractGatedCell):
    """What the kernel pads units with, zeros, is not a number after a step of this."""

    gates = "n"
    input_weight: Array
    recurrent_weight: Array
    divisor: Array
    bias: None = None
    initial_state: None = None

    @property
    def unit_parameters(self) -> Array:
        return self.divisor

    def pointwise(self, parameters: Array, u: Array, v: Array, state: rnnjax.Hidden) -> rnnjax.Hidden:
        return rnnjax.Hidden(state.h + (jnp.tanh(u[0] + v[0]) - state.h) / parameters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_that_is_not_a_number_stays_out_of_it(dtype):
    of = lambda value, *shape: np.full(shape, value, jnp.dtype(dtype))  # noqa: E731
    cell = Quotient(of(1, 3, 10), of(0.2, 2, 5, 5), np.ones(10, np.float32))
    made = jax.jit(jax.grad(of_batch))(cell, of(1, 3, 4, 3))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("cell", ["gru", "lstm_options"])
def test_backward_is_the_transpose(cell):
    """`<tangent(t), c> == <t, backward(c)>`."""
    pointwise = Pointwise.of(grid.build(cell))
    zeros = kernel_problems.shapes(grid.build(cell))

    marks = kernel_problems.LENGTH, kernel_problems.RESETS

    def run(marks: PyTree, weights: Weights, xs: Array, state: Array) -> PyTree:
        plan = rnnjax.kernels.CPU().plan(pointwise, weights)
        return primitive.run(pointwise, (("cpu", plan),), weights, Sequences(xs, state, *marks))[:2]

    @jax.jit
    def both(marks: PyTree, primals: PyTree, tangents: PyTree, cotangents: PyTree) -> tuple[Array, Array]:
        moved = jax.jvp(partial(run, marks), primals, tangents)[1]
        pulled = jax.vjp(partial(run, marks), *primals)[1](cotangents)
        return kernel_problems.dot(moved, cotangents), kernel_problems.dot(tangents, pulled)

    cotangents = kernel_problems.draw(jax.eval_shape(run, marks, *zeros), 3)
    forward, backward = both(marks, kernel_problems.draw(zeros, 1), kernel_problems.draw(zeros, 2), cotangents)
    np.testing.assert_allclose(forward, backward, rtol=1e-11)


UNITS, GATES = 200, len(MEANINGS)


@lru_cache
def of_every_operation() -> Callable[[np.ndarray], tuple[Array, list[Array]]]:
    """One program that has them all, and what they mean, of values [GATES, UNITS].

    Gate k is row k of these, and what is kept of it is operation k of rows k, k + 1 and k + 2, or of fewer of them.
    """
    registers = 2 * GATES + 1  # of pre-activations, the state before, and the results
    numbers = np.arange(GATES)
    instructions = np.stack([numbers, GATES + 1 + numbers, *((numbers + place) % GATES for place in range(3))], 1)
    attributes = {
        "instructions": instructions.astype(np.int32).ravel(),
        "outputs": np.arange(GATES, registers, dtype=np.int32),
        "pre_activations": np.asarray([(gate, 1, 1) for gate in range(GATES)], np.int32).ravel(),
        "constants": np.zeros(0),
        "registers": np.int32(registers),
        "max_instruction_set": np.int32(InstructionSet.AVX512_BF16),
    }
    sequences = np.zeros((1, 1, 1, 0)), np.zeros((1, 1, 1, UNITS)), np.zeros(0, np.int32), np.zeros(0, bool)
    W, R = np.zeros((1, 0, GATES, UNITS)), np.zeros((1, 1, UNITS, GATES, UNITS))
    unit_parameters, initial = np.zeros((1, 0, UNITS)), np.zeros((1, 1, UNITS))
    results = [
        ShapeDtypeStruct(shape, "float64") for shape in ((1, 1, 1, UNITS), (1, 1, 1, UNITS), (1, 1, 1, GATES, UNITS))
    ]
    assert library.absence() is None
    call = jax.ffi.ffi_call(library.custom_call("rnnjax_forward"), results)

    def both(values: Array) -> tuple[Array, list[Array]]:
        kept, expected = call(*sequences, W, values[None], R, unit_parameters, initial, **attributes)[2][0, 0, 0], []
        for number, meaning in enumerate(MEANINGS.values()):
            operands = 1 + (number >= NUMBERS["add"]) + (number >= NUMBERS["select"])
            expected.append(meaning(*(values[(number + place) % GATES] for place in range(operands))))
        return kept, expected

    return jax.jit(both)


VALUES = {
    "ordinary": lambda generator: generator.uniform(0.1, 0.9, (GATES, UNITS)),
    "special": lambda generator: generator.choice([np.nan, np.inf, -np.inf, 0.0, 0.5, -2.5], (GATES, UNITS)),
}


@pytest.mark.parametrize("values", VALUES)
def test_every_operation_of_the_compiled_code(values):
    kept, expected = map(np.asarray, of_every_operation()(VALUES[values](np.random.default_rng(0))))
    for number, name in enumerate(MEANINGS):
        np.testing.assert_allclose(kept[number], expected[number], rtol=1e-14, err_msg=name)


# The linear recurrence


class Scan(NamedTuple):
    """A linear recurrence with zeros in `a`, and NaN that lasts until one of them forgets it."""

    operands: tuple[np.ndarray, np.ndarray, np.ndarray]
    reverse: bool
    late: bool
    max_instruction_set: InstructionSet

    @classmethod
    def of(cls, sizes: tuple[int, int, int, int], dtype: str, seed: int) -> "Scan":
        generator = np.random.default_rng(seed)
        a, b, initial = linear_scans.operands(*sizes, dtype)
        a[generator.random(a.shape) < 0.02] = 0
        b[generator.random(b.shape) < 0.001] = np.nan
        return cls((a, b, initial), *linear_scans.WAYS[seed % 4], InstructionSet(seed % 3))

    def by_kernel(self, a: Array, b: Array, initial: Array) -> Array:
        return linear_scan.scan(
            a, b, initial, reverse=self.reverse, late=self.late, max_instruction_set=self.max_instruction_set
        )

    def check(self, h: Array) -> None:
        """Against a loop."""
        with np.errstate(invalid="ignore"):
            expected = linear_scans.by_loop(*self.operands, reverse=self.reverse, late=self.late)
        linear_scans.assert_same(np.asarray(h), expected)


RANDOM_SCANS = range(24)


@lru_cache
def random_scans() -> list[tuple[Scan, Array]]:
    """Recurrences of random shapes, and what one program gives for them."""
    assert linear_scan.is_here()
    scans = []
    for seed in RANDOM_SCANS:
        generator = np.random.default_rng(seed)
        B, T, H = (int(generator.integers(1, most)) for most in (5, 90, 150))
        dtype = ("float32", "complex128", "float64", "complex64")[seed // 3 % 4]
        scans.append(Scan.of((B if seed % 2 else 1, B, T, H), dtype, seed))
    run = jax.jit(lambda given: [scan.by_kernel(*each) for scan, each in zip(scans, given, strict=True)])
    return list(zip(scans, run([scan.operands for scan in scans]), strict=True))


@pytest.mark.parametrize("seed", RANDOM_SCANS)
def test_linear_scan_of_random_shape(seed):
    scan, h = random_scans()[seed]
    scan.check(h)


# Beside small ones: few rows, whose time is cut for two threads; states past the caches; rows of more than one piece.
LONG = [(1, 1, 60_011, 5), (2, 2, 9_001, 24), (1, 1, 30_011, 64), (1, 2, 19, 2_600)]
LARGE = [
    pytest.param(sizes, dtype, number + 3 * (dtype == "complex64"), marks=[pytest.mark.slow] if slow else [])
    for number, sizes in enumerate(LONG)
    for dtype, slow in (("float64", number % 2), ("complex64", not number % 2))
]


@pytest.mark.parametrize(("sizes", "dtype", "seed"), LARGE)
def test_linear_scan_of_large_sizes(sizes, dtype, seed):
    assert linear_scan.is_here()
    scan = Scan.of(sizes, dtype, seed)
    scan.check(jax.jit(scan.by_kernel)(*scan.operands))


@pytest.mark.parametrize("reverse", [False, True])
def test_linear_scan_of_long_memory_sizes_up(reverse):
    """Nothing fades on its way through a part of time: what each part hands on reaches the end of the next."""
    assert linear_scan.is_here()
    run = jax.jit(partial(linear_scan.scan, reverse=reverse, late=False))
    a, expected = np.ones((1, 30_011, 9)), np.arange(1, 30_012)[:: -1 if reverse else 1] + 0.5
    for sign in (1, -1):
        h = run(a, sign * a, np.full((1, 9), sign * 0.5))
        np.testing.assert_array_equal(np.asarray(h)[0], np.broadcast_to(sign * expected[:, None], (30_011, 9)))


# What is compiled


def calls(function: Callable, *arguments: Any) -> list[tuple[str, str]]:
    """The kernel's calls in the compiled program: which half, and the types of its results."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = re.findall(r"= (\(.*?\)) custom-call\(.*custom_call_target=\"rnnjax_(\w+)_v\d+\"", text)
    return [(half, results) for results, half in found]


def value(cell: Any, xs: Array) -> Array:
    return grid.contract(rnnjax.unroll(cell, None, xs, engine=rnnjax.Fused()))


def of_batch(cell: Any, xs: Array) -> Array:
    return jax.vmap(value, (None, 0))(cell, xs).sum()


@pytest.mark.parametrize(
    "gradient", [jax.grad(of_batch), jax.vmap(jax.grad(value), (None, 0))], ids=["grad_of_vmap", "vmap_of_grad"]
)
def test_a_gradient_is_one_call_of_each_half(gradient):
    """Of `test_fused`, `largest` shows that neither makes more weight gradients than it is asked for."""
    found = calls(gradient, grid.build("lstm"), grid.inputs(9, 3))
    assert sorted(half for half, _ in found) == ["backward", "forward"]


def test_a_plain_run_is_one_call_and_keeps_nothing():
    ((half, results),) = calls(of_batch, grid.build("lstm"), grid.inputs(9, 3))
    assert half == "forward"
    assert re.findall(r"f64\[([\d,]*)\]", results) == ["1,9,3,8", "0", "1,9,2,8", "0"]  # h, no c, the last of both


# Misuse: an error that names the fault, and no crash


def fault(entry: str, name: str) -> str:
    """The error of the call of that name; JAX makes it a ValueError where it has run the program before."""
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError)) as raised:
        cpu_faults.call(entry, name)
    return str(raised.value)


@pytest.mark.parametrize("entry", [*ENTRIES, "linear_scan"])
def test_a_call_in_order_is_no_error(entry):
    assert np.isfinite(cpu_faults.call(entry, cpu_faults.IN_ORDER)).all()


@pytest.mark.parametrize("half", ENTRIES)
@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_program_is_an_error(name, half):
    assert CORRUPT[name][1] in fault(half, f"corrupt {name}")


@pytest.mark.parametrize("half", ENTRIES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_buffer_that_does_not_fit_is_an_error(change, half):
    call, blamed = cpu_faults.call_of(half), BLAMED_PREPARED if half == "prepared" else BLAMED
    for name in call.arguments:
        message = fault(half, f"{change} argument {name}")
        assert blamed.get((change, name), f"the shape or dtype of {name} ") in message
        if "the shape or dtype of" in message:
            assert re.search(r": expected \w+\[[\d,]*\], got \w+\[[\d,]*\]", message)
    for name in call.results:
        assert f"the shape or dtype of {name} " in fault(half, f"{change} result {name}")


@pytest.mark.parametrize("dtype", NO_CODE)
@pytest.mark.parametrize("half", ENTRIES)
def test_a_dtype_that_there_is_no_code_for_is_an_error(half, dtype):
    expected = (
        "expected states of float32 or float64" if half == "prepared" else "expected float32, float64 or bfloat16"
    )
    assert expected in fault(half, f"dtype {dtype}")


def test_integers_without_scales_are_an_error():
    """Nor is a call without them an error where weights are stored as numbers."""
    call = cpu_faults.call_of("prepared")
    plain = call._replace(arguments=call.arguments | cpu_faults.zeros(W_scale=(0,), R_scale=(0,)))
    assert np.isfinite(plain.run()[0]).all()
    integers = {name: call.arguments[name].astype(np.int8) for name in ("W", "R")}
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="int8 weights have no scales"):
        plain._replace(arguments=plain.arguments | integers).run()


@pytest.mark.parametrize("half", ENTRIES)
def test_missing_and_extra_buffers_are_an_error(half):
    for name in cpu_faults.names(half, "arguments"):
        assert re.search("expected (arguments|more arguments|a buffer for)", fault(half, name)), name
    for name in cpu_faults.names(half, "results"):
        assert "expected a buffer for" in fault(half, name), name
    for name in cpu_faults.names(half, "extra"):
        assert "more buffers than expected" in fault(half, name), name


@pytest.mark.parametrize("half", ENTRIES)
def test_a_state_without_fields_is_an_error(half):
    """There would be no h for the recurrence."""
    assert "fields" in fault(half, "state without fields")


@pytest.mark.parametrize("name", LINEAR_SCAN)
def test_a_linear_scan_of_what_does_not_fit_is_an_error(name):
    assert re.search(LINEAR_SCAN[name][1], fault("linear_scan", name))


# Many calls at once, and too little memory


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("NPROC", "1", id="pool_of_one"),
        pytest.param(
            "XLA_FLAGS", "--xla_force_host_platform_device_count=8", id="eight_devices", marks=pytest.mark.slow
        ),
    ],
)
def test_many_calls_at_once(variable, value):
    """`NPROC` is how many threads XLA's pool has."""
    run_apart(Path(crowded_run.__file__), {variable: f"{os.environ.get(variable, '')} {value}".strip()})


def run_apart(script: Path, settings: dict[str, str], *arguments: str) -> None:
    """Run a script in a process of its own, with these variables in its environment; it must end, and end well."""
    settings = settings | {"JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-W", "error", str(script), *arguments]
    subprocess.run(command, env=os.environ | settings, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_team_finishes_whatever_the_pool_does_with_its_helpers(tmp_path):
    program = tmp_path / "team"
    source = Path(library.__file__).parent
    subprocess.run(["g++", "-std=c++17", "-pthread", f"-I{source}", HELPERS / "team.cpp", "-o", program], check=True)
    for pool in ("at_once", "too_late", "out_of_memory", "on_threads"):
        subprocess.run([program, pool], check=True, timeout=20)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for an allocator that fails")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the place of the allocator is taken")
@pytest.mark.skipif(sys.platform != "linux", reason="how an allocator is replaced is Linux's own")
def test_a_call_that_gets_no_memory_ends_in_an_error(tmp_path):
    preloaded = tmp_path / "failing_allocator.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", preloaded, HELPERS / "failing_allocator.c"], check=True)
    run_apart(HELPERS / "memory_run.py", {"LD_PRELOAD": str(preloaded)}, str(tmp_path))


# Without the library


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("Off", "RNNJAX_CPU_KERNEL=Off has switched it off"),
        ("/a.so", "RNNJAX_CPU_KERNEL: expected `off` or the path of a library, got /a.so, which is no file"),
        (str(HELPERS), f"RNNJAX_CPU_KERNEL: expected `off` or the path of a library, got {HELPERS}, which is no file"),
        (__file__, f"{__file__} does not load: "),
        (math.__file__, f"{math.__file__} does not load: "),
    ],
)
def test_without_the_library_fused_refuses_and_auto_goes_on(monkeypatch, chosen, reason):
    monkeypatch.setenv(library.VARIABLE, chosen)
    monkeypatch.setattr(library, "absence", library.absence.__wrapped__)  # it remembers that it has loaded the library
    cell, xs = rnnjax.GRU(3, 8, key=grid.KEY), grid.inputs(5, dtype="float32")
    fused = rnnjax.Fused()
    refusal = fused.plan(cell, xs)
    assert isinstance(refusal, rnnjax.engines.Refusal)
    assert refusal.reason.startswith(f"Fused has no kernel for GRU. The CPU kernel is not here: {reason}")
    assert rnnjax.Auto((fused, rnnjax.Scan())).plan(cell, xs) == AutoPlan(ScanPlan(), (refusal,))
    with pytest.raises(ValueError, match="Fused has no kernel for GRU"):
        rnnjax.unroll(cell, None, xs, engine=fused)


def test_a_library_whose_operations_are_in_another_order_is_refused(monkeypatch):
    monkeypatch.setattr(library, "MEANINGS", dict(reversed(library.MEANINGS.items())))
    reason = library.absence.__wrapped__()
    assert reason is not None
    assert reason.endswith("was built from another version of rnnjax. Install rnnjax again")


SWITCHED_OFF = """
import jax, rnnjax
cell, xs = rnnjax.GRU(3, 16, key=jax.random.key(0)), jax.numpy.ones((32, 3))
plan = rnnjax.Auto().plan(cell, xs)
state, ys = rnnjax.unroll(cell, None, xs)
print(*plan.refusals, plan, ys.shape)
"""


@pytest.mark.slow
def test_switched_off_in_a_new_process():
    command = [sys.executable, "-W", "error", "-c", SWITCHED_OFF]
    settings = {library.VARIABLE: "off"}
    made = subprocess.run(command, env=os.environ | settings, check=True, timeout=120, capture_output=True, text=True)
    assert "RNNJAX_CPU_KERNEL=off has switched it off" in made.stdout
    assert made.stdout.endswith("Scan: step by step (32, 16)\n")


@pytest.mark.slow
def test_a_path_may_be_relative(tmp_path):
    """What dlopen would look for among the system's libraries."""
    (tmp_path / "kernel.so").symlink_to(library.installed())
    script = "from rnnjax.kernels.native import library; print(library.absence())"
    settings = os.environ | {library.VARIABLE: "kernel.so"}
    ended = subprocess.run([sys.executable, "-c", script], env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "None\n"


COMPILED = """
import pickle, sys, jax, rnnjax
from jax.experimental.serialize_executable import serialize
cell, xs = rnnjax.GRU(3, 8, key=jax.random.key(0)), jax.numpy.ones((5, 3), "float32")
run = jax.jit(lambda xs: rnnjax.unroll(cell, None, xs, engine=rnnjax.Fused())[1])
pickle.dump(serialize(run.lower(xs).compile()), open(sys.argv[1], "wb"))
print(run(xs).sum())
"""
LOADED = """
import pickle, sys, jax, rnnjax
from jax.experimental.serialize_executable import deserialize_and_load
run = deserialize_and_load(*pickle.load(open(sys.argv[1], "rb")))
print(run(jax.numpy.ones((5, 3), "float32")).sum())
"""


@pytest.mark.slow
def test_a_compiled_program_runs_where_rnnjax_is_imported(tmp_path):
    """Though no kernel has been asked for there. XLA does not serialise what comes from the cache."""
    settings = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    printed = []
    for script in (COMPILED, LOADED):
        command = [sys.executable, "-c", script, str(tmp_path / "program")]
        ended = subprocess.run(command, env=settings, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    assert printed[0] == printed[1]


@pytest.mark.slow
@pytest.mark.parametrize("pool", [2, 16])
def test_the_same_call_gives_the_same_bits(pool):
    """Whoever helps, of however many threads, with other work on the machine."""
    command = [sys.executable, str(HELPERS / "same_bits_run.py")]
    ended = subprocess.run(command, env=os.environ | {"NPROC": str(pool)}, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.splitlines()) == {"1 result"}
    assert len(ended.stdout.splitlines()) == 9
