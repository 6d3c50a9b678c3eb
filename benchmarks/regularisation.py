"""What each part of the main job's recipe buys: `examples/language_model.py` with one part left out at a time.

    python -m benchmarks.regularisation --json benchmarks/results/regularisation.json
    python -m benchmarks.regularisation --table benchmarks/results/regularisation.json

A record takes the place of that of the same recipe, seed and steps, so that a few can be added at a time: `--recipes`
and `--seeds` say which.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from common.command_line import command_line, option
from common.text import Corpus, read_text
from language_model import RECIPE, STEPS, Plan, Recipe, bits_per_character, fit

from benchmarks import report
from benchmarks.report import JSON, TABLE

RECIPES = {
    "whole": RECIPE,
    **{f"without {field.replace('_', ' ')}": RECIPE._replace(**{field: 0.0}) for field in Recipe._fields},
    "none": Recipe(*[0.0] * len(Recipe._fields)),
}
SAME = ("recipe", "seed", "steps")  # in these a record agrees with the one that it replaces

parse = command_line(
    __doc__,
    option("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all"),
    option("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: five"),
    option("--steps", type=int, default=STEPS, help="updates of the weights (%(default)s)"),
    JSON,
    TABLE,
)


def main() -> None:
    options = parse()
    if options.table is not None:
        print(table(json.loads(Path(options.table).read_text())))
        return
    corpus = Corpus(read_text(None))
    print(report.heading(), flush=True)
    for seed in options.seeds:
        for name in options.recipes:
            record = train(name, seed, corpus, options)
            print(f"{name:<24} seed {seed}: {record['held_out']:.3f} held out, {record['training']:.3f} in training")
            report.keep(options.json, record, SAME)


def train(name: str, seed: int, corpus: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a run: bits per character of the model that it leaves, on the held-out and on the training text."""
    wall, processor = time.perf_counter(), time.process_time()
    plan = Plan(corpus.vocabulary, steps=options.steps, seed=seed)
    model = fit(plan, corpus, RECIPES[name], progress=False)
    took = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    bits = {part: bits_per_character(model, getattr(corpus, part)) for part in ("held_out", "training")}
    return {
        "recipe": name,
        "seed": seed,
        "steps": options.steps,
        **RECIPES[name]._asdict(),
        **bits,
        **took,
        **report.machine_under_load(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The records as a table: a row for each recipe."""
    lines = ["| recipe | held out | training | seeds |", "|---|---|---|---|"]
    for name in RECIPES:
        found = [record for record in records if record["recipe"] == name]
        if found:
            held_out, training = ([record[part] for record in found] for part in ("held_out", "training"))
            spread = f" ({min(held_out):.3f} to {max(held_out):.3f})" if len(found) > 1 else ""
            figures = f"{statistics.mean(held_out):.3f}{spread} | {statistics.mean(training):.3f}"
            lines.append(f"| {name} | {figures} | {len(found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
