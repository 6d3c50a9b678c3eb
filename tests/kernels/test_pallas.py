"""The Pallas kernels of GPU and TPU, on a machine that has neither: emulated, and lowered for devices not here.

That the emulated kernels equal `Scan` under every view, and keep the laws, is in `test_grid` and `test_laws`.
"""

import itertools
import os
import re
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import equinox as eqx
import grid
import jax
import jax.numpy as jnp
import kernel_problems
import numpy as np
import pytest
from jaxtyping import Array, PyTree
from kernel_problems import LENGTH, RESETS, H, I, S, T, draw, shapes

import rnnjax
from rnnjax.engines.fused import FusedPlan
from rnnjax.kernels.pallas import mosaic_gpu
from rnnjax.kernels.pallas import tpu as pallas_tpu
from rnnjax.kernels.recurrence.contract import (
    AbstractKernel,
    KernelPlan,
    NeedsGradient,
    Pointwise,
    Sequences,
    Weights,
)
from rnnjax.kernels.recurrence.gpu.block import Block
from rnnjax.kernels.recurrence.gpu.cluster import Cluster
from rnnjax.kernels.recurrence.gpu.device import KNOWN, LEAST, Device
from rnnjax.kernels.recurrence.gpu.plan import GPUPlan
from rnnjax.kernels.recurrence.reference import Reference

FUSED = rnnjax.Fused(cuda=rnnjax.kernels.GPU(), tpu=rnnjax.kernels.TPU())
GATED = "elman", "lstm", "lstm_options", "gru"
DTYPES = "float32", "bfloat16", "float16"
EMULATED = "tpu", "gpu"
DEVICES = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"


def on(device: str) -> Any:
    """A context in which what is lowered for CUDA is lowered for `device`."""
    kind = jax.sharding.AbstractDevice(device_kind=device, num_cores=None, platform="cuda")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind))


# Both halves, emulated, in sizes that fill no tile, and more than one


def halves(kernel: AbstractKernel, cell: Any, *operands: Any) -> Any:
    weights, sequences, dstates, dlast = operands
    pointwise = Pointwise.of(cell)
    plan = kernel.plan(pointwise, weights)
    assert isinstance(plan, KernelPlan)
    trajectory = plan.forward(weights, sequences, 0, (True,) * pointwise.fields)
    needs_gradient = NeedsGradient(Weights(*[True] * 5), True, True)
    return trajectory[:2], plan.backward(weights, sequences, trajectory, dstates, dlast, needs_gradient)


