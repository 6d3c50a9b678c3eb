"""The kernels on a GPU: right first, then as fast as what else there is. `python -m benchmarks.gpu --json FILE`.

Runs from a bare checkout with PYTHONPATH=. and needs JAX, Equinox, optax, jaxtyping and torch, each with its GPU. The
cases that matter most come first; after `--budget` seconds no other is begun, and FILE is written after each.
"""

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory, too

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import command_line, option

from benchmarks import matrix_state, measure, report
from benchmarks.cases import GATES, Case, draw
from benchmarks.layers.cudnn import CuDNN
from benchmarks.layers.layer import FORWARD, GRADIENT, AbstractLayer, draw_work, operations
from benchmarks.layers.pytorch import Torch, synchronise
from benchmarks.layers.scans import Ours
from benchmarks.measure import Contestant, Record
from benchmarks.report import JSON, ROOT
from rnnjax import AbstractEngine, Fused, Scan, unroll
from rnnjax.engines import Chunked, Plan, Refusal
from rnnjax.kernels import GPU
from rnnjax.kernels.linear_scan.primitive import linear_scan

ROUNDS = 5
RIGHT = "as it should be"
FUSED = Fused(cpu=None, cuda=GPU())  # where the GPU kernel refuses a cell, so does this
LONG_ENOUGH = 0.03  # seconds of calls, one after the other: the device never waits for the host
TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}  # by norm; float32 is multiplied as TF32

NARROW = "bfloat16", "float16"
LARGE = (16, 1024, 768, 768)  # B, T, I, H of FlashRNN's figures
CHECKS = (5, 33, 120, 3), (70, 24, 256, 1), (16, 64, 64, 1), (16, 24, 512, 1)  # B, T, H, heads
CASES = (
    *(Case(cell, *LARGE, dtype, heads) for heads in (12, 24) for cell in ("LSTM", "GRU") for dtype in NARROW),
    *(Case(cell, *LARGE, "float32", 24) for cell in ("LSTM", "GRU")),
    *(
        Case(cell, B, 1024, H, H, "bfloat16")
        for H in (128, 256, 512)
        for B in (16, 64, 128)
        for cell in ("LSTM", "GRU")
    ),
    *(Case(cell, 16, T, 128, 128, "bfloat16") for T in (128, 4096, 16384) for cell in ("LSTM", "GRU")),
)
MATRICES = tuple(
    Case(kind, matrix_state.B, T, matrix_state.SIZE, matrix_state.SIZE, heads=matrix_state.HEADS)
    for T in (1024, 8192)
    for kind in matrix_state.KINDS
)
SCANS = tuple(Case("h = a h + b", 8, T, 1536, 1536) for T in (4096, 1024, 16384, 65536))


parse = command_line(
    __doc__,
    JSON,
    option("--budget", type=float, default=480.0, metavar="SECONDS", help="begin no case after that"),
    option("--check", action="store_true", help="check, and measure nothing"),
)


def main() -> None:
    options = parse()
    if jax.default_backend() != "gpu":
        sys.exit(
            f"benchmarks.gpu: expected a GPU as JAX's first device, got {jax.default_backend()}. Install jax[cuda13]."
        )
    if options.check:
        check()
        return
    end = time.monotonic() + options.budget
    print(f"{report.heading()}, driver {driver()}", flush=True)
    found: dict[str, Any] = {"checks": checked(options.budget / 2), "rates": rates(), "records": []}
    work = [(prepared_layers, case) for case in CASES]
    work[4:4] = [*((prepared_scans, case) for case in SCANS), *((prepared_matrices, case) for case in MATRICES)]
    for prepare, case in work:
        for direction in (FORWARD, GRADIENT):
            if time.monotonic() < end:
                found["records"] += [record._asdict() for record in attempted(case, direction, prepare)]
                report.write(options.json, found)
    wrong = [line for line in found["checks"] if not line.endswith(RIGHT)]
    if wrong:
        sys.exit("\n".join(["benchmarks.gpu: not right:", *wrong]))


def checked(seconds: float) -> list[str]:
    """The lines of `--check`, in a process of its own: a kernel that cannot be launched ends its process."""
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--check"]
    try:
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False, cwd=ROOT)
        lines, end = made.stdout, f"ended with {made.returncode}" if made.returncode else RIGHT
    except subprocess.TimeoutExpired as late:
        lines, end = (late.stdout or b"").decode(), f"took more than {seconds:.0f} seconds"
    print(lines, end="", flush=True)
    return [*lines.splitlines(), f"all checks: {end}"]


def attempted(case: Case, direction: str, prepare: Callable[[Case, str], list[Contestant]]) -> list[Record]:
    """The records of a case; none, and the reason, of one that fails: the others are worth having."""
    try:
        return measured(case, direction, prepare(case, direction))
    except Exception as error:
        print(f"  failed: {type(error).__name__}: {error}", flush=True)
        return []


