"""State tracking: which recurrences learn parity, arithmetic modulo 5 and products of permutations, at any length.

    python examples/state_tracking.py
    python examples/state_tracking.py --mixers slstm mlstm --heads 4 --seeds 5
    python examples/state_tracking.py --task s3 --lengths 2 12 64 --mixers deltaproduct_signed deltanet_signed
    python examples/state_tracking.py --task arithmetic --asked last --width 64 --blocks 2 --steps 20000

Trained on words of 3 to 40 symbols, the models are tested on words of 40 to 256 (Beck et al. 2024, arXiv:2405.04517;
Grazzi et al. 2024, arXiv:2411.12537). A recurrence whose state can only fade, with eigenvalues in [0, 1], learns short
words, but not the rule; with an eigenvalue of -1 a step can change the sign of its state. For permutations of three
things a step has to rotate, which takes a product of two reflections (Siems et al. 2025, arXiv:2502.10297).

In training each symbol asks for the value of the word so far, which is learned faster than the published tasks, where
the last symbol alone asks (`--asked last`). In the test the last one asks, but for permutations, which all ask.

Prints for each mixer the scaled accuracy on short and on long words, over the seeds: 0 is guessing and 1 is perfect.
`deltanet` and `deltaproduct` have eigenvalues in [0, 1], those with `_signed` in [-1, 1].
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from common.command_line import SEED, choice, command_line, main, option, steps_option
from common.formal_languages import LANGUAGES, Language
from common.mixers import MIXERS, build_language_model
from common.questions import SEEDS, TEST, Questions, spread, train_and_test

B, TESTED = 64, 512
LENGTHS = "trained on words of A to B symbols, tested on words of B to C (3 40 256)"
LEARNING_RATE, DECAY = 2e-2, 0.1


def draw(
    language: Language, lengths: tuple[int, int], T: int, size: int, every: bool, generator: np.random.Generator
) -> Questions:
    """Words of these lengths, the last one included, in arrays of T steps. With `every`, each symbol of a word asks."""
    questions = language.draw(generator, generator.integers(lengths[0], lengths[1] + 1, size), T)
    if not every:
        return questions
    until_last = np.logical_or.accumulate(questions.asked[:, ::-1], axis=1)[:, ::-1]
    return questions._replace(asked=until_last)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each mixer and seed."""
    language = LANGUAGES[options.task]
    least, trained, most = options.lengths
    judged = lambda *lengths: draw(language, lengths, most, TESTED, False, np.random.default_rng(TEST))  # noqa: E731
    tests = {"short": judged(least, trained), "test": judged(trained, most)}
    seeds = range(options.seed, options.seed + options.seeds)
    for name in options.mixers:
        sizes = language.vocabulary, options.width, options.heads
        records = train_and_test(
            partial(build_language_model, *sizes, [name] * options.blocks, perceptrons=True),
            partial(draw, language, (least, trained), trained, B, options.asked == "every"),
            tests,
            seeds,
            steps=options.steps,
            learning_rate=options.learning_rate,
            weight_decay=DECAY,
        )
        for record in records:
            record |= {test: scaled(record[test], language.classes) for test in tests}
        figures = {test: spread([record[test] for record in records]) for test in tests}
        print(f"{options.task}, {name}: {figures['short']} to length {trained}, {figures['test']} beyond", flush=True)
        yield from ({"task": options.task, "mixer": name, **record} for record in records)


def scaled(accuracy: float, classes: int) -> float:
    """(accuracy - chance) / (1 - chance): 0 for guessing, 1 for no error."""
    return (accuracy - 1 / classes) / (1 - 1 / classes)


def check_lengths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """The shortest word of arithmetic has two symbols."""
    if not 2 <= options.lengths[0] <= options.lengths[1] <= options.lengths[2]:
        parser.error(f"--lengths: expected 2 <= A <= B <= C, got {options.lengths}")


parse = command_line(
    __doc__,
    choice("--task", LANGUAGES, "parity"),
    option("--mixers", nargs="+", choices=MIXERS, default=["deltanet", "deltanet_signed"], help="default: %(default)s"),
    option("--lengths", nargs=3, type=int, metavar=("A", "B", "C"), default=(3, 40, 256), help=LENGTHS),
    choice("--asked", ("every", "last"), "every"),
    option("--width", type=int, default=16, help="of the layers (%(default)s)"),
    option("--heads", type=int, default=8, help="of each layer (%(default)s)"),
    option("--blocks", type=int, default=1, help="of a mixer and a perceptron (%(default)s)"),
    option("--learning-rate", type=float, default=LEARNING_RATE, help="the largest (%(default)s)"),
    steps_option(600),
    SEED,
    SEEDS,
    check=check_lengths,
)


if __name__ == "__main__":
    main(parse, run)