def problem(cell: Any, length: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
    """Random numbers for sequences of so many steps."""
    _, batch, steps = resets.shape
    weights, xs, state = shapes(cell, batch=batch, steps=steps)
    states = tuple(np.zeros((S, batch, steps, H)) for _ in range(state.shape[2]))
    weights, xs, start, dstates, dlast = draw((weights, xs, state, states, state), 1)
    return weights, Sequences(xs, start, length, resets), dstates, dlast


@lru_cache
def emulated(name: str) -> AbstractKernel:
    if name == "gpu":
        return rnnjax.kernels.GPU(interpret=True)
    return rnnjax.kernels.TPU(interpret=pallas_tpu.InterpretParams(uninitialized_memory="nan", detect_races=True))


@lru_cache
def expected(cell: str) -> PyTree:
    """What the reference makes of a small problem."""
    built = grid.build(cell)
    return jax.jit(partial(halves, Reference(), built))(*problem(built, LENGTH, RESETS))


@pytest.mark.slow
@pytest.mark.parametrize("cell", GATED)
@pytest.mark.parametrize("kernel", EMULATED)
def test_halves_equal_the_reference(kernel, cell):
    built = grid.build(cell)
    got = jax.jit(partial(halves, emulated(kernel), built))(*problem(built, LENGTH, RESETS))
    grid.assert_close(got, expected(cell))


@pytest.fixture
def small_tiles(monkeypatch):
    """Of the TPU kernel; those of the GPU kernel are as small."""
    monkeypatch.setattr("rnnjax.kernels.recurrence.tpu.layout.MOST_ROWS", 16)
    monkeypatch.setattr("rnnjax.kernels.recurrence.tpu.layout.MOST_STEPS", 4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("kernel", "cell", "batch", "steps"),
    [
        ("tpu", "gru", 20, 7),
        pytest.param("tpu", "lstm_options", 35, 11, marks=pytest.mark.slow),
        ("gpu", "lstm_options", 35, 11),
    ],
)
def test_several_tiles_and_blocks(kernel, cell, batch, steps):
    """More sequences than fill a tile, more steps than fill a block, and sequences that end blocks before the last."""
    cell = grid.build(cell)
    random = np.random.default_rng(0)
    length = random.integers(0, steps + 1, (S, batch), np.int32)
    length[:, 16:32] = random.integers(0, 4, length[:, 16:32].shape)
    kernels = emulated(kernel), Reference()
    both = jax.jit(lambda *operands: [halves(each, cell, *operands) for each in kernels])
    grid.assert_close(*both(*problem(cell, length, random.random((S, batch, steps)) < 0.3)))


# A cluster, emulated where this JAX can


@pytest.fixture
def emulator():
    if not hasattr(mosaic_gpu, "InterpretGPUParams"):
        pytest.skip("JAX 0.10 cannot emulate a cluster of blocks")


def run_cluster(*arguments: str) -> subprocess.CompletedProcess:
    script = Path(kernel_problems.__file__).with_name("cluster_run.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=os.environ)


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
def test_a_cluster_equals_the_reference_and_has_no_race():
    done = run_cluster()
    assert done.returncode == 0, done.stderr
    assert "RACE DETECTED" not in done.stdout + done.stderr


@pytest.mark.usefixtures("emulator")
def test_without_its_barrier_a_cluster_races():
    done = run_cluster("barrier")
    assert "RACE DETECTED" in done.stdout + done.stderr


# Lowering for devices that are not here

BATCH, STEPS = 13, 11  # of such sizes that no other array is as large as a gradient of R for each sequence


def gradient(engine: Any, cell: Any, xs: Array, length: Array, resets: Array) -> Any:
    """The gradient of a batch by everything that is inexact."""
    weights, static = eqx.partition(cell, eqx.is_inexact_array)

    def loss(weights: Any, xs: Array) -> Array:
        run = partial(rnnjax.unroll, eqx.combine(weights, static), None, engine=engine)
        state, ys = jax.vmap(lambda xs, length, resets: run(xs, length=length, resets=resets))(xs, length, resets)
        return grid.contract((state, ys))

    return jax.grad(loss, (0, 1))(weights, xs)


def lowered(cell: Any, platform: str, engine: rnnjax.AbstractEngine = FUSED, steps: int = STEPS) -> str:
    """The gradient of a ragged batch with resets, for a platform."""
    weights, static = eqx.partition(cell, eqx.is_array)
    run = jax.jit(lambda weights, *batch: gradient(engine, eqx.combine(weights, static), *batch))
    xs, length = np.zeros((BATCH, steps, I), cell.dtype), np.zeros(BATCH, np.int32)
    traced = run.trace(weights, xs, length, np.zeros((BATCH, steps), bool))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def check_lowered(text: str, cell: Any) -> None:
    """Two kernels, and neither a loop, nor a call to the host, nor a gradient of a weight for each sequence."""
    name = type(cell).__name__.lower()
    kernels = set(re.findall(r"rnnjax_[a-z]+_[a-z]+", text))  # Mosaic adds a number, or its own name
    assert kernels == {f"rnnjax_{name}_forward", f"rnnjax_{name}_backward"}
    assert "stablehlo.while" not in text
    assert "callback" not in text
    shapes_seen = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    sizes_seen = {np.prod([int(size) for size in shape.split("x")[:-1]]) for shape in shapes_seen}
    assert BATCH * cell.recurrent_weight.size not in sizes_seen


def of_zeros(cell: type, inputs: int, units: int, dtype: str, **options: Any) -> Any:
    """A cell whose weights no test looks at."""
    made = partial(cell, inputs, units, dtype=jnp.dtype(dtype), **options)
    shape = eqx.filter_eval_shape(made, key=grid.KEY)
    return jax.tree.map(lambda leaf: grid.place(np.zeros(leaf.shape, leaf.dtype)), shape)


# A dtype for each cell, in the quick strategy.
QUICK = {("elman", "float32"), ("lstm", "bfloat16"), ("lstm_options", "float16"), ("gru", "float32")}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in itertools.product(GATED, DTYPES)
]


@pytest.mark.parametrize(("cell", "dtype"), CASES)
def test_it_lowers_for_a_tpu(cell, dtype):
    cell = grid.build(cell, dtype)
    check_lowered(lowered(cell, "tpu"), cell)


@pytest.mark.parametrize(("cell", "dtype"), CASES)
def test_it_lowers_for_a_gpu(cell, dtype):
    cell = grid.build(cell, dtype)
    with on("NVIDIA H200"):
        check_lowered(lowered(cell, "cuda"), cell)


SHAPES = {  # too large for one block
    "elman": (rnnjax.Elman, 512, {}),
    "lstm": (rnnjax.LSTM, 256, {}),
    "lstm_options": (rnnjax.LSTM, 256, {"peepholes": True, "coupled": True, "clip": 0.8, "learn_initial": True}),
    "gru": (rnnjax.GRU, 256, {}),
}


@pytest.mark.parametrize(("cell", "dtype"), CASES)
def test_several_blocks_lower(cell, dtype):
    kind, units, options = SHAPES[cell]
    made = of_zeros(kind, I, units, dtype, **options)
    with on("NVIDIA H200"):
        assert described(FUSED, made, grid.inputs(T, dtype=dtype))["cuda"].startswith("GPU kernel, a cluster of blocks")
        check_lowered(lowered(made, "cuda"), made)


@pytest.mark.parametrize(
    ("cell", "units", "heads"),
    [
        (rnnjax.LSTM, 144, 1),  # divisible by 16 alone: many small chunks
        pytest.param(rnnjax.LSTM, 240, 2, marks=pytest.mark.slow),
        pytest.param(rnnjax.Elman, 720, 1, marks=pytest.mark.slow),  # 48 units in a block
    ],
)
def test_odd_sizes_lower(cell, units, heads):
    made = of_zeros(cell, I, units * heads, "bfloat16", heads=heads)
    with on("NVIDIA H200"):
        check_lowered(lowered(made, "cuda"), made)


def test_a_program_is_lowered_by_the_plan_it_was_traced_with(monkeypatch):
    """No kernel is asked again, for the device or the precision that are at hand then: like JAX's own products."""
    cell = of_zeros(rnnjax.Elman, I, 384, "float32")
    with on("NVIDIA H200"):
        run = jax.jit(partial(rnnjax.unroll, cell, None, engine=FUSED))
        traced = run.trace(np.zeros((T, I), cell.dtype))
        monkeypatch.setattr(rnnjax.kernels.GPU, "plan", None)
        with jax.default_matmul_precision("highest"):
            assert custom_calls(traced.lower(lowering_platforms=("cuda",)).as_text()) == {"mosaic_gpu_v2"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", LEAST.name),
    ],
)
def test_devices_by_name(kind, name):
    assert Device.named(kind).name == name