def driver() -> str:
    """The version of the driver."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# Right first


def check() -> None:
    """Print a line for every cell, dtype and shape: how far values and gradients are from float64 on the CPU."""
    for name in ("LSTM", "GRU", "Elman"):
        for dtype in TOLERANCE:
            for shape in CHECKS if name == "LSTM" else CHECKS[:2]:
                case = Case(name, shape[0], shape[1], 24, shape[2], dtype, shape[3])
                check_one(str(case), FUSED.plan(*draw_one(case)), partial(error_of, case), TOLERANCE[dtype])
    for steps, units in ((5, 3), (5000, 70)):
        check_one(f"h = a h + b, {steps} steps", None, partial(error_of_scan, steps, units), TOLERANCE["float32"])
    for kind in matrix_state.KINDS:
        for steps in (5, 300):
            check_one(f"{kind}, {steps} steps", None, partial(error_of_matrices, kind, steps), TOLERANCE["float32"])


def check_one(what: str, plan: Plan | Refusal | None, error: Callable[[], float], tolerance: float) -> None:
    if isinstance(plan, Refusal):
        print(f"{what}: {plan} {RIGHT}", flush=True)
        return
    try:
        found = error()
        print(f"{what}: {found:.1e}, {RIGHT if found < tolerance else 'wrong'}", flush=True)  # NaN is wrong
    except Exception as failure:
        print(f"{what}: {type(failure).__name__}: {failure}".partition("\n")[0], flush=True)


def error_of_scan(steps: int, units: int) -> float:
    """The distance of the linear recurrence and its gradient from the same in float64 on the CPU."""
    a, b = np.random.default_rng(0).uniform(size=(2, steps, units))

    def run(a: jax.Array, b: jax.Array) -> Any:
        scan = lambda a, b: linear_scan(a, b, jnp.zeros_like(a[0]), pallas=True)  # noqa: E731
        return scan(a, b), jax.grad(lambda a, b: jnp.sum(jnp.sin(scan(a, b))), (0, 1))(a, b)

    got = jax.jit(run)(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return distance(got, jax.jit(run)(jnp.asarray(a), jnp.asarray(b)))


def error_of_matrices(kind: str, steps: int) -> float:
    """The distance of a matrix-state recurrence and its gradient from the same by `Scan` in float64 on the CPU."""

    def run(engine: AbstractEngine, dtype: str) -> Any:
        cell, xs = matrix_state.problem(kind, steps, dtype=dtype)
        read = lambda xs: jax.vmap(lambda xs: unroll(cell, None, xs, engine=engine))(xs)  # noqa: E731
        loss = lambda xs: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(read(xs)))  # noqa: E731
        return jax.jit(lambda xs: (read(xs), jax.grad(loss)(xs)))(xs)

    got = run(Chunked(pallas=True), "float32")
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return distance(got, run(Scan(), "float64"))


def distance(got: Any, exact: Any) -> float:
    """The largest distance of a leaf from the exact one, by norm and relative to it; NaN where a leaf has one."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)
    arrays = ((np.asarray(one, np.float64), np.asarray(other, np.float64)) for one, other in pairs)
    return float(np.max([np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30) for one, other in arrays]))


def draw_one(case: Case) -> tuple[Any, jax.Array]:
    """The cell of a case, and one sequence."""
    cell, xs = draw(case)
    return cell, xs[0]


def error_of(case: Case) -> float:
    """The largest relative distance, by norm, of values and gradients from those of `Scan` in float64 on the CPU."""
    random = np.random.default_rng(case.B)
    cell, xs = draw(case)
    length, resets = random.integers(0, case.T + 1, case.B), random.random((case.B, case.T)) < 0.1
    got = eqx.filter_jit(values_and_gradients)(cell, xs, length, resets, FUSED)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), eqx.filter((cell, xs), eqx.is_array)
        )
        cell, xs = eqx.combine(wide, (cell, xs))
        exact = eqx.filter_jit(values_and_gradients)(cell, xs, length, resets, Scan())
        return distance(got, exact)


def values_and_gradients(cell: Any, xs: jax.Array, length: Any, resets: Any, engine: Any) -> Any:
    def loss(cell: Any, xs: jax.Array) -> Any:
        run = jax.vmap(lambda xs, length, resets: unroll(cell, None, xs, length=length, resets=resets, engine=engine))
        last, ys = run(xs, length, resets)
        return sum(jnp.sum(jnp.sin(leaf.astype(last.h.dtype))) for leaf in jax.tree.leaves((last, ys))), (last, ys)

    return jax.grad(loss, (0, 1), has_aux=True)(cell, xs)


# Then fast


def prepared_layers(case: Case, direction: str) -> list[Contestant]:
    """All that can run a case; the reasons of the others are printed."""
    layers: list[AbstractLayer] = [Ours("Scan", Scan()), Ours("Fused", FUSED), Torch("cuda"), CuDNN()]
    reasons = [layer.refusal(case, direction) for layer in layers]
    print(f"{case} {direction}", *(f"  {reason}" for reason in reasons if reason), sep="\n")
    pairs = zip(layers, reasons, strict=True)
    return [layer.contestant(draw_work(case, direction)) for layer, reason in pairs if reason is None]


