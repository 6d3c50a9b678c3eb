"""A cell defined outside the package against the built-in LSTM, both under Fused: time per floating-point operation."""

import statistics
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
from common.command_line import command_line
from new_cell import UpdateGateRNN
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import GATES, SHAPES, Case
from benchmarks.layers.layer import FORWARD, GRADIENT, operations
from benchmarks.turns import take_turns
from rnnjax import LSTM, AbstractGatedCell, Fused

OWN_SHAPES = tuple(shape for shape in SHAPES if shape[0] > 1)
PROGRAMS = {FORWARD: measure.forward, GRADIENT: measure.gradient}
SECONDS = 3.0  # for both cells on one shape, in one direction
TARGET = 1.2


class Pace(NamedTuple):
    """How long one call of a cell takes, and one floating-point operation of its matrix products."""

    cell: str
    milliseconds: float
    picoseconds: float


parse = command_line(__doc__)


def main() -> None:
    parse()
    print(report.heading())
    print(f"ms: median per call; ps: 10^-12 s per floating-point operation of the matrix products\n{HEAD}", flush=True)
    for shape, direction in tqdm(list(product(OWN_SHAPES, PROGRAMS)), unit="case"):
        tqdm.write(row(Case("LSTM", *shape), direction))


def paces(case: Case, direction: str) -> list[Pace]:
    """Those of the own cell and of the LSTM, timed in turn."""
    cells = [cell(case.I, case.H, key=jax.random.key(0)) for cell in (UpdateGateRNN, LSTM)]
    xs = jax.random.normal(jax.random.key(1), (case.B, case.T, case.I))
    program = partial(PROGRAMS[direction], Fused())
    times = take_turns([measure.compile_program("Fused", program, cell, xs).call for cell in cells], SECONDS)
    return [pace(cell, case, direction, milliseconds) for cell, milliseconds in zip(cells, times, strict=True)]


def pace(cell: AbstractGatedCell, case: Case, direction: str, times: list[float]) -> Pace:
    """That of one cell, whose products are those of the LSTM but for the number of gates."""
    milliseconds = statistics.median(times)
    computed = operations(case, direction) * len(cell.gates) / GATES[case.cell]
    return Pace(type(cell).__name__, milliseconds, 1e9 * milliseconds / computed)


HEAD = (
    f"{'direction':<10}{'B':>4}{'T':>5}{'I':>5}{'H':>5}  "
    f"{'own cell':<15}{'ms':>9}{'ps':>8}  {'built in':<10}{'ms':>9}{'ps':>8}{'ratio':>8}"
)


def row(case: Case, direction: str) -> str:
    """What a case comes to, as a line under HEAD."""
    own, built_in = paces(case, direction)
    ratio = own.picoseconds / built_in.picoseconds
    verdict = "met" if ratio <= TARGET else "MISSED"
    return (
        f"{direction:<10}{case.B:>4}{case.T:>5}{case.I:>5}{case.H:>5}  "
        f"{own.cell:<15}{own.milliseconds:>9.3f}{own.picoseconds:>8.3f}  "
        f"{built_in.cell:<10}{built_in.milliseconds:>9.3f}{built_in.picoseconds:>8.3f}{ratio:>8.2f}"
        f"  (target <= {TARGET}: {verdict})"
    )


if __name__ == "__main__":
    main()