@pytest.mark.parametrize("device", DEVICES)
def test_it_lowers_for_every_gpu(device):
    cell = grid.build("gru", "bfloat16")
    with on(device):
        check_lowered(lowered(cell, "cuda"), cell)


def test_a_refused_cell_is_lowered_by_the_reference():
    cell, engine = grid.build("gru"), rnnjax.Fused(cpu=Reference(), cuda=rnnjax.kernels.GPU())
    with on("NVIDIA H200"):
        assert "rnnjax" not in lowered(cell, "cuda", engine)
        plan = engine.plan(cell, grid.inputs(T))
    assert plan.notes == ("The GPU kernel carries float32, and the cell float64. Build the cell in float32.",)


# Nobody gets a kernel that no device has measured, unless by name

AUTO = rnnjax.Auto((rnnjax.Associative(pallas=True), FUSED, rnnjax.Scan()))
CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}  # of a Pallas kernel, by platform


def custom_calls(text: str) -> set[str]:
    return set(re.findall(r"custom_call @([^(\s]+)\(", text))


@pytest.mark.parametrize("platform", CALLS)
@pytest.mark.parametrize(
    ("cell", "default", "opted_in"),
    [
        (rnnjax.GRU, rnnjax.Auto(), AUTO),
        (rnnjax.GRU, rnnjax.Fused(), FUSED),
        (rnnjax.MinGRU, rnnjax.Auto(), AUTO),
        (rnnjax.MinGRU, rnnjax.Associative(), rnnjax.Associative(pallas=True)),
    ],
)
def test_experimental_kernels_are_lowered_on_request_alone(cell, default, opted_in, platform):
    made = of_zeros(cell, I, 16, "float32")
    with on("NVIDIA H200"):
        assert custom_calls(lowered(made, platform, default, steps=32)) == set()
        assert custom_calls(lowered(made, platform, opted_in, steps=32)) == {CALLS[platform]}


