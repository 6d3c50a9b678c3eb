"""Exported programs in a process of their own, where `import rnnjax` fails unless it is asked for.

`python exported_run.py FOLDER [rnnjax]` calls each NAME.exported with the arrays of NAME.pickle, and writes what it
returns to NAME.answer.
"""

import pickle
import sys
from collections import namedtuple
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import jax


class Blocked(MetaPathFinder):
    """No rnnjax."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.partition(".")[0] == "rnnjax":
            raise ModuleNotFoundError(f"no {fullname} in this process")


def name_states() -> None:
    """Any tuple with the same fields will do for a state."""
    state = namedtuple("LSTMState", "h c")
    jax.export.register_namedtuple_serialization(state, serialized_name="rnnjax.LSTMState")


def run(path: Path) -> None:
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    leaves = pickle.loads(path.with_suffix(".pickle").read_bytes())
    answer = program.call(*jax.tree.unflatten(program.in_tree, leaves)[0])
    path.with_suffix(".answer").write_bytes(pickle.dumps([jax.device_get(leaf) for leaf in jax.tree.leaves(answer)]))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    if sys.argv[2:] == ["rnnjax"]:
        import rnnjax  # noqa: F401
    else:
        sys.meta_path.insert(0, Blocked())
        name_states()
    for file in sorted(Path(sys.argv[1]).glob("*.exported")):
        run(file)
