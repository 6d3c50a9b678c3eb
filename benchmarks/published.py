"""Beside published tables: examples trained on real data, seed by seed; and what came of it as README's table.

    RNNJAX_DATA=folder python benchmarks/published.py "JSB chorales, LSTM" --json benchmarks/results/published.json
    python benchmarks/published.py --table benchmarks/results/published.json

Without the name of a task: all of them, one after the other. A record takes the place of that of its task.
"""

import argparse
import importlib
import json
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script: Python then looks in this folder only, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from benchmarks import measure
from benchmarks.curves import keep


class Task(NamedTuple):
    """An example with its arguments, and what its mean over the seeds is to be."""

    words: tuple[str, ...]
    unit: str
    published: str
    bar: float
    meets: Callable[[float, float], bool]  # of the mean and the bar
    seeds: int = 5
    scale: float = 1.0  # from the example's figure to the unit


def percent(words: tuple[str, ...], published: str, bar: float, seeds: int = 5) -> Task:
    """A task whose figure is a share, the more the better."""
    return Task(words, "%", published, bar, operator.ge, seeds, 100.0)


TASKS = {
    "MNIST-1D, bidirectional GRU": percent(("mnist1d",), "89 to 91", 89.0),
    "MNIST-1D shuffled, bidirectional GRU": percent(("mnist1d", "--shuffled"), "53 to 57", 53.0),
    "Japanese Vowels, bidirectional LSTM": percent(("speakers",), "95.4", 96.0),
    "JSB chorales, LSTM": Task(("chorales", "--cell", "lstm"), "nats a step", "8.33 to 8.45", 8.45, operator.le),
    "JSB chorales, GRU": Task(("chorales", "--cell", "gru"), "nats a step", "8.20 to 8.43", 8.43, operator.le),
    "JSB chorales, Elman": Task(("chorales", "--cell", "elman"), "nats a step", "8.91", 8.91, operator.le),
    "FitzHugh-Nagumo, LEM": Task(("fitzhugh_nagumo", "--cell", "lem"), "RMSE", "0.0024", 0.003, operator.le),
    "FitzHugh-Nagumo, LSTM": Task(("fitzhugh_nagumo", "--cell", "lstm"), "RMSE", "0.012", 0.012, operator.le),
    "SST, five classes, Tree-LSTM": percent(("sentiment_trees",), "43.9", 43.0, 1),
    "SST, two classes, Tree-LSTM": percent(("sentiment_trees", "--task", "binary"), "82.0", 81.0, 1),
}


def main() -> None:
    """Run tasks and keep their records, or print the table of those kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"one of: {'; '.join(TASKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the records are kept")
    parser.add_argument("--seeds", type=int, help="how many; the default is the task's")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the records of a file, and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"TASK: expected some of {list(TASKS)}, got {unknown}")
    for name in options.tasks or TASKS:
        record = run(name, options.seeds or TASKS[name].seeds)
        print(table([record]), flush=True)
        if options.json:
            keep(options.json, record, ("task",))


def run(name: str, seeds: int) -> dict[str, Any]:
    """The record of a task: the figure of each seed, and whether their mean is what it is to be."""
    task = TASKS[name]
    module, *words = task.words
    example, begun, figures = importlib.import_module(module), time.perf_counter(), []
    for seed in range(seeds):
        (record,) = example.run(example.parse([*words, "--seed", str(seed)]))
        figures.append(task.scale * record["test"])
    mean = statistics.mean(figures)
    return {
        "task": name,
        "unit": task.unit,
        "published": task.published,
        "bar": task.bar,
        "ours": mean,
        "seeds": figures,
        "met": task.meets(mean, task.bar),
        "seconds": time.perf_counter() - begun,
        "load_average": os.getloadavg()[0],
        **measure.machine(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Records as rows of Markdown, in the order of the tasks."""
    rows = ["| task | unit | published | ours, mean (least to most) | seeds | bar | met | time |", "|" + "---|" * 8]
    for record in sorted(records, key=lambda record: list(TASKS).index(record["task"])):
        figures = record["seeds"]
        spread = f" ({min(figures):.4g} to {max(figures):.4g})" if len(figures) > 1 else ""
        rows.append(
            f"| {record['task']} | {record['unit']} | {record['published']} | {record['ours']:.4g}{spread} "
            f"| {len(figures)} | {record['bar']:g} | {'yes' if record['met'] else 'no'} | {record['seconds']:.0f} s |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
