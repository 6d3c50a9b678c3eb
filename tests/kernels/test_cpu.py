"""The CPU kernel itself: right at any shape, whatever is asked of it at once, and an error where it is misused."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crowded_run
import grid
import jax
import jax.numpy as jnp
import kernel_problems
import linear_scans
import numpy as np
import pytest
import random_shapes
from cpu_calls import HALVES, B, Call, F, G, H, K, S, call_of, zeros
from jax import ShapeDtypeStruct
from jaxtyping import Array, PyTree
from random_shapes import CELLS, Case, Sizes, draw, draw_at, errors, outside

import rnnjax
from rnnjax import InstructionSet
from rnnjax.kernel import Pointwise, Sequences, Weights
from rnnjax.kernels import recurrence
from rnnjax.kernels.cpu import library
from rnnjax.kernels.elementwise.operations import MEANINGS, NUMBERS
from rnnjax.kernels.linear_scan import cpu as linear_scan
from rnnjax.kernels.reference import Reference

HELPERS = Path(crowded_run.__file__).parent


# Against the oracle


def check(case: Case, kernel: rnnjax.AbstractKernel | None = None) -> None:
    found = errors(case, kernel or case.kernel)
    assert not outside(case, found), (case.title, found)


@pytest.mark.parametrize("seed", range(96))
def test_random_shape(seed):
    check(draw(seed))


@pytest.mark.parametrize("seed", [25, 61, 69])
def test_the_oracle_is_the_reference(seed):
    check(draw_at(seed, Sizes(2, 3, 6, 4, 2, 5)), Reference())


@pytest.mark.parametrize(
    "sizes", [Sizes(2, 3, 0, 4, 1, 9), Sizes(2, 0, 5, 4, 1, 9), Sizes(2, 3, 5, 0, 1, 9), Sizes(1, 1, 1, 1, 1, 1)]
)
@pytest.mark.parametrize("seed", [13, 64, 71])
def test_sizes_of_none_and_of_one(sizes, seed):
    check(draw_at(seed, sizes))


T = 6
LENGTHS = {"none": [0, 0, 0, 0], "all": [T, T, T, T], "some": [0, T, 1, T - 1], "rising": [1, 2, 5, T]}
STEPS = np.arange(T)
RESETS = {"first": STEPS == 0, "last": STEPS == T - 1, "late": STEPS > 2, "all": STEPS >= 0}


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("seed", [12, 71])
def test_lengths_and_resets(seed, length, resets):
    case = draw_at(seed, Sizes(2, 4, T, 3, 1, 5))
    marks = {
        "length": np.asarray([LENGTHS[length], LENGTHS[length][::-1]], np.int32),
        "resets": np.broadcast_to(RESETS[resets], (2, 4, T)),
    }
    check(case._replace(sequences=case.sequences._replace(**marks)))


def test_lengths_out_of_range_are_brought_into_it():
    case = draw_at(0, Sizes(1, 4, T, 3, 1, 5))
    wild = np.asarray([[-3, T + 1, 2**31 - 1, -(2**31)]], np.int32)
    results = [
        random_shapes.by_kernel(case._replace(sequences=case.sequences._replace(length=length)), case.kernel)
        for length in (wild, np.clip(wild, 0, T))
    ]
    grid.assert_close(*results)


@pytest.mark.parametrize("widest", [3, "avx2", True])
def test_what_is_no_instruction_set_is_an_error(widest):
    with pytest.raises(TypeError, match=f"widest: expected an InstructionSet, got {widest!r}"):
        rnnjax.CPU.__check_init__(SimpleNamespace(widest=widest))  # under test, annotations are checked before it


@pytest.mark.parametrize("widest", InstructionSet)
def test_of_what_bfloat16_computes_h_alone_is_rounded(widest):
    """Before its product, and to nearest, as the oracle does: the states are then right to float32's last bits."""
    case = draw_at(8, Sizes(2, 4, T, 3, 2, 37))
    assert case.dtype == "bfloat16"
    assert errors(case, rnnjax.CPU(widest))[0] < 1e-6


