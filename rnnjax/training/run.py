"""A run of training: the state that is checkpointed, and its folder."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array

from ..arrays import PyTree
from .atomic import write_atomically
from .checkpoint import load, save
from .devices import AbstractDevices
from .lines import from_line, to_line

Metrics = dict[str, int | float]

LOGGER = logging.getLogger(__name__)


class Run(NamedTuple):
    """The state of a run, which is saved in a checkpoint."""

    weights: PyTree
    optimiser: PyTree
    carry: PyTree
    step: Array
    key: Array
    best: PyTree  # the weights with the least validation loss so far
    best_loss: Array
    waited: Array  # validations since then


class Log:
    """The folder of a run: its checkpoint, and its metrics as lines of JSON."""

    def __init__(self, folder: Path, devices: AbstractDevices):
        self.folder = folder
        self.devices = devices
        self.checkpoint = folder / "checkpoint"
        self.metrics = folder / "metrics.jsonl"
        self.lock: Any = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *failure: object) -> None:
        if self.lock is not None:
            self.lock.release()

    def open(self, run: Run, resume: bool) -> Run:
        """The run to continue: the one in the folder if `resume`, else `run`, whose first checkpoint is written."""
        if not resume:
            self._check_empty()
        if self.devices.writes:
            self._take()
        if not resume:
            self._check_empty()  # again: another run may have ended since
        resumed = resume and self._holds_a_run()
        if resumed:
            run = load(self.checkpoint, run)
        self.devices.wait()  # all have read the folder before anything is written
        if self.devices.writes:
            if resumed:
                self._forget_after(int(run.step))
            else:
                write_atomically(self.metrics, b"")
                save(self.checkpoint, run)
        self.devices.wait()
        return run

    def _check_empty(self) -> None:
        """Raise if there is a run, or the metrics of one whose checkpoint is lost."""
        if self.checkpoint.exists():
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}. "
                "Pass resume=True to go on with that run, or another folder; nothing was overwritten. "
                f"Call rnnjax.load({str(self.checkpoint)!r}, model) to have its model"
            )
        if read_metrics(self.metrics):
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}, which has metrics and no checkpoint. "
                "Pass another folder; nothing was overwritten"
            )

    def _holds_a_run(self) -> bool:
        """Whether there is a checkpoint. Raises if metrics say that there was one, which is now lost."""
        if self.checkpoint.exists():
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
        whole = self.devices.gather(run)
        if self.devices.writes:
            try:
                with open(self.metrics, "a") as file:
                    file.write(to_line(metrics))
                save(self.checkpoint, whole)
            except OSError as error:
                raise type(error)(
                    error.errno,
                    f"{error.strerror}, while step {int(whole.step)} was written to {self.folder}. The weights of the "
                    f"checkpoint before are in {self.checkpoint}, if it is still there. Call fit(..., resume=True) "
                    f"to go on from it, or rnnjax.load({str(self.checkpoint)!r}, model) to have its model",
                ) from error
        self.devices.wait()

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
