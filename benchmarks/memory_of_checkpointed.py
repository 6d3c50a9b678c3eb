"""What Checkpointed saves: memory and time of the gradient of a loss on the last of 10,000 steps, against Scan."""

from typing import Any

import jax
import jax.numpy as jnp
from common.command_line import command_line
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.cases import Case
from benchmarks.measure import Record
from benchmarks.report import JSON
from rnnjax import AbstractCell, AbstractEngine, Checkpointed, Scan

CASES = tuple(Case(cell, B, 10_000, 128, 128) for B in (1, 4) for cell in ("LSTM", "GRU"))
ENGINES: dict[str, AbstractEngine] = {"Scan": Scan(), "Checkpointed": Checkpointed()}
TARGET = 0.05


parse = command_line(__doc__, JSON)


def main() -> None:
    options = parse()
    print(report.heading())
    print(measure.TABLE_LEGEND)
    print(measure.TABLE_HEAD, flush=True)
    records, conclusions = [], []
    for case in tqdm(CASES, unit="case"):
        scan, checkpointed = measure.measure(case, "gradient, last state", gradient_of_last_state, ENGINES)
        records += [scan, checkpointed]
        tqdm.write(f"{measure.row(scan)}\n{measure.row(checkpointed)}")
        conclusions.append(compare(scan, checkpointed))
    print("\n".join(conclusions))
    measure.write(options.json, records)


def gradient_of_last_state(engine: AbstractEngine, cell: AbstractCell, xs: jax.Array) -> Any:
    """The gradient of a loss on the last state alone, by the weights: no other state has to be kept."""

    def loss(cell: AbstractCell) -> jax.Array:
        last, _ = measure.forward(engine, cell, xs)
        return jnp.sum(last.h**2)

    return jax.grad(loss)(cell)


def compare(scan: Record, checkpointed: Record) -> str:
    """One sentence: Checkpointed's memory as a share of Scan's, and whether that is what was aimed at."""
    assert checkpointed.temporary_bytes is not None
    assert scan.temporary_bytes is not None
    share = checkpointed.temporary_bytes / scan.temporary_bytes
    verdict = "met" if share < TARGET else "MISSED"
    return f"{scan.cell}, B = {scan.B}: {share:.2%} of the temporary memory of Scan (target < {TARGET:.0%}: {verdict})"


if __name__ == "__main__":
    main()