def test_what_a_bfloat16_cannot_hold():
    """What is infinite, not a number, or beyond its largest number when rounded, comes out as in the reference."""
    case = draw_at(8, Sizes(1, 4, T, 3, 1, 5))
    state, xs = np.zeros_like(case.sequences.state), case.sequences.xs.copy()
    state[0, 0, 0] = 3.4e38
    state[0, 1, 0] = np.asarray([0x7FFFFFFF, 0x7F800001, -1, 0, 0], np.int32).view(np.float32)  # NaNs; rounded, numbers
    xs[0, 2, 2, 0], xs[0, 3, 3, 1] = np.inf, np.nan
    case = case._replace(sequences=case.sequences._replace(xs=xs, state=state))
    got, expected = (random_shapes.by_kernel(case, kernel)[1] for kernel in (rnnjax.CPU(), Reference()))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


class Quotient(rnnjax.AbstractGatedCell):
    """What the kernel pads units with, zeros, is not a number after a step of this."""

    input_weight: Array
    recurrent_weight: Array
    gains: Array
    bias: None = None
    start: None = None

    def pointwise(self, gains: Array, u: Array, v: Array, state: rnnjax.Hidden) -> rnnjax.Hidden:
        return rnnjax.Hidden(state.h + (jnp.tanh(u[0] + v[0]) - state.h) / gains)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_that_is_not_a_number_stays_out_of_it(dtype):
    of = lambda *shape: jnp.ones(shape, dtype)  # noqa: E731
    cell = Quotient(of(3, 1, 10), of(2, 5, 1, 5) / 5, jnp.ones(10, jnp.float32))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.grad(of_batch)(cell, of(3, 4, 3))))


@pytest.mark.parametrize("cell", ["gru", "lstm_options"])
def test_backward_is_the_transpose(cell):
    """`<tangent(t), c> == <t, backward(c)>`."""
    pointwise = Pointwise.of(grid.build(cell))
    zeros = kernel_problems.shapes(grid.build(cell))

    def run(weights: Weights, xs: Array, state: Array) -> PyTree:
        sequences = Sequences(xs, state, kernel_problems.LENGTH, kernel_problems.RESETS)
        return recurrence.run(pointwise, (("cpu", rnnjax.CPU()),), weights, sequences)[:2]

    @jax.jit
    def both(primals: PyTree, tangents: PyTree, cotangents: PyTree) -> tuple[Array, Array]:
        moved = jax.jvp(run, primals, tangents)[1]
        return kernel_problems.dot(moved, cotangents), kernel_problems.dot(
            tangents, jax.vjp(run, *primals)[1](cotangents)
        )

    cotangents = kernel_problems.draw(jax.eval_shape(run, *zeros), 3)
    forward, backward = both(kernel_problems.draw(zeros, 1), kernel_problems.draw(zeros, 2), cotangents)
    np.testing.assert_allclose(forward, backward, rtol=1e-11)


def test_every_operation_of_the_compiled_code():
    """One program that has them all: gate k is k in all its units, and what is kept of it is operation k of a few."""
    gates, registers = len(MEANINGS), 2 * len(MEANINGS) + 1  # of columns, the state before, and the results
    values = np.random.default_rng(0).uniform(0.1, 0.9, (gates, 5))
    instructions = [
        (number, gates + 1 + number, number, (number + 1) % gates, (number + 2) % gates) for number in range(gates)
    ]
    attributes = {
        "instructions": np.asarray(instructions, np.int32).ravel(),
        "outputs": np.arange(gates, registers, dtype=np.int32),
        "columns": np.asarray([(gate, 1, 1) for gate in range(gates)], np.int32).ravel(),
        "constants": np.zeros(0),
        "registers": np.int32(registers),
        "widest": np.int32(InstructionSet.AVX512_BF16),
    }
    nothing = np.zeros((1, 1, 1, 0)), np.zeros((1, 1, 1, 5)), np.zeros(0, np.int32), np.zeros(0, bool)
    weights = np.zeros((1, 0, gates, 5)), values[None], np.zeros((1, 1, 5, gates, 5)), np.zeros((1, 0, 5))
    results = [ShapeDtypeStruct(shape, "float64") for shape in ((1, 1, 1, 5), (1, 1, 1, 5), (1, 1, 1, gates, 5))]
    assert rnnjax.CPU().refusal(CELLS["gru"], random_shapes.draw(0).weights) is None  # to ask is what loads the library
    call = jax.ffi.ffi_call("rnnjax_forward", results)
    kept = call(*nothing, *weights, np.zeros((1, 1, 5)), **attributes)[2][0, 0, 0]
    for number, meaning in enumerate(MEANINGS.values()):
        operands = 1 + (number >= NUMBERS["add"]) + (number >= NUMBERS["select"])
        expected = meaning(*(jnp.asarray(values[(number + place) % gates]) for place in range(operands)))
        np.testing.assert_allclose(kept[number], expected, rtol=1e-14, err_msg=list(MEANINGS)[number])


