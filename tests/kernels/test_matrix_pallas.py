"""The Pallas kernels of the matrix-state recurrence: emulated, and lowered for devices that are not here."""

import re
from functools import partial
from typing import Any

import grid
import jax
import jax.numpy as jnp
import matrix_scans
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from matrix_scans import Case

import rnnjax
from rnnjax.cells import MatrixRecurrence, Transition
from rnnjax.engines import Chunked
from rnnjax.kernels import InstructionSet
from rnnjax.kernels.matrix_scan.contract import Operands
from rnnjax.kernels.matrix_scan.gpu import gpu, place
from rnnjax.kernels.matrix_scan.tpu import layout, tpu
from rnnjax.kernels.pallas import tpu as pallas_tpu

KERNELS: dict[str, Any] = {"cuda": gpu, "tpu": tpu}


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of columns and chunks of time in small arrays."""
    for name, size in {"STATE": 32, "FEWEST": 2, "CHUNK": 3}.items():
        monkeypatch.setattr(place, name, size)
    for name, size in {"MOST_STEPS": 8, "LANES": 4}.items():
        monkeypatch.setattr(layout, name, size)


# Both halves, emulated, against the loop


def problem(T: int, K: int, V: int, *absent: str, scalar: bool = False, reads_before: bool = False) -> Case:
    """Two sequences of two heads, with every operand but those that are `absent`."""
    B, N = 2, 2
    generator = np.random.default_rng(T)
    normal: Any = lambda *shape: generator.normal(size=shape).astype("float32")  # noqa: E731
    decay = generator.uniform(-0.3, 1, (B, T, N, 1 if scalar else K)) * (generator.random((B, T, N, 1)) > 0.1)
    keys = [normal(B, T, N, K) / (2 * np.sqrt(K, dtype="float32")) for _ in range(4)]
    steps = Transition(decay.astype("float32"), keys[0], normal(B, T, N, V), *keys[1:])
    length = np.asarray([T - T // 3, T], "int32")
    operands = Operands(steps, normal(B, N, K, V), normal(B, N, K, V), generator.random((B, T)) < 0.3, length)
    nothing: Any = {name: None for name in absent}
    of_steps = {name: nothing.pop(name) for name in ("erase", "erase_key") if name in absent}
    operands = operands._replace(steps=steps._replace(**of_steps), **nothing)
    needed = (True,) * len(jax.tree.leaves(matrix_scans.numbers(operands)))
    title = f"T {T} K {K} V {V} without {absent} {scalar=} {reads_before=}"
    return Case(title, operands, normal(B, T, N, V), normal(B, N, K, V), reads_before, needed, InstructionSet.AVX2)


def halves(kernel: Any, interpret: Any, case: Case, operands: Operands, dys: Any, dlast: Any) -> Any:
    how: dict[str, Any] = {"reads_before": case.reads_before, "interpret": interpret}
    backward = kernel.backward(operands, dys, dlast, **how, needs_gradient=case.needs_gradient)
    return kernel.forward(operands, **how), backward


def emulated(platform: str, case: Case, interpret: Any = True) -> Any:
    run = partial(halves, KERNELS[platform], interpret, case)
    return jax.jit(run)(case.operands, case.dys, case.dlast)


CASES = {
    "every operand": partial(problem, 11, 5, 7),
    "delta rule": partial(problem, 9, 4, 3, "start", "erase_key", scalar=True, reads_before=True),
    "gated": partial(problem, 10, 8, 9, "start", "resets", "length", "erase", "erase_key", reads_before=True),
    "one step": partial(problem, 1, 1, 1, "length", "erase_key", reads_before=True),
    "scalar": partial(problem, 8, 3, 8, "erase", "erase_key", "start", scalar=True),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "every operand" else pytest.mark.slow) for name in CASES]
)
@pytest.mark.parametrize("platform", KERNELS)
def test_both_halves_equal_the_loop(platform, name):
    case = CASES[name]()
    assert max(matrix_scans.errors(case, emulated(platform, case))) <= 1, case.title


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_blocks_of_a_tpu_read_no_memory_that_is_not_theirs_and_do_not_race():
    strict = pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    case = CASES["every operand"]()
    assert max(matrix_scans.errors(case, emulated("tpu", case, strict))) <= 1, case.title


@pytest.mark.slow
@pytest.mark.parametrize("platform", KERNELS)
def test_narrow_operands_are_rounded_where_they_are_stored_and_nowhere_else(platform):
    case = problem(40, 4, 3, "start", scalar=True)
    narrow = lambda leaf: jnp.asarray(leaf, "bfloat16") if leaf.dtype == "float32" else leaf  # noqa: E731
    operands, dys, dlast = jax.tree.map(narrow, (case.operands, case.dys, case.dlast))
    case = case._replace(operands=operands, dys=dys, dlast=dlast)
    expected = jax.tree.leaves(case.expected())
    for made, exact in zip(jax.tree.leaves(emulated(platform, case)), expected, strict=True):
        assert made.dtype == "bfloat16"
        assert np.abs(np.asarray(made, "float64") - exact).max() <= 2**-8 * np.abs(exact).max()


# Lowered for devices that are not here

DEVICE = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
NAMES = {"rnnjax_matrix_scan_borders", "rnnjax_matrix_scan_backward", "rnnjax_matrix_scan_forward"}


def gradient(engine: Any, cell: MatrixRecurrence) -> Any:
    def loss(xs: Any, length: Any, resets: Any) -> Any:
        run = lambda xs, length, resets: rnnjax.unroll(cell, None, xs, length=length, resets=resets, engine=engine)  # noqa: E731
        last, ys = jax.vmap(run)(xs, length, resets)
        return ys.astype("float32").sum() + last.S.sum()

    return jax.jit(jax.value_and_grad(loss))


def lowered(engine: Any, cell: MatrixRecurrence, *platforms: str, T: int = 70) -> str:
    """The gradient of a batch for some platforms."""
    shape = lambda leaf: jax.ShapeDtypeStruct((3, T, *leaf.shape), leaf.dtype)  # noqa: E731
    xs = jax.tree.map(shape, cell.input_type())
    marks = jax.ShapeDtypeStruct((3,), "int32"), jax.ShapeDtypeStruct((3, T), bool)
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=DEVICE)):
        return gradient(engine, cell).trace(xs, *marks).lower(lowering_platforms=platforms).as_text()


def kernels(text: str) -> set[str]:
    return set(re.findall(r"rnnjax_matrix_scan_[a-z]+", text))


SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "every option": (64, 48, {"erases": True, "has_erase_key": True, "learn_initial": True}),
    "odd": (50, 150, {"scalar_decay": True, "reads_before": True}),
    "the most keys": (512, 512, {"erases": True}),
}


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "every option" else pytest.mark.slow) for name in SIZES]
)
def test_it_lowers_to_three_kernels_and_no_loop(platform, name):
    K, V, options = SIZES[name]
    text = lowered(Chunked(pallas=True), MatrixRecurrence(2, K, V, **options), platform)
    assert kernels(text) == NAMES
    assert "stablehlo.while" not in text
    assert "callback" not in text


def test_it_is_lowered_on_request_alone():
    cell = MatrixRecurrence(2, 8, 8)
    assert kernels(lowered(Chunked(), cell, *KERNELS, T=9)) == set()
    assert kernels(lowered(rnnjax.Auto((Chunked(pallas=True),)), cell, *KERNELS, T=9)) == NAMES


def test_a_plan_says_that_the_kernels_are_experimental_and_cells_that_they_do_not_run_are_refused():
    xs = lambda cell: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((9, *leaf.shape), leaf.dtype), cell.input_type())  # noqa: E731
    cell = MatrixRecurrence(2, 8, 8)
    plan = str(Chunked(pallas=True).plan(cell, xs(cell)))
    assert plan.endswith("GPUs and TPUs by their kernels (experimental: no device has measured them)")
    for unfit, reason in [
        (MatrixRecurrence(2, 8, 8, dtype="float64"), "run float32 and bfloat16, and its state is float64"),
        (MatrixRecurrence(2, 600, 8), "have room for 512 keys a head, and not 600"),
    ]:
        assert grid.refusal(Chunked(pallas=True), unfit, xs(unfit)) == (
            f"Chunked(pallas=True) cannot run MatrixRecurrence: the kernels of GPUs and TPUs {reason}. "
            "Use Scan() or Chunked()."
        )
