"""A folder of checkpoints as Orbax writes it: arrays by name and a description, for each of the last steps.

https://github.com/google/orbax. Each process writes its own parts of the arrays in the background, into a folder with a
provisional name, which gets the number of the step as its name when all is on disk. Orbax does not notice bytes that
change later, so the description holds a checksum of each array.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np

from ..arrays import AnyArray
from .checkpoint import FORMAT, CheckpointError, read_description
from .checksum import checksums
from .description import Description

Arrays = dict[str, AnyArray]


def orbax_package() -> Any:
    """The module `orbax.checkpoint`. Raises an ImportError that says what to install."""
    try:
        return import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            f"store: expected the package that Orbax checkpoints need, got {error}. "
            "Install it: pip install 'rnnjax[orbax]'"
        ) from error


class OrbaxFolder:
    """The checkpoints in the folder `path`.

    keep    how many of the last stay, where all processes call all methods alike; None: this process only reads, alone,
            while others may write
    """

    def __init__(self, path: Path, keep: int | None):
        self.orbax = orbax_package()
        self.path = path.absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are whole, in order."""
        names = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def write(self, step: int, arrays: Arrays, description: Description) -> None:
        """Begin to write arrays and a description, when what was begun before is on disk. Raises OSError."""
        arguments = self.orbax.args
        entry = {"format": FORMAT, "checksums": checksums(arrays), **description._asdict()}
        items = arguments.Composite(run=arguments.PyTreeSave(_coded(arrays)), description=arguments.JsonSave(entry))
        with _as_os_error():
            self._manager.save(step, args=items, force=True)

    def describe(self, step: int) -> tuple[Description, dict[str, int]]:
        """The description of a checkpoint, and the checksums of its arrays; those that are empty have none."""
        entry = self._restore(step, description=self.orbax.args.JsonRestore()).description
        description = read_description(entry) if isinstance(entry, dict) else None
        if description is None or not isinstance(entry.get("checksums"), dict):
            raise self.unreadable(step, "it has no description")
        return description, entry["checksums"]

    def read(self, step: int, like: Arrays, expected: dict[str, int]) -> Arrays:
        """Arrays on the devices and of the dtypes of `like`, once they are known to have the checksums expected."""
        place = lambda leaf: self.orbax.ArrayRestoreArgs(sharding=leaf.sharding)  # noqa: E731
        return self._read(step, like, place, expected)

    def read_here(self, step: int, names: list[str], expected: dict[str, int]) -> Arrays:
        """Arrays of NumPy, by their names."""
        place = lambda leaf: self.orbax.RestoreArgs(restore_type=np.ndarray)  # noqa: ARG005, E731
        return self._read(step, dict.fromkeys(names, 0), place, expected)

    def wait(self) -> None:
        """Wait until all that was begun is on disk. Raises OSError."""
        if "_manager" in self.__dict__:
            with _as_os_error():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the threads of Orbax."""
        if "_manager" in self.__dict__:
            with _as_os_error():
                self._manager.close()

    def _read(self, step: int, like: dict[str, Any], place: Callable[[Any], Any], expected: dict[str, int]) -> Arrays:
        coded = _coded(like)
        places = {name: place(leaf) for name, leaf in coded.items()}
        restore = self.orbax.args.PyTreeRestore(coded, restore_args=places, partial_restore=True)
        found = self._restore(step, run=restore).run
        arrays = {name: found[quote(name, safe="")] for name in like}
        damaged = [name for name, number in checksums(arrays).items() if expected.get(name) != number]
        if damaged:
            raise self.unreadable(step, f"{', '.join(damaged[:5])} of other bits than those saved")
        return arrays

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self.orbax.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise what they like about files that are damaged
            raise self.unreadable(step, f"{type(error).__name__}: {str(error)[:200]}") from error

    def unreadable(self, step: int, reason: str) -> CheckpointError:
        """The error about a checkpoint that is damaged."""
        others = [other for other in self.steps() if other != step]
        rest = f", or remove it to go on from step {others[-1]}" if others else ""
        return CheckpointError(
            f"checkpoint: {self.path / str(step)} is not a checkpoint of this library, or is cut short or damaged: "
            f"{reason}. Copy it again{rest}"
        )

    @cached_property
    def _manager(self) -> Any:
        common = {"save_root_metadata": False, "multiprocessing_options": self._processes()}
        writing = {} if self.keep is None else self._retention(self.keep)
        options = self.orbax.CheckpointManagerOptions(**({"create": False} | common | writing))
        return self.orbax.CheckpointManager(self.path, options=options, item_names=("run", "description"))

    def _retention(self, keep: int) -> dict[str, Any]:
        """The last ones stay, and what a kill has left goes."""
        policy = self.orbax.checkpoint_managers.LatestN(keep)
        # Else a folder that cannot be created leaves threads that wait for it, and keep the process from its end.
        create = self.orbax.AsyncOptions(create_directories_asynchronously=False)
        return {
            "create": True,
            "preservation_policy": policy,
            "cleanup_tmp_directories": True,
            "async_options": create,
        }

    def _processes(self) -> Any:
        options = self.orbax.options.MultiprocessingOptions
        own = jax.process_index()
        return options(own, {own}, f"process{own}") if self.keep is None else options()


def _coded(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays under names that are names of files, too."""
    return {quote(name, safe=""): array for name, array in arrays.items()}


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Errors of writing as OSError: Orbax and TensorStore have many, and one that happened in the background."""
    try:
        yield
    except Exception as error:
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{type(error).__name__}: {error}") from error