# The linear recurrence

# Beside small ones: few rows, whose time is cut for two threads; states past the caches; rows of more than one piece.
LONG = [(1, 1, 60_011, 5), (2, 2, 9_001, 24), (1, 1, 30_011, 64), (1, 2, 19, 2_600)]


def check_linear_scan(sizes: tuple[int, int, int, int], dtype: str, seed: int) -> None:
    """Against a loop, with zeros in `a`, and NaN that lasts until one of them forgets it."""
    generator = np.random.default_rng(seed)
    reverse, late = linear_scans.WAYS[seed % 4]
    a, b, initial = linear_scans.operands(*sizes, dtype)
    a[generator.random(a.shape) < 0.02] = 0
    b[generator.random(b.shape) < 0.001] = np.nan
    with np.errstate(invalid="ignore"):
        expected = linear_scans.by_loop(a, b, initial, reverse=reverse, late=late)
    assert linear_scan.is_here()
    run = partial(linear_scan.scan, reverse=reverse, late=late, widest=InstructionSet(seed % 3))
    linear_scans.assert_same(jax.jit(run)(a, b, initial), expected)


@pytest.mark.parametrize("seed", range(24))
def test_linear_scan_of_random_shape(seed):
    generator = np.random.default_rng(seed)
    B, T, H = (int(generator.integers(1, most)) for most in (5, 90, 150))
    dtype = ("float32", "complex128", "float64", "complex64")[seed // 3 % 4]
    check_linear_scan((B if seed % 2 else 1, B, T, H), dtype, seed)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("sizes", LONG)
def test_linear_scan_of_large_sizes(sizes, dtype):
    check_linear_scan(sizes, dtype, LONG.index(sizes) + 3 * (dtype == "complex64"))


@pytest.mark.parametrize("reverse", [False, True])
def test_linear_scan_of_long_memory_sizes_up(reverse):
    """Nothing fades on its way through a part of time: what each part hands on reaches the end of the next."""
    a, b = np.ones((1, 30_011, 9)), np.ones((1, 30_011, 9))
    h = jax.jit(partial(linear_scan.scan, reverse=reverse, late=False))(a, b, np.full((1, 9), 0.5))
    expected = np.arange(1, 30_012)[:: -1 if reverse else 1] + 0.5
    np.testing.assert_array_equal(h[0], np.broadcast_to(expected[:, None], (30_011, 9)))


# What is compiled


def calls(function: Callable, *arguments: Any) -> list[tuple[str, str]]:
    """The kernel's calls in the compiled program: which half, and the types of its results."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = re.findall(r"= (\(.*?\)) custom-call\(.*custom_call_target=\"rnnjax_(\w+)\"", text)
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


def fixed(call: Call) -> int:
    """How many registers a program may only read: its inputs and constants."""
    columns = len(call.attributes["columns"]) // 3
    fields = F if call.target == "rnnjax_forward" else 2 * F
    return columns + fields + K + len(call.attributes["constants"])


def edited(name: str, place: int, number: Callable[[Call], int] | int) -> Callable[[Call], Call]:
    """A call with one number of an attribute replaced."""

    def edit(call: Call) -> Call:
        array = call.attributes[name].copy()
        array[place] = number(call) if callable(number) else number
        return call._replace(attributes=call.attributes | {name: array})

    return edit


def changed(name: str, change: Callable[[Any, Call], Any]) -> Callable[[Call], Call]:
    """A call with an attribute replaced."""
    return lambda call: call._replace(attributes=call.attributes | {name: change(call.attributes[name], call)})


def registers(number: Callable[[Call], int]) -> Callable[[Call], Call]:
    return changed("registers", lambda _, call: np.int32(number(call)))


def resized(**shapes: tuple[int, ...]) -> Callable[[Call], Call]:
    """A call with arguments of other shapes."""
    return lambda call: call._replace(arguments=call.arguments | zeros(**shapes))


def all_registers(call: Call) -> int:
    return int(call.attributes["registers"])


CORRUPT = {
    "part_of_an_instruction": (changed("instructions", lambda code, _: code[:-1]), "a part of an instruction"),
    "operation_unknown": (edited("instructions", 0, len(MEANINGS)), "an unknown operation"),
    "operation_negative": (edited("instructions", 0, -1), "an unknown operation"),
    "destination_beyond": (edited("instructions", 1, all_registers), "writes where it must not"),
    "destination_negative": (edited("instructions", 1, -1), "writes where it must not"),
    "destination_an_input": (edited("instructions", 1, 0), "writes where it must not"),
    "destination_the_last_fixed": (edited("instructions", 1, lambda call: fixed(call) - 1), "writes where it must not"),
    "last_destination_beyond": (edited("instructions", -4, all_registers), "writes where it must not"),
    "operand_beyond": (edited("instructions", 2, all_registers), "reads where it must not"),
    "unused_operand_beyond": (edited("instructions", -1, all_registers), "reads where it must not"),
    "operand_negative": (edited("instructions", 3, -1), "reads where it must not"),
    "output_beyond": (edited("outputs", 0, all_registers), "returns what it does not have"),
    "output_negative": (edited("outputs", -1, -1), "returns what it does not have"),
    "output_missing": (changed("outputs", lambda outputs, _: outputs[:-1]), "too few or too many outputs"),
    "output_too_many": (changed("outputs", lambda outputs, _: np.append(outputs, outputs[:1])), "too few or too many"),
    "registers_too_many": (registers(lambda _: 513), "too many registers"),
    "registers_negative": (registers(lambda _: -1), "registers"),
    "registers_fewer_than_fixed": (registers(lambda call: fixed(call) - 1), "fewer registers than inputs"),
    "constants_too_many": (changed("constants", lambda *_: np.zeros(513)), "fewer registers than inputs"),
    "column_of_no_gate": (edited("columns", 0, G), "a gate that there is not"),
    "column_negative": (edited("columns", 0, -1), "a gate that there is not"),
    "gate_filled_twice": (edited("columns", 0, 1), "a gate does not get each product once"),
    "gate_without_a_product": (edited("columns", 1, 0), "a gate does not get each product once"),
    "part_of_a_column": (changed("columns", lambda columns, _: columns[:-1]), "a part of a column"),
    "columns_missing": (changed("columns", lambda columns, _: columns[:0]), "rnnjax: "),
    "columns_too_many": (changed("columns", lambda columns, _: np.resize(columns, 3 * 65)), "too many columns"),
    "fields_too_many": (resized(state=(S, B, 17, H), initial=(1, 17, H)), "too many columns, fields or gains"),
    "gains_too_many": (resized(gains=(1, 65, H)), "too many columns, fields or gains"),
}


def fault(call: Call) -> str:
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        call.run()
    return str(raised.value)


@pytest.mark.parametrize("half", HALVES)
def test_a_call_in_order_is_no_error(half):
    assert len(call_of(half).run()) == len(call_of(half).results)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_program_is_an_error(name, half):
    corrupt, message = CORRUPT[name]
    assert message in fault(corrupt(call_of(half)))


def longer(array: Any) -> Any:
    return ShapeDtypeStruct((*array.shape[:-1], array.shape[-1] + 1), array.dtype)


def deeper(array: Any) -> Any:
    return ShapeDtypeStruct((1, *array.shape), array.dtype)


def of_other_groups(array: Any) -> Any:
    return ShapeDtypeStruct((S + 1, *array.shape[1:]), array.dtype)


def of_other_dtype(array: Any) -> Any:
    other = {"float64": "float32", "int32": "int64", "bool": "uint8"}
    return ShapeDtypeStruct(array.shape, other[array.dtype.name])


# What is at fault where it is not the buffer itself: sizes and dtype are those of `xs`, ranks are compared first.
BLAMED = {
    ("longer", "xs"): "the shape or dtype of W",
    ("of_other_groups", "xs"): "the shape or dtype of state",
    ("of_other_dtype", "xs"): "the shape or dtype of state",
    **{("deeper", name): "other ranks" for name in ("xs", "state", "R", "gains")},
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("change", [longer, deeper, of_other_groups, of_other_dtype])
def test_a_buffer_that_does_not_fit_is_an_error(change, half):
    call = call_of(half)
    for name, array in call.arguments.items():
        like = change(array)
        misfit = call._replace(arguments=call.arguments | {name: np.zeros(like.shape, like.dtype)})
        message = fault(misfit)
        assert BLAMED.get((change.__name__, name), f"the shape or dtype of {name} ") in message
        assert "other ranks" in message or re.search(r": expected \w+\[[\d,]*\], got \w+\[[\d,]*\]", message)
    for name, array in call.results.items():
        assert f"the shape or dtype of {name} " in fault(call._replace(results=call.results | {name: change(array)}))


@pytest.mark.parametrize("dtype", ["int32", "float16", "complex128"])
@pytest.mark.parametrize("half", HALVES)
def test_a_dtype_that_there_is_no_code_for_is_an_error(half, dtype):
    call = call_of(half)
    arguments = {name: array.astype(dtype) for name, array in call.arguments.items()}
    assert "expected float32, float64 or bfloat16" in fault(call._replace(arguments=arguments))


@pytest.mark.parametrize("half", HALVES)
def test_missing_and_extra_buffers_are_an_error(half):
    call = call_of(half)
    for count in range(len(call.arguments)):
        some = dict(list(call.arguments.items())[:count])
        assert re.search("expected (arguments|more arguments|a buffer for)", fault(call._replace(arguments=some)))
    for count in range(1, len(call.results)):
        some = dict(list(call.results.items())[:count])
        assert "expected a buffer for" in fault(call._replace(results=some))
    for extra in (
        call._replace(arguments=call.arguments | zeros(extra=(1,))),
        call._replace(results=call.results | {"extra": ShapeDtypeStruct((1,), np.float64)}),
    ):
        assert "more buffers than expected" in fault(extra)


@pytest.mark.parametrize("half", HALVES)
def test_a_state_without_fields_is_an_error(half):
    """There would be no h for the recurrence."""
    call = resized(state=(S, B, 0, H), initial=(1, 0, H))(call_of(half))
    outputs = call.attributes["outputs"][F:] if half == "forward" else np.delete(call.attributes["outputs"], -K - 1)
    none = {"last": (S, B, 0, H), "dlast": (S, B, 0, H), "dinitial": (S, 0, H), "dstate": (S, B, 0, H)}
    without = lambda arrays: {  # noqa: E731
        name: ShapeDtypeStruct(none.get(name, array.shape), array.dtype)
        for name, array in arrays.items()
        if name not in ("states", "dstates")
    }
    arguments = {name: np.zeros(array.shape, array.dtype) for name, array in without(call.arguments).items()}
    attributes = call.attributes | {"outputs": outputs}
    assert "fields" in fault(Call(call.target, arguments, without(call.results), attributes))


def scan_call() -> Call:
    """A call of the linear recurrence that is in order."""
    assert linear_scan.is_here()
    attributes = {"reverse": False, "late": False, "widest": np.int32(InstructionSet.AVX512_BF16)}
    results = {"h": ShapeDtypeStruct((B, T, H), np.float64)}
    return Call("rnnjax_linear_scan", zeros(a=(B, T, H), b=(B, T, H), initial=(B, H)), results, attributes)


SCAN_FAULTS = {
    "a_longer": (
        resized(a=(B, T + 1, H)),
        r"dtype of a does not fit the others: expected F64\[3,6,5\], got F64\[3,7,5\]",
    ),
    "a_of_other_rows": (resized(a=(B - 1, T, H)), r"dtype of a does not fit"),
    "a_flat": (resized(a=(T, H)), r"dtype of a does not fit"),
    "b_flat": (resized(b=(T, H)), r"expected b of rank 3, got F64\[6,5\]"),
    "b_wider": (resized(b=(B, T, H + 1)), r"dtype of a does not fit"),
    "initial_over_time": (resized(initial=(B, T, H)), r"dtype of initial does not fit"),
    "initial_missing": (lambda call: call._replace(arguments=zeros(a=(B, T, H), b=(B, T, H))), "arguments: expected 3"),
    "h_shorter": (
        lambda call: call._replace(results={"h": ShapeDtypeStruct((B, T - 1, H), np.float64)}),
        r"dtype of h does not fit",
    ),
    "h_of_other_dtype": (
        lambda call: call._replace(results={"h": ShapeDtypeStruct((B, T, H), np.float32)}),
        r"dtype of h does not fit the others: expected F64\[3,6,5\], got F32\[3,6,5\]",
    ),
    "integers": (
        lambda call: call._replace(arguments=call.arguments | {"b": np.zeros((B, T, H), np.int32)}),
        "expected float32, float64, complex64 or complex128",
    ),
    "no_direction": (lambda call: call._replace(attributes={"late": False, "widest": np.int32(0)}), "attribute"),
}


@pytest.mark.parametrize("name", SCAN_FAULTS)
def test_a_linear_scan_of_what_does_not_fit_is_an_error(name):
    corrupt, message = SCAN_FAULTS[name]
    assert len(scan_call().run()) == 1
    assert re.search(message, fault(corrupt(scan_call())))


# Many calls at once, and too little memory


@pytest.mark.parametrize(
    "settings",
    [{"NPROC": "1"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}],
    ids=["pool_of_one", "eight_devices"],
)
def test_many_calls_at_once(settings):
    """`NPROC` is how many threads XLA's pool has."""
    fast = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    run_apart(Path(crowded_run.__file__), settings | {"XLA_FLAGS": settings.get("XLA_FLAGS", "") + fast})


def run_apart(script: Path, settings: dict[str, str], *arguments: str) -> None:
    """Run a script in a process of its own, with these variables in its environment; it must end, and end well."""
    settings = settings | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-W", "error", str(script), *arguments]
    subprocess.run(command, env=os.environ | settings, check=True, timeout=120)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_team_finishes_whatever_the_pool_does_with_its_helpers(tmp_path):
    program = tmp_path / "team"
    source = Path(library.__file__).parent / "source"
    subprocess.run(["g++", "-std=c++17", "-pthread", f"-I{source}", HELPERS / "team.cpp", "-o", program], check=True)
    for pool in ("at_once", "too_late", "out_of_memory", "on_threads"):
        subprocess.run([program, pool], check=True, timeout=20)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for an allocator that fails")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the place of the allocator is taken")
