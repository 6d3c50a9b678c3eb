"""Where Fused pays: its time and memory against Scan's, over cells, batches, lengths and sizes from small to large."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
from common.command_line import command_line
from new_cell import UpdateGateRNN
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import CELLS, Case
from benchmarks.measure import Contestant, Record
from benchmarks.report import JSON, QUICK
from benchmarks.summary import mean_and_least
from benchmarks.turns import milliseconds_of, take_turns
from rnnjax import AbstractCell, AbstractEngine, Auto, Fused, Scan

GATED: dict[str, Callable[..., AbstractCell]] = {
    **{name: CELLS[name] for name in ("LSTM", "GRU", "Elman")},
    "UGRNN": UpdateGateRNN,
}
ENGINES: dict[str, AbstractEngine] = {"Scan": Scan(), "Fused": Fused()}
DIRECTIONS = {"forward": measure.forward, "gradient": measure.gradient}

BATCHES, LENGTHS, SIZES = (1, 4, 32), (1, 4, 32, 256), (4, 16, 64, 256)
QUICK_BATCHES, QUICK_LENGTHS, QUICK_SIZES = (1, 4), (1, 32), (4, 64)
SECONDS, QUICK_SECONDS = 0.25, 0.1  # for both engines on one case
BATCH_MILLISECONDS = 3.0  # so many calls are timed together: one alone may take less than the clock and its caller do
SLOWER = 0.95  # Scan's time over Fused's, below which Fused is the wrong choice

MEMORY_CASE = Case("LSTM", 32, 512, 512, 512)
MEMORY_TARGET = 0.5


class Comparison(NamedTuple):
    """Both engines on one case, in one direction, and whether Auto chooses Fused for it."""

    scan: Record
    fused: Record
    chosen: bool

    @property
    def kind(self) -> tuple[str, str]:
        return self.scan.cell, self.scan.direction

    @property
    def ratio(self) -> float:
        """How many times faster Fused is."""
        return 1 / self.fused.ratio_to_scan


parse = command_line(__doc__, JSON, QUICK)


def main() -> None:
    options = parse()
    print(report.heading())
    print(compare_memory(), flush=True)
    comparisons = run(cases(options.quick), QUICK_SECONDS if options.quick else SECONDS)
    print("\n".join(summary(comparisons)))
    measure.write(options.json, [record for scan, fused, _ in comparisons for record in (scan, fused)])


def cases(quick: bool) -> list[Case]:
    """Every cell on every shape; input and state are of one size."""
    batches, lengths, sizes = (QUICK_BATCHES, QUICK_LENGTHS, QUICK_SIZES) if quick else (BATCHES, LENGTHS, SIZES)
    return [Case(cell, B, T, size, size) for cell, size, T, B in product(GATED, sizes, lengths, batches)]


def draw(case: Case) -> tuple[AbstractCell, jax.Array]:
    """The case's cell, and a batch of random sequences for it."""
    weights, inputs = jax.random.split(jax.random.key(0))
    return GATED[case.cell](case.I, case.H, key=weights), jax.random.normal(inputs, (case.B, case.T, case.I))


def compare_memory() -> str:
    """One sentence: the temporary memory of a large gradient. It is compiled for shapes alone, and never run."""
    shapes = jax.eval_shape(lambda: draw(MEMORY_CASE))
    scan, fused = (
        measure.compile_program(name, partial(measure.gradient, engine), *shapes).temporary_bytes
        for name, engine in ENGINES.items()
    )
    assert scan is not None
    assert fused is not None
    verdict = "met" if fused <= MEMORY_TARGET * scan else "MISSED"
    shape = "(B, T, I, H) = " + str(MEMORY_CASE[1:5])
    return (
        f"gradient of the {MEMORY_CASE.cell} at {shape}: temporary memory of Fused {fused / 1e6:.0f} MB, "
        f"of Scan {scan / 1e6:.0f} MB: {fused / scan:.0%} (target <= {MEMORY_TARGET:.0%}: {verdict})"
    )


