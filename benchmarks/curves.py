"""How the examples of deep linear networks learn: their records, each kept as it ends.

    python benchmarks/curves.py long_memory --json FILE --minutes 2 --lengths 1000
    python benchmarks/curves.py pixel_digits --json FILE --model lru --epochs 4
    python benchmarks/curves.py shakespeare --json FILE --minutes 100 --folder FOLDER

What follows FILE goes to the example. A record takes the place of one like it in FILE; the others stay.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks in this folder only, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from benchmarks import measure
from rnnjax.training.checkpoint import write_atomically

ALIKE = {  # the fields by which the records of an example are told apart
    "long_memory": ("task", "T", "model"),
    "pixel_digits": ("task", "model"),
    "shakespeare": ("task", "cell", "width"),
}


def main() -> None:
    """Run the example; keep each of its records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=ALIKE)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where the records are kept")
    options, words = parser.parse_known_args()
    example = importlib.import_module(options.example)
    print(measure.heading(), flush=True)
    for record in example.run(example.parse(words)):
        about = {**measure.machine(), "load_average": os.getloadavg()[0]}
        keep(options.json, record | about, ALIKE[options.example])


def keep(path: Path, record: dict[str, Any], names: Sequence[str]) -> None:
    """Add a record to a file of records, in place of one that is like it in the fields `names`."""
    held = json.loads(path.read_text()) if path.exists() else []
    others = [other for other in held if any(other[name] != record[name] for name in names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps([*others, record], indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