def test_a_cluster_is_lowered_on_request_alone():
    made = of_zeros(rnnjax.GRU, I, 256, "bfloat16")
    with on("NVIDIA H200"):
        assert custom_calls(lowered(made, "cuda", rnnjax.Auto(), steps=32)) == set()
        assert custom_calls(lowered(made, "cuda", AUTO, steps=32)) == {"mosaic_gpu_v2"}


def test_auto_takes_fused_and_associative_in_these_sizes():
    """So that the tests above prove something of their defaults."""
    for cell, engine in ((rnnjax.GRU, rnnjax.Fused), (rnnjax.MinGRU, rnnjax.Associative)):
        plan = rnnjax.Auto().plan(of_zeros(cell, I, 16, "float32"), grid.inputs(32, dtype="float32"))
        assert str(plan).startswith(f"{engine.__name__}: CPU kernel")


@pytest.mark.parametrize("platform", CALLS)
def test_newton_takes_no_experimental_kernel(platform):
    """Its linear recurrence of one number per unit is the one of `Associative`."""
    made = of_zeros(rnnjax.DiagonalGRU, I, 16, "float32")
    engine = rnnjax.Newton(rnnjax.engines.Diagonal(), fall_back=True)
    assert custom_calls(lowered(made, platform, engine)) == set()


def described(engine: rnnjax.Fused, cell: Any, xs: Array) -> dict[str, str]:
    """The plan of each kernel, in its words."""
    plan = engine.plan(cell, xs)
    assert isinstance(plan, FusedPlan)
    return {platform: str(each) for platform, each in plan.kernels}


def test_a_plan_says_that_a_kernel_is_experimental():
    with on("NVIDIA H200"):
        of_each = described(FUSED, of_zeros(rnnjax.GRU, I, 16, "float32"), grid.inputs(T, dtype="float32"))
    assert of_each["cuda"].startswith("GPU kernel, one block of threads for each head")
    assert of_each["tpu"].startswith("TPU kernel, block by block of time")
    for platform in CALLS:
        assert of_each[platform].endswith("(experimental: no device has measured it)")


# The plan


def sizes(cell: type, units: int, heads: int = 1, dtype: str = "bfloat16") -> tuple[Pointwise, Weights]:
    made = eqx.filter_eval_shape(partial(cell, I, units * heads, heads=heads, dtype=jnp.dtype(dtype)), key=grid.KEY)
    return Pointwise.of(made), jax.eval_shape(
        lambda: Weights(*(jnp.zeros((1, heads, units, len(made.gates), units), dtype),) * 5)
    )


def strategy(specification: tuple[Pointwise, Weights], device: Device) -> Any:
    """The strategy of the plan for a device, or the reason why it has none."""
    plan = rnnjax.kernels.GPU(device=device).plan(*specification)
    return plan.strategy if isinstance(plan, GPUPlan) else str(plan)


H200 = next(device for device in KNOWN if device.name == "H200")
HOPPER = {device.name for device in KNOWN if device.capability == 90}
AMPERE_ON = HOPPER | {"A100", "B200", "B300"}


