"""Seconds per epoch of the main job, `examples/language_model.py`, by cell and engine."""

import statistics
from typing import Any

from common.command_line import command_line
from common.text import Corpus, read_text
from language_model import CHUNK, STREAMS, Plan, rehearsal

from benchmarks import measure, report
from benchmarks.report import JSON
from benchmarks.turns import take_turns

CELLS = ("lstm", "gru", "elman")
ENGINES = ("scan", "auto")
SECONDS = 10.0  # for all engines on one cell

HEAD = f"{'cell':<7}{'engine':<8}{'ms per step':>12}{'spread':>8}{'seconds per epoch':>19}{'ratio to scan':>15}"


parse = command_line(__doc__, JSON)


def main() -> None:
    options = parse()
    corpus = Corpus(read_text(None))
    print(f"{report.heading()}\n{HEAD}", flush=True)
    records = [record for cell in CELLS for record in compare(cell, corpus)]
    report.write(options.json, records)


def compare(cell: str, corpus: Corpus) -> list[dict[str, Any]]:
    """Records of every engine on one cell, a step of each in turn."""
    calls = [rehearsal(Plan(corpus.vocabulary, cell=cell, engine=engine), corpus) for engine in ENGINES]
    steps = len(corpus.training) // (STREAMS * CHUNK)
    times = dict(zip(ENGINES, take_turns(calls, SECONDS), strict=True))
    records = []
    for engine, milliseconds in times.items():
        median, (first, _, third) = statistics.median(milliseconds), statistics.quantiles(milliseconds, n=4)
        ratio, spread = measure.median_ratio(milliseconds, times["scan"]), (third - first) / median
        seconds = 1e-3 * median * steps
        print(f"{cell:<7}{engine:<8}{median:>12.1f}{spread:>8.0%}{seconds:>19.2f}{ratio:>15.2f}", flush=True)
        made = {"cell": cell, "engine": engine, "milliseconds": median, "spread": spread, "seconds_per_epoch": seconds}
        records.append({**made, "ratio_to_scan": ratio, **report.machine()})
    return records


if __name__ == "__main__":
    main()
