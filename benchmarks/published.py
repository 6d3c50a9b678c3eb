"""Beside published tables: examples trained on real data, seed by seed; and what came of it as the table of README.md.

    RNNJAX_DATA=folder python -m benchmarks.published "JSB chorales, LSTM" --json benchmarks/results/published.json
    python -m benchmarks.published --table benchmarks/results/published.json

Without the name of a task: all of them, one after the other. A record takes the place of that of its task.
"""

import argparse
import importlib
import json
import operator
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from common.command_line import command_line, option

from benchmarks import report
from benchmarks.report import JSON, TABLE


class Task(NamedTuple):
    """An example with its arguments, and what its mean over the seeds is to be."""

    words: tuple[str, ...]
    unit: str
    published: str
    bar: float | None  # None: there to compare others with
    meets: Callable[[float, float], bool]  # of the mean and the bar
    seeds: int = 5
    scale: float = 1.0  # from the example's figure to the unit
    figure: str = "test"  # which of the example's
    at_once: bool = False  # whether the example trains all seeds in one program


def percent(words: tuple[str, ...], published: str, bar: float | None, seeds: int = 5) -> Task:
    """A task whose figure is a share, the more the better."""
    return Task(words, "%", published, bar, operator.ge, seeds, 100.0)


def errors(words: tuple[str, ...], bar: float | None) -> Task:
    """A task whose figure is a share of wrong digits, the fewer the better."""
    return Task(words, "% errors", "", bar, operator.le, 5, 100.0)


MADE_UP = {  # examples that need no files
    *("addition", "decision", "fitzhugh_nagumo", "flip_flop", "long_memory", "recall", "recurrent_ppo"),
    "state_tracking",
}
TRANSLATION = ("translation", "--epochs", "5")
HALF_FORCED = ("translation", "--epochs", "10", "--teacher-forcing", "0.5")  # as what is published was trained
ADDING = ("long_memory", "--task", "adding", "--minutes", "2", "--models")
ADDING_BEYOND = ("long_memory", "--task", "adding", "--lengths", "5000", "--minutes", "5", "--models")


SPOKEN = ("spoken_digits", "--model", "ctc")
STREAMED = ("spoken_digits", "--model", "transducer", "--steps", "1500")
S3 = ("--task", "s3", "--lengths", "2", "16", "64", "--width", "64", "--steps", "1500", "--learning-rate", "0.007")


def forecast(series: str, cell: str) -> Task:
    """A task whose figure is the error of a forecast of the next step; its rival is `again`."""
    return Task(("forecasting", "--series", series, "--cell", cell), "RMSE", "", None, operator.le)


def again(series: str) -> Task:
    """The error of saying the last value again, beside the GRU."""
    return forecast(series, "gru")._replace(seeds=1, figure="persistence")


def tracked(mixer: str, published: str, bar: float, meets: Callable[[float, float], bool], *words: str) -> Task:
    """A task whose figure is the scaled accuracy on words longer than those trained on."""
    words = ("state_tracking", "--mixers", mixer, *words)
    return Task(words, "scaled accuracy", published, bar, meets, at_once=True)


def recalled(mixer: str, published: str) -> Task:
    """A task whose figure is the share of keys of which the value is told."""
    return percent(("recall", "--mixers", mixer, "--steps", "4000"), published, None)._replace(at_once=True)


def controlled(cell: str, bar: float, meets: Callable[[float, float], bool]) -> Task:
    """A task whose figure is the return of the greedy policy in CartPole without velocities."""
    return Task(("recurrent_ppo", "--cell", cell), "return, at most 500", "", bar, meets, at_once=True)


def remembered(cell: str, published: str, bar: float | None) -> Task:
    """A task whose figure is the share of right answers at the end of a memory chain."""
    words = ("recurrent_ppo", "--task", "memory", "--length", "30", "--cell", cell)
    return percent(words, published, bar)._replace(figure="right", at_once=True)


