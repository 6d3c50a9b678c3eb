"""A linear recurrence on a CPU, h = a h + b: Associative, compiled and in blocks, Scan and `jax.lax.associative_scan`.

`--million` takes one step of training of a MinGRU on a million steps instead, and says what memory its process needed.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common.command_line import command_line, option
from jaxtyping import Array, PyTree
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import Case
from benchmarks.measure import Record
from benchmarks.report import JSON, QUICK, ROOT, TABLE
from benchmarks.summary import mean_and_least
from benchmarks.turns import rest, take_turns
from rnnjax import AbstractEngine, AbstractLinearCell, Associative, Auto, Hidden, MinGRU, Scan, unroll
from rnnjax.engines import Plan
from rnnjax.kernels.linear_scan import reference
from rnnjax.marks import Marks

LENGTHS, SIZES = (1_000, 10_000, 100_000, 1_000_000), (16, 64, 128, 512)
QUICK_LENGTHS, QUICK_SIZES = (1_000, 10_000), (16, 64)
MOST = 2**26  # numbers in an array: the gradient by lax.associative_scan takes some thirty of them
SECONDS = 0.4  # for each engine on one case
OURS, BLOCKS, STEPS, THEIRS = "Associative", "Associative(block)", "Scan", "lax.associative_scan"
TARGET = 1.5  # times faster than lax.associative_scan, in the geometric mean
SLOWER = 0.95  # Scan's time over Associative's, below which Associative is the wrong choice
MILLION, MILLION_SIZE, MILLION_TARGET = 1_000_000, 64, 4e9  # steps, units, bytes


class Recurrence(AbstractLinearCell):
    """`h = a h + b` of the inputs (a, b), with no work around it."""

    size: int = eqx.field(static=True)
    initial_state: None = None

    def input_type(self) -> PyTree[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct((self.size,), jnp.float32),) * 2

    def initial(self) -> Hidden:
        return Hidden(jnp.zeros(self.size))

    def project(self, xs: PyTree[Array]) -> PyTree[Array]:
        return xs

    def coefficients(self, u: PyTree[Array]) -> tuple[Array, Array]:
        return u

    def readout(self, states: Hidden, xs: PyTree[Array]) -> Array:
        del xs
        return states.h


class LaxAssociative(AbstractEngine):
    """`jax.lax.associative_scan` over the leading axis: with units first it is no faster, and often slower."""

    def plan(self, cell: Any, xs: PyTree[Array], axis: str | None = None) -> Plan:
        del cell, xs
        return LaxAssociativePlan().over_parts(axis)


class LaxAssociativePlan(Plan):
    """For inputs without marks."""

    def __str__(self) -> str:
        return "LaxAssociative: jax.lax.associative_scan"

    def run(self, cell: Any, state: Hidden, xs: PyTree[Array], marks: Marks) -> tuple[Hidden, Hidden]:
        del marks
        a, b = jax.vmap(cell.coefficients)(cell.project(xs))
        b = b.at[0].add(a[0] * state.h)
        compose = lambda first, second: (second[0] * first[0], second[0] * first[1] + second[1])  # noqa: E731
        h = jax.lax.associative_scan(compose, (a, b))[1]
        return Hidden(h[-1]), Hidden(h)


parse = command_line(
    __doc__,
    JSON,
    QUICK,
    TABLE,
    option("--million", action="store_true", help="one step of training on a million steps"),
)


def main() -> None:
    options = parse()
    if options.table:
        print("\n".join(table(json.loads(options.table.read_text()))))
        return
    if options.million:
        print(json.dumps(million()))
        return
    print(report.heading(), flush=True)
    # In a process of its own, and first: Linux counts what a parent has held as its child's.
    command = [sys.executable, "-m", "benchmarks.associative", "--million"]
    training = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)
    records = run(QUICK_LENGTHS if options.quick else LENGTHS, QUICK_SIZES if options.quick else SIZES)
    print("\n".join(summary(records)))
    print(of_million(training))
    found = {"records": [record._asdict() for record in records], "million": training}
    report.write(options.json, found)


# Case by case


def run(lengths: Sequence[int], sizes: Sequence[int]) -> list[Record]:
    """Measure every engine on every case in both directions, and print a line for each."""
    print(f"{measure.TABLE_LEGEND}\n{measure.TABLE_HEAD}", flush=True)
    cases = [Case("h=ah+b", 1, T, H, H) for T in lengths for H in sizes]
    records = []
    for case, direction in tqdm([(case, direction) for case in cases for direction in DIRECTIONS], unit="case"):
        if case.T * case.H > MOST:
            tqdm.write(f"skipped: T = {case.T}, H = {case.H}, {direction}: more than {MOST} numbers in an array")
            continue
        for record in compare(case, direction):
            records.append(record)
            tqdm.write(measure.row(record))
    return records


def compare(case: Case, direction: str) -> list[Record]:
    engines = {
        STEPS: Scan(),
        OURS: Associative(),
        BLOCKS: Associative(block=reference.length(case.T)),
        THEIRS: LaxAssociative(),
    }
    keys = jax.random.split(jax.random.key(0))
    shape = case.T, case.H
    xs = jax.random.uniform(keys[0], shape), jax.random.normal(keys[1], shape)
    contestants = [
        measure.compile_program(name, partial(DIRECTIONS[direction], engine), xs) for name, engine in engines.items()
    ]
    times = take_turns([contestant.call for contestant in contestants], SECONDS * len(contestants))
    return measure.records(case, direction, contestants, times)


def forward(engine: AbstractEngine, xs: tuple[Array, Array]) -> Any:
    """All states."""
    return unroll(Recurrence(size=xs[0].shape[1]), None, xs, engine=engine)[1]


def gradient(engine: AbstractEngine, xs: tuple[Array, Array]) -> Any:
    """The gradient of a loss on all states, by `a` and `b`."""
    return jax.grad(lambda xs: jnp.sum(forward(engine, xs) ** 2))(xs)


DIRECTIONS: dict[str, Callable[..., Any]] = {"forward": forward, "gradient": gradient}


# A million steps


def million() -> dict[str, Any]:
    """One step of training, and one more by the clock: seconds, and the most bytes that this process has held."""
    cell = MinGRU(MILLION_SIZE, MILLION_SIZE, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (MILLION, MILLION_SIZE))
    optimiser = optax.adam(1e-3)

    def loss(cell: MinGRU, xs: Array) -> Array:
        return jnp.mean((unroll(cell, None, xs)[1][:-1] - xs[1:]) ** 2)

    @jax.jit
    def step(cell: MinGRU, moments: Any, xs: Array) -> tuple[MinGRU, Any, Array]:
        value, gradients = jax.value_and_grad(loss)(cell, xs)
        updates, moments = optimiser.update(gradients, moments)
        return eqx.apply_updates(cell, updates), moments, value

    cell, moments, before = jax.block_until_ready(step(cell, optimiser.init(cell), xs))
    rest()  # its temporary memory is given back after its results are there
    start = time.perf_counter()
    _, _, after = jax.block_until_ready(step(cell, moments, xs))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    losses = {"loss_before": float(before), "loss_after": float(after)}
    return {"T": MILLION, "H": MILLION_SIZE, "seconds": seconds, "peak_bytes": peak, **losses, **report.machine()}


def of_million(found: dict[str, Any]) -> str:
    """One sentence."""
    verdict = "met" if found["peak_bytes"] <= MILLION_TARGET else "MISSED"
    return (
        f"MinGRU, T = {found['T']}, H = {found['H']}: a step of training in {found['seconds']:.2f} s, the loss from "
        f"{found['loss_before']:.6f} to {found['loss_after']:.6f}; the process held at most "
        f"{found['peak_bytes'] / 1e9:.2f} GB (target <= {MILLION_TARGET / 1e9:.0f} GB: {verdict})"
    )


# What it comes to


def by_case(records: Sequence[Record]) -> Iterator[dict[str, Record]]:
    """The records of one case and direction after the other, by engine."""
    cases = dict.fromkeys((record.T, record.H, record.direction) for record in records)
    for case in cases:
        yield {each.engine: each for each in records if (each.T, each.H, each.direction) == case}


def times_faster(records: Sequence[Record], ours: str, other: str, direction: str | None = None) -> list[float]:
    """The time of the other over ours, case by case."""
    return [
        case[other].ratio_to_scan / case[ours].ratio_to_scan
        for case in by_case(records)
        if direction in (None, case[ours].direction)
    ]


def summary(records: Sequence[Record]) -> list[str]:
    """How much faster than the others, and where Auto chooses the slower one of ours."""
    lines = ["", "times faster, geometric mean over the cases (and the least)"]
    for ours in (OURS, BLOCKS):
        for other in (THEIRS, STEPS):
            ratios = {name: times_faster(records, ours, other, name) for name in DIRECTIONS}
            text = ", ".join(f"{name} {mean_and_least(each)}" for name, each in ratios.items())
            lines.append(f"{ours:<20} than {other:<22}{text}")
    both = times_faster(records, OURS, THEIRS)
    mean = mean_and_least(both)
    verdict = "met" if float(mean.split()[0]) >= TARGET else "MISSED"
    lines.append(f"{OURS} than {THEIRS}, all cases: {mean} (target >= {TARGET}: {verdict})")
    slow = [case for case in by_case(records) if 1 / case[OURS].ratio_to_scan < SLOWER and _is_chosen(case[OURS])]
    lines.append(f"Auto chooses {OURS} where {STEPS} is faster by more than a twentieth: {len(slow)} cases")
    return lines + [measure.row(case[OURS]) for case in slow]


def _is_chosen(record: Record) -> bool:
    xs = (jax.ShapeDtypeStruct((record.T, record.H), jnp.float32),) * 2
    return str(Auto().plan(Recurrence(size=record.H), xs)).startswith("Associative")


def table(found: dict[str, Any]) -> list[str]:
    """A file's records as a table in Markdown, a line for each case, and what they come to."""
    records = [Record(**record) for record in found["records"]]
    names = (OURS, BLOCKS, STEPS, THEIRS)
    lines = [
        "| T | H | direction | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for case in by_case(records):
        one = case[OURS]
        cells = [_cell(case[name]) for name in names]
        lines.append(f"| {one.T} | {one.H} | {one.direction} | " + " | ".join(cells) + " |")
    return [*lines, *summary(records), of_million(found["million"])]


def _cell(record: Record) -> str:
    """Time per call, time to compile, and temporary memory."""
    assert record.temporary_bytes is not None
    return f"{record.milliseconds:.3g} ms, {record.compile_seconds:.1f} s, {record.temporary_bytes / 1e6:.3g} MB"


if __name__ == "__main__":
    main()
