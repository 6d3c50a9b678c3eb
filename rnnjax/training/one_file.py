"""The store that `fit` uses by default: one file, which `save` replaces by the next checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import CheckpointError, load, save
from .devices import AbstractDevices
from .run import Run, place
from .store import AbstractCheckpoints, AbstractStore


@dataclass(frozen=True)
class OneFile(AbstractStore):
    """The last checkpoint in one file, whole, written by the first process before the next step is taken."""

    def open(self, folder: Path, devices: AbstractDevices) -> AbstractCheckpoints:
        return _Checkpoint(folder / "checkpoint", devices)


class _Checkpoint(AbstractCheckpoints):
    def __init__(self, path: Path, devices: AbstractDevices):
        self.path = path
        self.devices = devices

    def exist(self) -> bool:
        if self.path.is_dir():
            raise CheckpointError(
                f"checkpoint: expected a file at {self.path}, found a folder, such as another store writes. "
                "Pass store=rnnjax.training.Orbax() to go on with its run, or another folder; nothing was overwritten"
            )
        return self.path.exists()

    def call(self) -> str:
        return f"rnnjax.load({str(self.path)!r}, model)"

    def read(self, run: Run) -> Run:
        return place(load(self.path, run), self.devices)

    def write(self, run: Run) -> None:
        whole = self.devices.gather(run)
        if self.devices.writes:
            save(self.path, whole)

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass
