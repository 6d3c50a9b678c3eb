"""Matrix-state cells, Chunked against Scan: time forward and of the gradient, compile time, temporary memory.

`Chunked()` is the compiled recurrence; `Chunked(32), plain` is what runs where there is no CPU kernel. Four sequences,
four heads of 64 keys and 64 values, float32, of three kinds: a decay for each head, a decay for each key, and the gated
delta rule. The gradient is that by all inputs, of a loss on all outputs.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON
from benchmarks.turns import take_turns
from rnnjax import AbstractEngine, Scan, unroll
from rnnjax.cells import MatrixRecurrence, Transition
from rnnjax.engines import Chunked
from rnnjax.kernels.matrix_scan import cpu

B, HEADS, SIZE = 4, 4, 64
KINDS = ("decay of heads", "decay of keys", "gated delta rule")
PLAIN = "Chunked(32), plain"
ENGINES: dict[str, AbstractEngine] = {"Scan": Scan(), "Chunked()": Chunked(), PLAIN: Chunked(32)}
DIRECTIONS = ("forward", "gradient")

parse = command_line(
    __doc__,
    JSON,
    option("--steps", nargs="+", type=int, default=[64, 256, 1024, 8192], help="lengths of sequences"),
    option("--seconds", type=float, default=6.0, help="for a kind, a length and a direction (%(default)s)"),
)


def main() -> None:
    options = parse()
    print(report.heading(), flush=True)
    records = []
    for T in options.steps:
        for kind in KINDS:
            for direction in DIRECTIONS:
                records += compare(kind, T, direction, options.seconds)
    report.write(options.json, [record | report.machine() for record in records])


def compare(kind: str, T: int, direction: str, seconds: float) -> list[dict[str, Any]]:
    """The records of all engines; ratios are medians over rounds of the time over that of `Scan`."""
    cell, xs = problem(kind, T)
    compiled = [compile_for(name, cell, xs, direction) for name in ENGINES]
    times = take_turns([call for call, _ in compiled], seconds)
    records = []
    for name, (_, about), own in zip(ENGINES, compiled, times, strict=True):
        ratios = [mine / scan for mine, scan in zip(own, times[0], strict=True)]
        record = {"kind": kind, "T": T, "direction": direction, "engine": name, "milliseconds": median(own)}
        record |= {"ratio": median(ratios), "spread": [min(ratios), max(ratios)], **about}
        records.append(record)
        compiling = f"compiled in {about['compile_seconds']:4.1f} s, {about['temporary_bytes'] / 1e6:7.1f} MB"
        took = f"{record['milliseconds']:8.1f} ms {record['ratio']:6.2f} x"
        print(f"{kind:<17} T = {T:<5} {direction:<9} {name:<18} {took}, {compiling}", flush=True)
    return records


def problem(kind: str, T: int, dtype: str = "float32") -> tuple[MatrixRecurrence, Transition]:
    """A cell, and inputs like those that a layer computes: unit keys, decays from 0.9 to 1."""
    generator = np.random.default_rng(0)
    normal = lambda size: generator.normal(size=(B, T, HEADS, size))  # noqa: E731
    key = normal(SIZE)
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    decay = np.exp(-0.1 * generator.random((B, T, HEADS, SIZE if kind == "decay of keys" else 1)))
    strength = generator.random((B, T, HEADS, 1))
    erases = kind == "gated delta rule"
    value = normal(SIZE) * (strength if erases else 1)
    arrays = decay, key, value, normal(SIZE) / 8, *([decay * strength * key] if erases else [])
    cell = MatrixRecurrence(
        HEADS, SIZE, SIZE, scalar_decay=kind != "decay of keys", erases=erases, dtype=jnp.dtype(dtype)
    )
    return cell, Transition(*(jnp.asarray(each, dtype) for each in arrays))


def compile_for(
    name: str, cell: MatrixRecurrence, xs: Transition, direction: str
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call, and what its program took to trace and compile, and takes in memory."""
    run = lambda xs: jax.vmap(lambda xs: unroll(cell, None, xs, engine=ENGINES[name])[1])(xs)  # noqa: E731
    loss = lambda xs: jnp.sum(jnp.sin(run(xs)))  # noqa: E731
    start = time.perf_counter()
    with patch.object(cpu, "is_here_for", lambda _: False) if name == PLAIN else nullcontext():
        program = jax.jit(run if direction == "forward" else jax.grad(loss)).lower(xs)
    compiled = program.compile()
    seconds = time.perf_counter() - start
    analysis: Any = compiled.memory_analysis()
    return lambda: compiled(xs), {"compile_seconds": seconds, "temporary_bytes": analysis.temp_size_in_bytes}


if __name__ == "__main__":
    main()
