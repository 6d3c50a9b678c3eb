"""Multi-query associative recall: keys and values are read, and then each key asks for its value.

    python examples/recall.py
    python examples/recall.py --pairs 16 --steps 4000 --seeds 5
    python examples/recall.py --vocabulary 8192 --length 256 --pairs 64 --width 64 --steps 20000

The task is MQAR of "Zoology" (Arora et al. 2024, arXiv:2312.04927): pairs of distinct keys and values, and then each of
the keys once, in any order, with blanks between. Only the answers to the keys are judged. A state of fixed size has to
hold all pairs, so the way in which it is written decides: a delta rule replaces what stood under a key, and a sum of
outer products with a decay only fades it.

Prints for each mixer the share of right answers on new sequences, over the seeds, beside that of guessing a value.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from common.command_line import SEED, command_line, main, option, steps_option
from common.mixers import MIXERS, build_language_model
from common.questions import SEEDS, TEST, Questions, spread, train_and_test

BLANK = 0
B, TESTED, BLOCKS = 64, 1000, 2
POWER = 0.01  # of the law by which a key is asked for soon
LEARNING_RATE, DECAY = 3e-3, 0.1


def draw(generator: np.random.Generator, size: int, vocabulary: int, T: int, pairs: int) -> Questions:
    """`size` sequences: keys are tokens of the lower half of the vocabulary, but for the blank, values of the upper."""
    half, places = vocabulary // 2, T // 2 - pairs
    keys = _distinct(generator, np.ones((size, half - 1)), pairs) + 1
    values = _distinct(generator, np.ones((size, vocabulary - half)), pairs) + half
    soon = np.arange(1.0, places + 1) ** (POWER - 1)
    where = 2 * (pairs + _distinct(generator, np.broadcast_to(soon, (size, places)), pairs))
    tokens = np.full((size, T), BLANK)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    answers, asked = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    np.put_along_axis(tokens, where, keys, 1)
    np.put_along_axis(answers, where, values, 1)
    np.put_along_axis(asked, where, True, 1)
    return Questions(tokens, answers, asked)


def _distinct(generator: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """`count` places of each row, one after the other without putting back, each by its weight among those left.

    The smallest of exponential waiting times of these rates come in just this order.
    """
    return np.argsort(generator.exponential(1 / weights), 1)[:, :count]


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each mixer and seed."""
    sizes = options.vocabulary, options.length, options.pairs
    tests = {"test": draw(np.random.default_rng(TEST), TESTED, *sizes)}
    seeds = range(options.seed, options.seed + options.seeds)
    print(
        f"{options.pairs} pairs in {options.length} steps; a guess is right in {2 / options.vocabulary:.1%}", flush=True
    )
    for name in options.mixers:
        widths = options.vocabulary, options.width, options.heads
        records = train_and_test(
            partial(build_language_model, *widths, [name] * BLOCKS, perceptrons=False),
            lambda generator: draw(generator, B, *sizes),
            tests,
            seeds,
            steps=options.steps,
            learning_rate=options.learning_rate,
            weight_decay=DECAY,
        )
        print(
            f"{name}: {spread([record['test'] for record in records])} right, {records[0]['weights']} weights",
            flush=True,
        )
        yield from ({"task": "recall", "mixer": name, "width": options.width, **record} for record in records)


def check_sizes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Keys and values differ, and each pair takes two steps to read and two to ask for."""
    if 4 * options.pairs > options.length or options.length % 2:
        parser.error(
            f"--length: expected an even number of at least 4 * pairs = {4 * options.pairs}, got {options.length}"
        )
    if 2 * options.pairs >= options.vocabulary:
        parser.error(f"--vocabulary: expected more than 2 * pairs = {2 * options.pairs}, got {options.vocabulary}")


parse = command_line(
    __doc__,
    option("--mixers", nargs="+", choices=MIXERS, default=["gated_deltanet", "mamba2"], help="default: %(default)s"),
    option("--vocabulary", type=int, default=256, help="of keys and values together (%(default)s)"),
    option("--length", type=int, default=64, help="T (%(default)s)"),
    option("--pairs", type=int, default=16, help="of keys and values (%(default)s)"),
    option("--width", type=int, default=32, help="of the layers (%(default)s)"),
    option("--heads", type=int, default=2, help="of each layer (%(default)s)"),
    option("--learning-rate", type=float, default=LEARNING_RATE, help="the largest (%(default)s)"),
    steps_option(1000),
    SEED,
    SEEDS,
    check=check_sizes,
)


if __name__ == "__main__":
    main(parse, run)
