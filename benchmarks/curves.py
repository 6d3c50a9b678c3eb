"""How the examples of deep linear networks learn: their records, each kept as it ends.

    python -m benchmarks.curves long_memory --json FILE --minutes 2 --lengths 1000
    python -m benchmarks.curves pixel_digits --json FILE --model lru --epochs 4
    python -m benchmarks.curves shakespeare --json FILE --minutes 100 --folder FOLDER

What follows FILE goes to the example. A record takes the place of one like it in FILE; the others stay.
"""

import argparse
import importlib
from pathlib import Path

from benchmarks import report

ALIKE = {  # the fields by which the records of an example are told apart
    "long_memory": ("task", "T", "model"),
    "pixel_digits": ("task", "model"),
    "shakespeare": ("task", "mixer", "width"),
}


def main() -> None:
    """Run the example; keep each of its records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=ALIKE)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where the records are kept")
    options, words = parser.parse_known_args()
    example = importlib.import_module(options.example)
    print(report.heading(), flush=True)
    for record in example.run(example.parse(words)):
        report.keep(options.json, record | report.machine_under_load(), ALIKE[options.example])


if __name__ == "__main__":
    main()
