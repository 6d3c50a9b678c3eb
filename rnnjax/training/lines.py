"""Metrics as lines of JSON, in which NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"."""

import json
import math
from typing import Any

NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_line(metrics: dict[str, int | float]) -> str:
    """The line of these metrics. `float` of Python and `Number` of JavaScript read the strings, too."""
    return json.dumps({name: _writable(number) for name, number in metrics.items()}, allow_nan=False) + "\n"


def from_line(line: bytes) -> Any:
    """What a line of JSON says, such a string as the number. Raises ValueError for what is no JSON."""
    read = json.loads(line)
    return {name: _number(value) for name, value in read.items()} if isinstance(read, dict) else read


def _writable(number: int | float) -> int | float | str:
    if math.isnan(number):
        return "NaN"
    return number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"


def _number(value: Any) -> Any:
    return NAMES.get(value, value) if isinstance(value, str) else value
