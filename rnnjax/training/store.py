"""Stores of checkpoints: in which form `fit` keeps the state of a run, and how it is read again."""

import abc
from pathlib import Path

from .devices import AbstractDevices
from .run import Run


class AbstractStore(abc.ABC):
    """The form in which the checkpoints of a run are kept. It has no state: one store may serve many runs."""

    @abc.abstractmethod
    def open(self, folder: Path, devices: AbstractDevices) -> "AbstractCheckpoints":
        """The checkpoints of the run in `folder`. Nothing is written yet."""


class AbstractCheckpoints(abc.ABC):
    """The checkpoints of one run, in one file or folder. All processes of the run call its methods alike.

    After a kill at any moment there is a whole checkpoint: the last one that was written to its end.
    """

    path: Path  # of the file or folder, which is `checkpoint` in the folder of the run

    @abc.abstractmethod
    def exist(self) -> bool:
        """Whether there is a whole one. Raises CheckpointError if there is something else."""

    @abc.abstractmethod
    def call(self) -> str:
        """The call by which a user gets the model of the last one."""

    @abc.abstractmethod
    def read(self, run: Run) -> Run:
        """The last one, on the devices. `run` is one as it begins, whole in every process.

        Raises CheckpointError if it is damaged, or of another run than `run`.
        """

    @abc.abstractmethod
    def write(self, run: Run) -> None:
        """Write one of a run that is on the devices, now or from now on.

        Raises OSError if this one, or one that was begun before, cannot be written.
        """

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until all that was begun is on disk. Raises OSError if it cannot be written."""

    @abc.abstractmethod
    def close(self) -> None:
        """Wait, and let go of threads and files."""
