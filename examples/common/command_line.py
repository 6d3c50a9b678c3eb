"""The command line of an example: options that several share, and `main`, which runs it."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

Option = Callable[[argparse.ArgumentParser], object]


class Parse(Protocol):
    """Parses the command line, or these words in its place."""

    def __call__(self, words: Sequence[str] | None = None) -> argparse.Namespace: ...


def option(*names: str, **settings: Any) -> Option:
    """An option, by the arguments of `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


def choice(name: str, choices: Iterable[str], default: str) -> Option:
    """An option that takes one of the keys of a table."""
    return option(name, choices=choices, default=default, help="default: %(default)s")


def epochs_option(default: float) -> Option:
    """`--epochs`: passes over the training data, of the type of `default`."""
    return option("--epochs", type=type(default), default=default, help="passes over the training data (%(default)s)")


def steps_option(default: int) -> Option:
    """`--steps`: updates of the weights."""
    return option("--steps", type=int, default=default, help="updates of the weights (%(default)s)")


def minutes_option(default: float, of: str) -> Option:
    """`--minutes`: how long to train; `of` says what these minutes include."""
    return option("--minutes", type=float, default=default, help=f"of training, {of} (%(default)s)")


def picture_option(of: str) -> Option:
    """`--picture FILE`: where to draw, which by default nothing is."""
    return option("--picture", type=Path, metavar="FILE", help=f"draw {of} into this file")


SEED = option("--seed", type=int, default=0, help="of initial weights, batches and dropout (%(default)s)")
LOSSES = picture_option("the loss over training")
RESUME = option("--resume", action="store_true", help="go on with the run in --folder")
FOLDER = option("--folder", type=Path, help="where to keep metrics and checkpoints; without it they are not kept")


def command_line(
    description: str | None,
    *options: Option,
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None,
) -> Parse:
    """The `parse` of an example. An option that it does not have is an error.

    description   the text of `--help`: the example's own docstring
    check         looks at the parsed options, and calls `parser.error` where they do not fit together
    """

    def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for add in options:
            add(parser)
        parsed = parser.parse_args(words)
        if check is not None:
            check(parser, parsed)
        return parsed

    return parse


def main(parse: Parse, run: Callable[[argparse.Namespace], Iterable[Any]]) -> None:
    """Run an example as the command line says. `run` prints as it goes; the records it yields are for benchmarks."""
    for _ in run(parse()):
        pass
