"""The folder of a run of training: its metrics, its checkpoints, and the lock that keeps other runs out."""

import logging
from pathlib import Path
from typing import Any

from .atomic import write_atomically
from .devices import AbstractDevices
from .lines import from_line, to_line
from .run import Run, place
from .store import AbstractStore

Metrics = dict[str, int | float]

LOGGER = logging.getLogger(__name__)


class Log:
    """The folder of a run: its checkpoints, and its metrics as lines of JSON."""

    def __init__(self, folder: Path, store: AbstractStore, devices: AbstractDevices):
        self.folder = folder
        self.devices = devices
        self.checkpoints = store.open(folder, devices)
        self.metrics = folder / "metrics.jsonl"
        self.lock: Any = None
        self.step = 0  # of the last checkpoint that was begun

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        try:
            self.checkpoints.close()
        except OSError as error:
            if failure is None:
                raise self._explain(error) from error
            failure.add_note(str(self._explain(error)))  # which is no reason to hide the failure
        finally:
            if self.lock is not None:
                self.lock.release()

    def open(self, run: Run, resume: bool) -> Run:
        """The run to continue, on the devices: that in the folder if `resume`, else `run`, which is written first."""
        if not resume:
            self._check_empty()
        if self.devices.writes:
            self._take()
        if not resume:
            self._check_empty()  # again: another run may have ended since
        resumed = resume and self._holds_a_run()
        run = self.checkpoints.read(run) if resumed else place(run, self.devices)
        self.step = int(run.step)
        self.devices.wait()  # all have read the folder before anything is written
        if self.devices.writes and resumed:
            self._forget_after(self.step)
        if not resumed:
            self._begin(run)
        self.devices.wait()
        return run

    def _begin(self, run: Run) -> None:
        """Write the first checkpoint, and metrics of no step yet."""
        try:
            if self.devices.writes:
                write_atomically(self.metrics, b"")
            self.checkpoints.write(run)
            self.checkpoints.wait()  # a folder with metrics always has a checkpoint
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{error.strerror}, while the first checkpoint was written to {self.folder}. Nothing of this run is "
                "kept. Make room there, or pass another folder",
            ) from error

    def _check_empty(self) -> None:
        """Raise if there is a run, or the metrics of one whose checkpoint is lost."""
        if self.checkpoints.exist():
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}. "
                "Pass resume=True to go on with that run, or another folder; nothing was overwritten. "
                f"Call {self.checkpoints.call()} to have its model"
            )
        if read_metrics(self.metrics):
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}, which has metrics and no checkpoint. "
                "Pass another folder; nothing was overwritten"
            )

    def _holds_a_run(self) -> bool:
        """Whether there is a checkpoint. Raises if metrics say that there was one, which is now lost."""
        if self.checkpoints.exist():
            return True
        if read_metrics(self.metrics):
            raise FileNotFoundError(
                f"resume: expected a checkpoint beside the metrics in {self.folder}, found none. "
                "Copy it back, or pass another folder; nothing was overwritten"
            )
        if self.devices.writes:
            LOGGER.warning("resume: %s holds no run yet, so this one begins at step 0", self.folder)
        return False

    def write(self, run: Run, metrics: Metrics) -> None:
        """Write the metrics first, so that those of all steps before a checkpoint are there."""
        self.step = int(run.step)
        try:
            if self.devices.writes:
                with open(self.metrics, "a") as file:
                    file.write(to_line(metrics))
            self.checkpoints.write(run)
        except OSError as error:
            raise self._explain(error) from error
        self.devices.wait()

    def advice(self) -> str:
        """Where the last good weights are, as the end of an error message."""
        return (
            f" The last good weights are in {self.checkpoints.path}. "
            f"Call {self.checkpoints.call()} to have the model back."
        )

    def _explain(self, error: OSError) -> OSError:
        return type(error)(
            error.errno,
            f"{error.strerror}, while a checkpoint up to step {self.step} was written to {self.folder}. "
            f"The weights of the last whole one are in {self.checkpoints.path}, if it is still there. "
            f"Call fit(..., resume=True) to go on from it, or {self.checkpoints.call()} to have its model",
        )

    def _take(self) -> None:
        """Lock the folder until the run ends: two runs in one folder would mix their metrics and checkpoints."""
        from filelock import FileLock, Timeout  # by training alone: a checkout can be imported without it

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise FileExistsError(
                f"folder: expected a folder that no other run writes to, got {self.folder}, which another run uses. "
                "Wait for its end, or take another folder; nothing was overwritten"
            ) from None
        self.lock = lock

    def _forget_after(self, step: int) -> None:
        """Drop the metrics of steps after the last checkpoint of the killed run; these steps are run again."""
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        write_atomically(self.metrics, "".join(map(to_line, kept)).encode())


def read_metrics(path: str | Path) -> list[Metrics]:
    """The lines of a `metrics.jsonl`; invalid lines, such as one that a kill truncated, are left out.

    JSON has no NaN and no infinity: in the file they are the strings "NaN", "Infinity" and "-Infinity", here numbers.
    """
    lines = Path(path).read_bytes().split(b"\n") if Path(path).exists() else []
    return list(filter(None, map(_metrics, lines)))


def _metrics(line: bytes) -> Metrics | None:
    try:
        read = from_line(line)
    except (ValueError, RecursionError):
        return None
    is_step = isinstance(read, dict) and isinstance(read.get("step"), int) and not isinstance(read["step"], bool)
    return read if is_step else None
