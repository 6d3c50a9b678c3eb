"""Where the examples find real data: in the folder that the environment variable RNNJAX_DATA names."""

import os
from pathlib import Path


def find(name: str, stand_in: str) -> Path | None:
    """`name` in that folder; None, and a word on what stands in for it, where there is no such variable.

    Raises FileNotFoundError where the variable is set and what it names holds nothing of this name.
    """
    folder = os.environ.get("RNNJAX_DATA")
    if folder is None:
        print(f"RNNJAX_DATA is not set: {stand_in}; see --help")
        return None
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"RNNJAX_DATA: expected {name} in {folder}, found none; see --help")
    return path
