"""The kernels on a GPU: right first, then as fast as what else there is. `python benchmarks/gpu.py --json FILE`.

Runs from a bare checkout with PYTHONPATH=. and needs JAX, Equinox, optax, jaxtyping and torch, each with its GPU. The
cases that matter most come first; after `--budget` seconds no other is begun, and FILE is written after each.
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory, too

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

if not __package__:  # run as a script: Python then looks in this folder only, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from benchmarks.cases import CELLS, Case
from benchmarks.layers.cudnn import CuDNN
from benchmarks.layers.layer import FORWARD, GRADIENT, AbstractLayer, draw_work, operations
from benchmarks.layers.pytorch import Torch, synchronise
from benchmarks.layers.scans import Ours
from benchmarks.measure import Record
from rnnjax import Fused, Scan, unroll

ROUNDS = 5
FUSED = Fused(cpu=None, tpu=None)  # where the GPU kernel refuses, nothing is measured in its name
LONG_ENOUGH = 0.03  # seconds of calls, one after the other: the device never waits for the host
TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}  # by norm; float32 is multiplied as TF32

NARROW = "bfloat16", "float16"
LARGE = (16, 1024, 768, 768)  # B, T, I, H of FlashRNN's figures
CASES = (
    *(Case(cell, *LARGE, dtype, heads) for heads in (12, 24, 1) for cell in ("LSTM", "GRU") for dtype in NARROW),
    *(Case(cell, *LARGE, "float32", heads) for heads in (24, 1) for cell in ("LSTM", "GRU")),
    *(
        Case(cell, B, 1024, H, H, "bfloat16")
        for H in (128, 256, 512, 1024)
        for B in (16, 64, 128)
        for cell in ("LSTM", "GRU")
    ),
    *(Case(cell, 16, T, 128, 128, "bfloat16") for T in (128, 4096, 16384) for cell in ("LSTM", "GRU")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records, as they come")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS", help="begin no case after that")
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        sys.exit(f"gpu.py: expected a GPU as JAX's first device, got {jax.default_backend()}. Install jax[cuda13].")
    end = time.monotonic() + options.budget
    print(f"{measure.heading()}, driver {driver()}", flush=True)
    wrong = [message for message in correctness() if message]
    records: list[Record] = []
    print(f"copy {bandwidth():.2f} TB/s, bfloat16 product {matrix_rate():.0f} TFLOP/s", flush=True)
    for case in CASES:
        for direction in (FORWARD, GRADIENT):
            if time.monotonic() < end:
                records += measured(case, direction)
                if options.json:
                    measure.write_json(options.json, records)
    if wrong:
        sys.exit("\n".join(["gpu.py: outside of the tolerance:", *wrong]))


def driver() -> str:
    """The version of the driver."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# Right first


def correctness() -> Iterator[str | None]:
    """A line for every cell, dtype and number of heads: how far values and gradients are from float64 on the CPU."""
    for name in ("LSTM", "GRU", "Elman"):
        for dtype in TOLERANCE:
            for B, T, H, heads in ((16, 64, 64, 1), (5, 33, 120, 3), (40, 20, 128, 1)):
                case = Case(name, B, T, 24, H, dtype, heads)
                error = error_of(case)
                line = f"{name} {dtype} B={B} T={T} H={H} heads={heads}: {error:.1e}"
                print(line, flush=True)
                yield None if error < TOLERANCE[dtype] else line  # NaN is outside


def error_of(case: Case) -> float:
    """The largest relative distance, by norm, of values and gradients from those of `Scan` in float64 on the CPU."""
    random = np.random.default_rng(case.B)
    cell = CELLS[case.cell](case.I, case.H, key=jax.random.key(1), dtype=jnp.dtype(case.dtype), heads=case.heads)
    xs = jnp.asarray(random.standard_normal((case.B, case.T, case.I)), cell.dtype)
    length, resets = random.integers(0, case.T + 1, case.B), random.random((case.B, case.T)) < 0.1
    got = jax.tree.leaves(eqx.filter_jit(values_and_gradients)(cell, xs, length, resets, FUSED))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), eqx.filter((cell, xs), eqx.is_array)
        )
        cell, xs = eqx.combine(wide, (cell, xs))
        exact = jax.tree.leaves(eqx.filter_jit(values_and_gradients)(cell, xs, length, resets, Scan()))
    pairs = ((np.asarray(one, np.float64), np.asarray(other)) for one, other in zip(got, exact, strict=True))
    return max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)


def values_and_gradients(cell: Any, xs: jax.Array, length: Any, resets: Any, engine: Any) -> Any:
    def loss(cell: Any, xs: jax.Array) -> Any:
        run = jax.vmap(lambda xs, length, resets: unroll(cell, None, xs, length=length, resets=resets, engine=engine))
        last, ys = run(xs, length, resets)
        return sum(jnp.sum(jnp.sin(leaf.astype(last.h.dtype))) for leaf in jax.tree.leaves((last, ys))), (last, ys)

    return jax.grad(loss, (0, 1), has_aux=True)(cell, xs)


# Then fast


def measured(case: Case, direction: str) -> list[Record]:
    """The records of all that can run a case, and a line for each."""
    layers: list[AbstractLayer] = [Ours("Scan", Scan()), Ours("Fused", FUSED), Torch("cuda"), CuDNN()]
    reasons = [layer.refusal(case, direction) for layer in layers]
    contestants = [
        layer.contestant(draw_work(case, direction))
        for layer, reason in zip(layers, reasons, strict=True)
        if reason is None
    ]
    rounds = [[device_milliseconds(contestant.call) for contestant in contestants] for _ in range(ROUNDS)]
    times = list(zip(*rounds, strict=True))
    print(f"{case} {direction}", *(f"  {reason}" for reason in reasons if reason), sep="\n")
    made = []
    for record in measure.records(case, direction, contestants, times):
        rate = operations(case, direction) / record.milliseconds / 1e6
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
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    synchronise()
    return time.perf_counter() - start


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