def m4(frequency: str, figure: str, unit: str, published: str, bar: float | None) -> Task:
    """A task whose figure is an error of the forecasts of an ES-RNN."""
    return Task(("m4", "--frequency", frequency), unit, published, bar, operator.le, figure=figure)


def within_four_percent(mean: float, bar: float) -> bool:
    """Whether a coverage is near its bar, from either side."""
    return abs(mean - bar) <= 0.04


TASKS = {
    "MNIST-1D, bidirectional GRU": percent(("mnist1d",), "89 to 91", 89.0),
    "MNIST-1D shuffled, bidirectional GRU": percent(("mnist1d", "--shuffled"), "53 to 57", 53.0),
    "Japanese Vowels, bidirectional LSTM": percent(("speaker_recognition",), "95.4", 96.0),
    "spoken digits, CTC": errors(SPOKEN, 2.5),
    "spoken digits, CTC, greedily": errors(SPOKEN, None)._replace(figure="greedy"),
    "spoken digits, transducer, streaming": errors(STREAMED, 4.0),
    "spoken digits, transducer, streaming, greedily": errors(STREAMED, None)._replace(figure="greedy"),
    "spoken digits, CTC, theo held out": errors((*SPOKEN, "--held-out", "theo"), None),
    "JSB chorales, LSTM": Task(("chorales", "--cell", "lstm"), "nats a step", "8.33 to 8.45", 8.45, operator.le),
    "JSB chorales, GRU": Task(("chorales", "--cell", "gru"), "nats a step", "8.20 to 8.43", 8.43, operator.le),
    "JSB chorales, Elman": Task(("chorales", "--cell", "elman"), "nats a step", "8.91", 8.91, operator.le),
    "FitzHugh-Nagumo, LEM": Task(("fitzhugh_nagumo", "--cell", "lem"), "RMSE", "0.0024", 0.003, operator.le),
    "FitzHugh-Nagumo, LSTM": Task(("fitzhugh_nagumo", "--cell", "lstm"), "RMSE", "0.012", 0.012, operator.le),
    "SST, five classes, Tree-LSTM": percent(("sentiment_trees",), "43.9", 43.0, 1),
    "SST, two classes, Tree-LSTM": percent(("sentiment_trees", "--task", "binary"), "82.0", 81.0, 1),
    "SST, five classes, LSTM both ways": percent(("sentiment_sequence",), "49.1 with GloVe", None),
    "SST, two classes, LSTM both ways": percent(("sentiment_sequence", "--task", "binary"), "87.5 with GloVe", None),
    "Multi30k de-en, half forced, BLEU": Task(HALF_FORCED, "BLEU", "28.3", 27.0, operator.ge, 1, figure="greedy"),
    "Multi30k de-en, half forced, BLEU of a beam": Task(HALF_FORCED, "BLEU", "", None, operator.ge, 1),
    "Multi30k de-en, half forced, perplexity after its own words": Task(
        HALF_FORCED, "perplexity", "25.6", 27.0, operator.le, 1, figure="perplexity_of_own_words"
    ),
    "Multi30k de-en, BLEU of a beam": Task(TRANSLATION, "BLEU", "", None, operator.ge, 1),
    "Multi30k de-en, perplexity": Task(TRANSLATION, "perplexity", "", None, operator.le, 1, figure="perplexity"),
    "Multi30k de-en, perplexity after its own words": Task(
        TRANSLATION, "perplexity", "25.6", 27.0, operator.le, 1, figure="perplexity_of_own_words"
    ),
    "addition of 3 digits": percent(("addition",), "99", 99.0, 2),
    "adding over 1,000 steps, LSTM": Task(
        (*ADDING, "lstm_fused"), "squared error", "solved (1997)", 0.01, operator.le, figure="loss"
    ),
    "adding over 1,000 steps, Elman": Task(
        (*ADDING, "elman_fused"), "squared error", "0.167, ignorance", 0.15, operator.ge, figure="loss"
    ),
    "adding over 5,000 steps, LSTM": Task(
        (*ADDING_BEYOND, "lstm_fused"), "squared error", "", None, operator.le, 1, figure="loss"
    ),
    "adding over 5,000 steps, Elman": Task(
        (*ADDING_BEYOND, "elman_fused"), "squared error", "", None, operator.ge, 1, figure="loss"
    ),
    "MNIST by rows, LSTM": percent(("digit_rows", "--model", "lstm"), "98.6, one LSTM in another", None),
    "MNIST by rows, CNN + LSTM + MLP": percent(("digit_rows", "--model", "cnn_rnn_mlp"), "", None),
    "MNIST by rows, a linear layer per row": percent(("digit_rows", "--model", "linear"), "", None),
    "sunspots, the next month, the last value": again("sunspots"),
    "sunspots, the next month, GRU": forecast("sunspots", "gru"),
    "sunspots, the next month, 24 steps": forecast("sunspots", "autoregression"),
    "passengers, the next month, the last value": again("airline"),
    "passengers, the next month, GRU": forecast("airline", "gru"),
    "passengers, the next month, 24 steps": forecast("airline", "autoregression"),
    "a share, the next day, the last value": again("stocks"),
    "a share, the next day, GRU": forecast("stocks", "gru"),
    "sequential MNIST, 8 epochs, LEM": percent(("pixel_digits", "--model", "lem", "--epochs", "8"), "97.9", 97.0, 1),
    "sequential MNIST, 8 epochs, LSTM": percent(("pixel_digits", "--model", "lstm", "--epochs", "8"), "", None, 1),
    "parity to length 256, DeltaNet, [-1, 1]": tracked("deltanet_signed", "1.000", 0.95, operator.ge),
    "parity to length 256, DeltaNet, [0, 1]": tracked("deltanet", "0.017", 0.2, operator.le),
    "parity to length 256, sLSTM": tracked("slstm", "1.000", 0.95, operator.ge, "--heads", "4"),
    "parity to length 256, mLSTM": tracked("mlstm", "0.087", 0.2, operator.le),
    "words of S3 to length 64, DeltaProduct, [-1, 1]": tracked("deltaproduct_signed", "solved", 0.95, operator.ge, *S3),
    "words of S3 to length 64, DeltaProduct, [0, 1]": tracked("deltaproduct", "not solved", 0.5, operator.le, *S3),
    "words of S3 to length 64, DeltaNet, [-1, 1]": tracked("deltanet_signed", "not solved", 0.5, operator.le, *S3),
    "M4 hourly, ES-RNN, sMAPE": m4("hourly", "smape", "%", "9.328; Naive2 18.383", 10.0),
    "M4 hourly, ES-RNN, MASE": m4("hourly", "mase", "MASE", "0.893; Naive2 2.395", 0.95),
    "M4 hourly, ES-RNN, coverage of 95 %, 0.04 around": m4("hourly", "coverage", "share", "", 0.94)._replace(
        meets=within_four_percent
    ),
    "M4 hourly, ES-RNN, CRPS": m4("hourly", "crps", "CRPS over the mean", "", None),
    "M4 hourly, seasonal naive, CRPS": m4("hourly", "naive_crps", "CRPS over the mean", "", None)._replace(seeds=1),
    "M4 weekly, ES-RNN, sMAPE": m4("weekly", "smape", "%", "7.817; Naive2 9.161", 8.1),
    "M4 weekly, ES-RNN, MASE": m4("weekly", "mase", "MASE", "2.356; Naive2 2.777", 2.45),
    "recall of 16 pairs, width 32, Gated DeltaNet": recalled("gated_deltanet", "79.0 of 8192 words"),
    "recall of 16 pairs, width 32, Mamba-2": recalled("mamba2", "75.1 of 8192 words"),
    "flip-flop of 3 bits, GRU": Task(("flip_flop",), "memories at one stable point", "8", 8.0, operator.ge),
    "context-dependent decision, rate network": percent(("decision",), "", None),
    "CartPole without velocities, GRU": controlled("gru", 450.0, operator.ge),
    "CartPole without velocities, no memory": controlled("memoryless", 120.0, operator.le),
    "memory chain of 30 steps, GRU": remembered("gru", "", 95.0),
    "memory chain of 30 steps, no memory": remembered("memoryless", "50, guessing", None),
}