def run(cases: Sequence[Case], seconds: float) -> list[Comparison]:
    """Compare the engines on every case, in both directions, and print a line for each."""
    print(f"{LEGEND}\n{HEAD}", flush=True)
    comparisons = []
    for case, direction in tqdm(list(product(cases, DIRECTIONS)), unit="case"):
        comparisons.append(compare(case, direction, seconds))
        tqdm.write(row(comparisons[-1]))
    return comparisons


def compare(case: Case, direction: str, seconds: float) -> Comparison:
    """Time both engines in turn, and ask Auto."""
    cell, xs = draw(case)
    contestants = [
        measure.compile_program(name, partial(DIRECTIONS[direction], engine), cell, xs)
        for name, engine in ENGINES.items()
    ]
    together = [calls_together(contestant) for contestant in contestants]
    calls = [repeated(contestant, calls) for contestant, calls in zip(contestants, together, strict=True)]
    times = take_turns(calls, seconds)
    each = [[spent / calls for spent in milliseconds] for milliseconds, calls in zip(times, together, strict=True)]
    scan, fused = measure.records(case, direction, contestants, each)
    return Comparison(scan, fused, str(Auto().plan(cell, xs[0])).startswith("Fused"))


def calls_together(contestant: Contestant) -> int:
    """How many calls take about BATCH_MILLISECONDS."""
    shortest = min(milliseconds_of(contestant.call) for _ in range(3))
    return max(1, round(BATCH_MILLISECONDS / shortest))


def repeated(contestant: Contestant, calls: int) -> Callable[[], Any]:
    """So many calls, each begun when the results of the one before are there."""

    def call() -> Any:
        for _ in range(calls - 1):
            jax.block_until_ready(contestant.call())
        return contestant.call()

    return call


def summary(comparisons: Sequence[Comparison]) -> list[str]:
    """How much faster Fused is by cell and direction, and every case where it is the slower one."""
    lines = [
        "",
        f"{'cell':<7}{'direction':<10}{'cases':>6}  Scan / Fused, geometric mean over the cases (and the least)",
    ]
    for cell, direction in [*product(GATED, DIRECTIONS), ("all", "")]:
        ratios = [each.ratio for each in comparisons if cell == "all" or each.kind == (cell, direction)]
        lines.append(f"{cell:<7}{direction:<10}{len(ratios):>6}  {mean_and_least(ratios)}")
    slow = [each for each in comparisons if each.ratio < SLOWER]
    mistaken = sum(each.chosen for each in slow)
    lines += [
        "",
        f"Scan / Fused below {SLOWER}: {len(slow)} of {len(comparisons)} cases, Auto chooses Fused in {mistaken}",
    ]
    return lines + [row(each) for each in slow]


HEAD = (
    f"{'cell':<7}{'direction':<10}{'B':>4}{'T':>5}{'I':>5}{'H':>5}{'Scan ms':>11}{'spread':>8}{'MB':>9}"
    f"{'Fused ms':>11}{'spread':>8}{'MB':>9}{'Scan / Fused':>14}  Auto"
)
LEGEND = (
    "ms: median per call; spread: interquartile range / median; MB: 10^6 bytes allocated by the executable;\n"
    "Scan / Fused: ratio of the times, above 1 Fused is faster; Auto: Fused where Auto chooses it"
)


def row(comparison: Comparison) -> str:
    """A comparison as a line under HEAD."""
    scan, fused, chosen = comparison
    columns = "".join(
        f"{record.milliseconds:>11.4f}{record.spread:>8.0%}{(record.temporary_bytes or 0) / 1e6:>9.3f}"
        for record in (scan, fused)
    )
    return (
        f"{scan.cell:<7}{scan.direction:<10}{scan.B:>4}{scan.T:>5}{scan.I:>5}{scan.H:>5}{columns}"
        f"{comparison.ratio:>14.2f}  {'Fused' if chosen else ''}".rstrip()
    )


if __name__ == "__main__":
    main()
