"""Matrix-state cells, Chunked against Scan: time forward and of the gradient, compile time, temporary memory.

`Chunked()` is the compiled recurrence; `Chunked(32), plain` is what runs where there is no CPU kernel. Four sequences,
four heads, float32, of three kinds: a decay for each head, a decay for each key, and the gated delta rule. Heads have
64 keys and 64 values at every length, and then other sizes at 1,024 steps. The gradient is that by all inputs, of a
loss on all outputs. `--table FILE --plot FILE` draws records that exist, without a measurement.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON, TABLE
from benchmarks.turns import take_turns
from rnnjax import AbstractEngine, Scan, unroll
from rnnjax.cells import MatrixRecurrence, Transition
from rnnjax.engines import Chunked
from rnnjax.kernels.matrix_scan import cpu

B, HEADS, SIZE, STEPS = 4, 4, 64, 1024
KINDS = ("decay of heads", "decay of keys", "gated delta rule")
PLAIN = "Chunked(32), plain"
ENGINES: dict[str, AbstractEngine] = {"Scan": Scan(), "Chunked()": Chunked(), PLAIN: Chunked(32)}
DIRECTIONS = ("forward", "gradient")
STYLES = {"Scan": "o--", "Chunked()": "o-"}

parse = command_line(
    __doc__,
    JSON,
    TABLE,
    option("--plot", type=Path, metavar="FILE", help="draw the time over lengths and over sizes"),
    option("--steps", nargs="*", type=int, default=[64, 256, 1024, 8192], help="lengths of sequences, with 64 keys"),
    option("--sizes", nargs="*", type=int, default=[16, 32, 128], help="keys of a head, with 1,024 steps"),
    option("--seconds", type=float, default=6.0, help="for a kind, a length and a direction (%(default)s)"),
)


def main() -> None:
    options = parse()
    records = json.loads(options.table.read_text()) if options.table else measure(options)
    if options.plot:
        plot(options.plot, records)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of all cases, which are printed and written as well."""
    print(report.heading(), flush=True)
    cases = [(T, SIZE) for T in options.steps] + [(STEPS, size) for size in options.sizes]
    compared = (compare(kind, *case, way, options.seconds) for case, kind, way in product(cases, KINDS, DIRECTIONS))
    records = [record | report.machine() for records in compared for record in records]
    report.write(options.json, records)
    return records


def plot(path: Path, records: list[dict[str, Any]]) -> None:
    """Milliseconds of the gradient over T and over K, both axes logarithmic, a line for each kind and engine."""
    from matplotlib.figure import Figure  # only a run with --plot needs it

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, over, fixed in zip(panels, ("T", "size"), (("size", SIZE), ("T", STEPS)), strict=True):
        for (number, kind), (engine, style) in product(enumerate(KINDS), STYLES.items()):
            fits = {"kind": kind, "engine": engine, "direction": "gradient", fixed[0]: fixed[1]}.items()
            own = sorted((each[over], each["milliseconds"]) for each in records if fits <= each.items())
            axis.plot(*zip(*own, strict=True), style, color=f"C{number}", label=f"{kind}, {engine}")
        axis.set(xscale="log", yscale="log", xlabel="steps" if over == "T" else "keys and values of a head")
        places = sorted({record[over] for record in records})
        axis.set_xticks(places, [str(place) for place in places])
        axis.minorticks_off()
    panels[0].set_ylabel("milliseconds of the gradient")
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def compare(kind: str, T: int, size: int, direction: str, seconds: float) -> list[dict[str, Any]]:
    """The records of all engines; ratios are medians over rounds of the time over that of `Scan`."""
    cell, xs = problem(kind, T, size)
    compiled = [compile_for(name, cell, xs, direction) for name in ENGINES]
    times = take_turns([call for call, _ in compiled], seconds)
    records = []
    for name, (_, about), own in zip(ENGINES, compiled, times, strict=True):
        ratios = [mine / scan for mine, scan in zip(own, times[0], strict=True)]
        record = {"kind": kind, "T": T, "size": size, "direction": direction, "engine": name}
        record |= {"milliseconds": median(own), "ratio": median(ratios), "spread": [min(ratios), max(ratios)], **about}
        records.append(record)
        compiling = f"compiled in {about['compile_seconds']:4.1f} s, {about['temporary_bytes'] / 1e6:7.1f} MB"
        took = f"{record['milliseconds']:8.1f} ms {record['ratio']:6.2f} x"
        print(f"{kind:<17} T = {T:<5} K = {size:<4} {direction:<9} {name:<18} {took}, {compiling}", flush=True)
    return records


def problem(kind: str, T: int, size: int = SIZE, dtype: str = "float32") -> tuple[MatrixRecurrence, Transition]:
    """A cell, and inputs like those that a layer computes: unit keys, decays from 0.9 to 1."""
    generator = np.random.default_rng(0)
    normal = lambda: generator.normal(size=(B, T, HEADS, size))  # noqa: E731
    key = normal()
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    decay = np.exp(-0.1 * generator.random((B, T, HEADS, size if kind == "decay of keys" else 1)))
    strength = generator.random((B, T, HEADS, 1))
    erases = kind == "gated delta rule"
    value = normal() * (strength if erases else 1)
    arrays = decay, key, value, normal() / size**0.5, *([decay * strength * key] if erases else [])
    about = {"scalar_decay": kind != "decay of keys", "erases": erases, "dtype": jnp.dtype(dtype)}
    return MatrixRecurrence(HEADS, size, size, **about), Transition(*(jnp.asarray(each, dtype) for each in arrays))


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