def check_tasks(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What is to be trained is known, and so is the folder of its data."""
    if options.table:
        return
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"TASK: expected some of {list(TASKS)}, got {unknown}")
    read = [name for name in options.tasks or TASKS if TASKS[name].words[0] not in MADE_UP]
    if read and "RNNJAX_DATA" not in os.environ:
        parser.error("RNNJAX_DATA: expected the folder of the real data; what stands in for it has no published table")


parse = command_line(
    __doc__,
    option("tasks", nargs="*", metavar="TASK", help=f"one of: {'; '.join(TASKS)}".replace("%", "%%")),
    JSON,
    TABLE,
    option("--seeds", type=int, help="how many; the default is the task's"),
    check=check_tasks,
)


def main() -> None:
    """Run tasks and keep their records, or print the table of those kept."""
    options = parse()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    for name in options.tasks or TASKS:
        record = run(name, options.seeds or TASKS[name].seeds)
        print(table([record]), flush=True)
        report.keep(options.json, record, ("task",))


def run(name: str, seeds: int) -> dict[str, Any]:
    """The record of a task: the figure of each seed, and whether their mean is what it is to be."""
    task = TASKS[name]
    trained = train_at_once(task.words, seeds) if task.at_once else [train(task.words, seed) for seed in range(seeds)]
    figures = [float(task.scale * record[task.figure]) for record in trained]
    mean = statistics.mean(figures)
    return {
        "task": name,
        "unit": task.unit,
        "published": task.published,
        "bar": task.bar,
        "ours": mean,
        "seeds": figures,
        "met": None if task.bar is None else task.meets(mean, task.bar),
        "seconds": sum(record["seconds"] for record in trained),
        **report.machine_under_load(),
    }


@cache
def train(words: tuple[str, ...], seed: int) -> dict[str, Any]:
    """What an example says of one seed, and how long it took; two tasks may look at the same."""
    module, *rest = words
    example, begun = importlib.import_module(module), time.perf_counter()
    (record,) = example.run(example.parse([*rest, "--seed", str(seed)]))
    return record | {"seconds": time.perf_counter() - begun}


def train_at_once(words: tuple[str, ...], seeds: int) -> list[dict[str, Any]]:
    """What an example says of each of so many seeds, which it trains in one program, and how long each took of it."""
    module, *rest = words
    example, begun = importlib.import_module(module), time.perf_counter()
    records = list(example.run(example.parse([*rest, "--seeds", str(seeds)])))
    return [record | {"seconds": (time.perf_counter() - begun) / seeds} for record in records]


def table(records: list[dict[str, Any]]) -> str:
    """Records as rows of Markdown, in the order of the tasks."""
    names = "task", "unit", "published", "ours, mean (least to most)", "seeds", "bar", "met", "time", "cores"
    rows = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for record in sorted(records, key=lambda record: list(TASKS).index(record["task"])):
        figures = record["seeds"]
        spread = f" ({min(figures):.4g} to {max(figures):.4g})" if len(figures) > 1 else ""
        bar, met = ("", "") if record["bar"] is None else (f"{record['bar']:g}", "yes" if record["met"] else "no")
        rows.append(
            f"| {record['task']} | {record['unit']} | {record['published']} | {record['ours']:.4g}{spread} "
            f"| {len(figures)} | {bar} | {met} | {record['seconds']:.0f} s | {record['cores']} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
