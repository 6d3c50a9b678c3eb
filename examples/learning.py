"""Training that can be looked at: `rnnjax.training.fit`, and a picture of the metrics that it wrote down."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rnnjax
from rnnjax.training.plot import draw_curve


def add_picture(parser: argparse.ArgumentParser) -> None:
    """The argument that asks for the picture."""
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where the course of training is drawn")


@contextmanager
def folder_for_now() -> Iterator[Path]:
    """A folder for a run, which stays only where an error ends the run: the last good weights are in there then."""
    folder = Path(tempfile.mkdtemp())
    yield folder / "run"
    shutil.rmtree(folder)


def fit(*arguments: Any, picture: Path | None, **options: Any) -> rnnjax.training.Fitted:
    """`rnnjax.training.fit` of these arguments; `picture` shows its losses by the step."""
    if picture is None:
        return rnnjax.training.fit(*arguments, **options)
    with folder_for_now() as folder:
        fitted = rnnjax.training.fit(*arguments, **options, folder=folder)
        draw(folder, picture)
    return fitted


def draw(folder: Path, picture: Path) -> None:
    """The losses of the run in a folder."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_curve(folder / "metrics.jsonl", picture)
    print(f"wrote {picture}")
