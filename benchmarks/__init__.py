"""Benchmarks: `python -m benchmarks.NAME` from the root of the repository; README.md here says what each measures."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))  # examples import each other by bare names