def prepared_scans(case: Case, direction: str) -> list[Contestant]:
    """The diagonal linear recurrence by its kernel, by `associative_scan` and by `scan`."""
    shape = case.B, case.T, case.H
    bytes_moved = 4 * math.prod(shape) * (3 if direction == FORWARD else 8)
    print(f"{case} {direction}, {bytes_moved / 1e9:.2f} GB: a, b, h, and for a gradient what it reads and writes, too")
    a, b, cotangent = jax.random.uniform(jax.random.key(0), (3, *shape))

    def total(scan: Callable[..., jax.Array], a: jax.Array, b: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jnp.sum(scan(a, b) * cotangent)

    def contestant(name: str, scan: Callable[..., jax.Array]) -> Contestant:
        if direction == FORWARD:
            return measure.compile_program(name, scan, a, b)
        return measure.compile_program(name, jax.grad(partial(total, scan), (0, 1)), a, b, cotangent)

    def by_scan(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(h: jax.Array, ab: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            h = ab[0] * h + ab[1]
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(a[:, 0]), (a.swapaxes(0, 1), b.swapaxes(0, 1)))[1].swapaxes(0, 1)

    def associative(a: jax.Array, b: jax.Array) -> jax.Array:
        compose = lambda one, two: (two[0] * one[0], two[0] * one[1] + two[1])  # noqa: E731
        return jax.lax.associative_scan(compose, (a, b), axis=1)[1]

    kernel = jax.vmap(lambda a, b: linear_scan(a, b, jnp.zeros_like(a[0]), pallas=True))
    named = {"Scan": by_scan, "linear_scan": kernel, "lax.associative_scan": associative}
    return [contestant(name, scan) for name, scan in named.items()]


def prepared_matrices(case: Case, direction: str) -> list[Contestant]:
    """A matrix-state recurrence by its kernel, by matrix products in chunks, and by `Scan`."""
    print(f"{case} {direction}", flush=True)
    cell, xs = matrix_state.problem(case.cell, case.T)

    def contestant(name: str, engine: AbstractEngine) -> Contestant:
        run = lambda xs: jax.vmap(lambda xs: unroll(cell, None, xs, engine=engine)[1])(xs)  # noqa: E731
        loss = lambda xs: jnp.sum(jnp.sin(run(xs)))  # noqa: E731
        return measure.compile_program(name, run if direction == FORWARD else jax.grad(loss), xs)

    named = {"Scan": Scan(), "Chunked()": Chunked(), "Chunked(pallas=True)": Chunked(pallas=True)}
    return [contestant(name, engine) for name, engine in named.items()]


def measured(case: Case, direction: str, contestants: list[Contestant]) -> list[Record]:
    """The records of the contestants, and a line for each."""
    rounds = [[device_milliseconds(contestant.call) for contestant in contestants] for _ in range(ROUNDS)]
    made = []
    for record in measure.records(case, direction, contestants, list(zip(*rounds, strict=True))):
        rate = operations(case, direction) / record.milliseconds / 1e6 if case.cell in GATES else None
        made.append(record._replace(platform="cuda", gigaflops=rate, machine=f"{record.machine}, driver {driver()}"))
        who = f"{record.peer or 'rnnjax'} {record.engine}"
        print(f"  {who:<28}{record.milliseconds:>10.3f} ms {record.ratio_to_scan:>8.3f} of Scan", flush=True)
    return made


def device_milliseconds(call: Callable[[], Any]) -> float:
    """The time per call of as many as keep the device busy for a while, one after the other."""
    seconds(call, 1)
    count = math.ceil(LONG_ENOUGH / seconds(call, 1))
    return 1e3 * seconds(call, count) / count


def seconds(call: Callable[[], Any], count: int) -> float:
    """How long so many calls take, until the results of the last are there."""
    start, results = time.perf_counter(), None
    for _ in range(count):
        results = call()
    jax.block_until_ready(results)
    synchronise()
    return time.perf_counter() - start


def rates() -> dict[str, float]:
    """What the device can do at most."""
    found = {"copy, TB/s": bandwidth(), "bfloat16 product, TFLOP/s": matrix_rate()}
    print(found, flush=True)
    return found


def bandwidth() -> float:
    """Bytes read and written by a copy, in 10^12 per second."""
    source = jax.random.normal(jax.random.key(0), (1 << 28,))
    copy = jax.jit(lambda array: -array).lower(source).compile()
    return 2 * source.nbytes / 1e9 / statistics.median(device_milliseconds(lambda: copy(source)) for _ in range(ROUNDS))


def matrix_rate() -> float:
    """Operations of a product of square matrices in bfloat16, in 10^12 per second."""
    size = 8192
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return 2e-9 * size**3 / statistics.median(device_milliseconds(lambda: product(left, right)) for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
