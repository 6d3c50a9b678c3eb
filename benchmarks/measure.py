"""How engines are measured: compile, run them in turn, and give one record per engine."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import report
from benchmarks.cases import Case, draw
from benchmarks.turns import take_turns
from rnnjax import AbstractCell, AbstractEngine, unroll


class Record(NamedTuple):
    """One engine on one case. `spread` is the interquartile range over the median, of the time per call.

    `compile_seconds` go from the Python function to the executable: tracing, lowering, compiling. `temporary_bytes`
    are what the executable allocates beside its arguments and results. Both are None where nothing is compiled.
    `ratio_to_scan` is the engine's time over Scan's, the median over the rounds of a run: below 1 is faster than Scan.
    Where another library was measured, `peer` is its name and `engine` is what it calls its layer; `gigaflops` (10^9
    operations per second) and `fraction_of_peak` are filled in by `peers.py`.
    """

    cell: str
    engine: str
    platform: str
    dtype: str
    B: int
    T: int
    I: int  # noqa: E741  an axis of the notation in rnnjax/arrays.py
    H: int
    direction: str
    milliseconds: float
    spread: float
    compile_seconds: float | None
    temporary_bytes: int | None
    ratio_to_scan: float
    machine: str
    cores: int
    jax: str
    python: str
    peer: str | None = None
    peer_version: str | None = None
    gigaflops: float | None = None
    fraction_of_peak: float | None = None
    heads: int = 1


class Contestant(NamedTuple):
    """A program with its arguments, ready to be called, and what it took to make it."""

    engine: str
    call: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    peer: str | None = None
    peer_version: str | None = None


def forward(engine: AbstractEngine, cell: AbstractCell, xs: jax.Array) -> Any:
    """The last state and the outputs of a batch."""
    return jax.vmap(lambda sequence: unroll(cell, None, sequence, engine=engine))(xs)


def gradient(engine: AbstractEngine, cell: AbstractCell, xs: jax.Array) -> Any:
    """The gradient of a loss on all outputs and on the last state, by the weights and by the inputs."""

    def loss(cell: AbstractCell, xs: jax.Array) -> jax.Array:
        last, ys = forward(engine, cell, xs)
        return jnp.sum(ys**2) + jnp.sum(last.h**2)

    return jax.grad(loss, argnums=(0, 1))(cell, xs)


def compile_program(engine: str, program: Callable[..., Any], *arguments: Any) -> Contestant:
    """Compile `program` for `arguments`, by the clock."""
    start = time.perf_counter()
    executable = jax.jit(program).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    assert memory is not None, "this platform does not say how much memory an executable takes"
    return Contestant(engine, partial(executable, *arguments), seconds, memory.temp_size_in_bytes)


def measure(
    case: Case, direction: str, program: Callable[..., Any], engines: Mapping[str, AbstractEngine], seconds: float = 1.0
) -> list[Record]:
    """Records of `program(engine, cell, xs)` for every one of `engines`, of which Scan must be one."""
    arguments = draw(case)
    contestants = [compile_program(name, partial(program, engine), *arguments) for name, engine in engines.items()]
    times = take_turns([contestant.call for contestant in contestants], seconds * len(contestants))
    return records(case, direction, contestants, times)


def records(
    case: Case, direction: str, contestants: Sequence[Contestant], times: Sequence[Sequence[float]]
) -> list[Record]:
    """The records of contestants, of which Scan must be one, and of the milliseconds that each took, round by round."""
    (scan,) = [milliseconds for each, milliseconds in zip(contestants, times, strict=True) if each.engine == "Scan"]
    made = []
    for contestant, milliseconds in zip(contestants, times, strict=True):
        first, median, third = statistics.quantiles(milliseconds, n=4, method="inclusive")
        made.append(
            Record(
                **case._asdict(),
                **report.machine(),
                engine=contestant.engine,
                platform=jax.default_backend(),
                direction=direction,
                milliseconds=median,
                spread=(third - first) / median,
                compile_seconds=contestant.compile_seconds,
                temporary_bytes=contestant.temporary_bytes,
                ratio_to_scan=median_ratio(milliseconds, scan),
                peer=contestant.peer,
                peer_version=contestant.peer_version,
            )
        )
    return made


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios: a machine whose pace changes between rounds changes both times of a round."""
    return statistics.median(time / other for time, other in zip(times, others, strict=True))


TABLE_HEAD = (
    f"{'cell':<7}{'direction':<22}{'B':>4}{'T':>7}{'I':>5}{'H':>5}  {'engine':<14}"
    f"{'ms':>10}{'spread':>8}{'compile s':>11}{'temporary MB':>14}{'ratio':>8}"
)
TABLE_LEGEND = (
    "ms: median per call; spread: interquartile range / median; temporary MB: 10^6 bytes allocated by the executable;\n"
    "ratio: the engine's time / Scan's time, below 1 is faster than Scan"
)


def row(record: Record) -> str:
    """The record of an engine as a line under TABLE_HEAD."""
    assert record.compile_seconds is not None
    assert record.temporary_bytes is not None
    return (
        f"{record.cell:<7}{record.direction:<22}{record.B:>4}{record.T:>7}{record.I:>5}{record.H:>5}  "
        f"{record.engine:<14}{record.milliseconds:>10.3f}{record.spread:>7.0%} {record.compile_seconds:>11.2f}"
        f"{record.temporary_bytes / 1e6:>14.3f}{record.ratio_to_scan:>8.2f}"
    )


def write(path: Path | None, records: Sequence[Record]) -> None:
    """Write the list of records as JSON, unless `path` is None."""
    report.write(path, [record._asdict() for record in records])