@pytest.mark.skipif(sys.platform != "linux", reason="how an allocator is replaced is Linux's own")
def test_a_call_that_gets_no_memory_ends_in_an_error(tmp_path):
    preloaded = tmp_path / "failing_allocator.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", preloaded, HELPERS / "failing_allocator.c"], check=True)
    run_apart(HELPERS / "memory_run.py", {"LD_PRELOAD": str(preloaded)}, str(tmp_path))


# Without the library

CELL, XS = rnnjax.GRU(3, 8, key=grid.KEY), jnp.ones((5, 3), jnp.float32)


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
    fused = rnnjax.Fused(cuda=None, tpu=None)
    refusal = fused.refusal(CELL, XS)
    assert refusal is not None
    assert refusal.startswith(f"Fused has no kernel for GRU. The CPU kernel is not here: {reason}")
    assert rnnjax.Auto((fused, rnnjax.Scan())).select(CELL, XS) == (rnnjax.Scan(), (refusal,))
    with pytest.raises(ValueError, match="Fused has no kernel for GRU"):
        rnnjax.unroll(CELL, None, XS, engine=fused)


SWITCHED_OFF = """
import jax, rnnjax
cell, xs = rnnjax.GRU(3, 8, key=jax.random.key(0)), jax.numpy.ones((5, 3))
state, ys = rnnjax.unroll(cell, None, xs, engine=rnnjax.Fused())
print(rnnjax.Fused().select(cell, xs)["cpu"], ys.shape)
"""


def test_switched_off_in_a_new_process():
    settings = {library.VARIABLE: "off", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", SWITCHED_OFF]
    made = subprocess.run(command, env=os.environ | settings, check=True, timeout=120, capture_output=True, text=True)
    assert "RNNJAX_CPU_KERNEL=off has switched it off" in made.stdout
    assert made.stdout.endswith("(5, 8)\n")