@pytest.mark.parametrize(
    ("cell", "units", "dtype", "block", "several"),
    [
        (rnnjax.LSTM, 128, "bfloat16", AMPERE_ON, set()),
        (rnnjax.LSTM, 64, "float32", AMPERE_ON | {LEAST.name}, set()),
        (rnnjax.LSTM, 512, "bfloat16", set(), HOPPER),
        (rnnjax.LSTM, 768, "bfloat16", set(), set()),
        (rnnjax.LSTM, 129, "bfloat16", set(), set()),
        (rnnjax.Elman, 256, "float16", AMPERE_ON, set()),
        (rnnjax.GRU, 512, "float16", set(), HOPPER),
    ],
)
def test_what_fits(cell, units, dtype, block, several):
    specification = sizes(cell, units, dtype=dtype)
    strategies = {device.name: strategy(specification, device) for device in (*KNOWN, LEAST)}
    assert {name for name, found in strategies.items() if isinstance(found, Block)} == block
    assert {name for name, found in strategies.items() if isinstance(found, Cluster)} == several


def test_a_refusal_names_what_fits():
    assert strategy(sizes(rnnjax.LSTM, 520), H200) == (
        "The GPU kernel does not take it: as one block of threads, H200 has shared memory for 128 units a head of this "
        "cell, and not 520; a cluster needs a multiple of 16 units a head, such as 528, and not 520."
    )
    assert strategy(sizes(rnnjax.LSTM, 768), H200) == (
        "The GPU kernel does not take it: as one block of threads, H200 has shared memory for 128 units a head of this "
        "cell, and not 768; a cluster on H200 has room for 512 units a head of this cell, and not 768."
    )
    old = H200._replace(name="V100", capability=70)
    assert strategy(sizes(rnnjax.LSTM, 64), old) == (
        "The GPU kernel does not take it: as one block of threads, it needs compute capability 8.0, and V100 has 7.0; "
        "a cluster needs compute capability 9.0, `wgmma`, and V100 has 7.0."
    )
    assert isinstance(rnnjax.kernels.TPU(memory=128).plan(*sizes(rnnjax.LSTM, 3840)), KernelPlan)
    assert str(rnnjax.kernels.TPU().plan(*sizes(rnnjax.LSTM, 4096))) == (
        "The TPU kernel keeps R of a head in vector memory: in 16 MiB, at most 1024 units a head of this cell, and not "
        "4096. Take more heads, or fewer units."
    )


def test_float32_is_rounded_only_where_it_may_be():
    specification = sizes(rnnjax.LSTM, 256, dtype="float32")
    assert isinstance(strategy(specification, H200), Cluster)
    with jax.default_matmul_precision("highest"):
        reason = strategy(specification, H200)
        assert "a cluster multiplies float32 as TF32, and jax_default_matmul_precision is highest" in str(reason)


def test_a_plan_fills_the_device():
    made = strategy(sizes(rnnjax.LSTM, 64), H200)
    assert isinstance(made, Block)
    assert made.tile(heads=12, sequences=16).rows == 16  # 12 blocks: none can be spared
    assert made.tile(heads=12, sequences=1024).rows == 32  # 768 blocks of 16 would take turns
    assert str(made).startswith("one block of threads for each head")


class Stepped(rnnjax.Elman):
    """An Elman cell with an operation that no kernel on a GPU or TPU has."""

    def pointwise(self, parameters, u, v, state):
        del parameters, state
        return rnnjax.Hidden(jax.scipy.special.erfc((u + v)[0]))


def test_an_operation_that_is_lacking():
    specification = Pointwise.of(Stepped(I, H, key=grid.KEY)), sizes(rnnjax.Elman, H, dtype="float32")[1]
    of_gpu, of_tpu = (str(kernel.plan(*specification)) for kernel in (rnnjax.kernels.GPU(), rnnjax.kernels.TPU()))
    assert "as one block of threads, it has no erfc, which pointwise computes" in of_gpu
    assert of_tpu == "The TPU kernel has no erfc, which pointwise computes. Write pointwise without it."
