"""Seconds per epoch of the main job, `examples/language_model.py`, by cell and engine."""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks in this folder only, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from language_model import CHUNK, STREAMS, Plan, rehearsal
from text import Corpus, read_text

from benchmarks import measure
from benchmarks.turns import take_turns

CELLS = ("lstm", "gru", "elman")
ENGINES = ("scan", "auto")
SECONDS = 10.0  # for all engines on one cell

HEAD = f"{'cell':<7}{'engine':<8}{'ms per step':>12}{'spread':>8}{'seconds per epoch':>19}{'ratio to scan':>15}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records")
    options = parser.parse_args()
    corpus = Corpus(read_text(None))
    print(f"{measure.heading()}\n{HEAD}", flush=True)
    records = [record for cell in CELLS for record in compare(cell, corpus)]
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def compare(cell: str, corpus: Corpus) -> list[dict[str, Any]]:
    """Records of every engine on one cell, a step of each in turn."""
    calls = [rehearsal(Plan(None, cell, engine, 100, corpus.vocabulary), corpus) for engine in ENGINES]
    steps = len(corpus.training) // (STREAMS * CHUNK)
    times = dict(zip(ENGINES, take_turns(calls, SECONDS), strict=True))
    records = []
    for engine, milliseconds in times.items():
        median, (first, _, third) = statistics.median(milliseconds), statistics.quantiles(milliseconds, n=4)
        ratio, spread = measure.median_ratio(milliseconds, times["scan"]), (third - first) / median
        seconds = 1e-3 * median * steps
        print(f"{cell:<7}{engine:<8}{median:>12.1f}{spread:>8.0%}{seconds:>19.2f}{ratio:>15.2f}", flush=True)
        made = {"cell": cell, "engine": engine, "milliseconds": median, "spread": spread, "seconds_per_epoch": seconds}
        records.append({**made, "ratio_to_scan": ratio, **measure.machine()})
    return records


if __name__ == "__main__":
    main()
