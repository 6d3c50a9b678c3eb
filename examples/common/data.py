"""Real data for the examples: files of the folder that the environment variable RNNJAX_DATA names."""

import os
from pathlib import Path


def find(name: str, stand_in: str) -> Path | None:
    """The file or folder `name` in it. Without such a variable: None, and `stand_in` is printed.

    Raises FileNotFoundError if the variable is set, and its folder holds nothing of this name.
    """
    folder = os.environ.get("RNNJAX_DATA")
    if folder is None:
        print(f"RNNJAX_DATA is not set: {stand_in}; see --help")
        return None
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"RNNJAX_DATA: expected {name} in {folder}, found none; see --help")
    return path
