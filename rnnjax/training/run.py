"""A run of training: all it needs to go on, and the folder that holds it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array

from ..arrays import PyTree
from .atomic import write_atomically
from .checkpoint import load, save
from .devices import AbstractDevices

Metrics = dict[str, int | float]


class Run(NamedTuple):
    """All that a run needs to go on: what a checkpoint holds."""

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
        """The run to go on with: the one in the folder if `resume`, else `run`, whose first checkpoint is written."""
        if not resume and self.checkpoint.exists():
            raise FileExistsError(
                f"folder: expected none with a run in it, got {self.folder}. "
                "Pass resume=True to go on with that run, or another folder; nothing was overwritten"
            )
        if self.devices.writes:
            self._take(resume)
        if resume:
            run = load(self.checkpoint, run)
        self.devices.wait()  # all have looked before anything is written
        if self.devices.writes:
            if resume:
                self._forget_after(int(run.step))
            else:
                write_atomically(self.metrics, b"")
                save(self.checkpoint, run)
        self.devices.wait()
        return run

    def write(self, run: Run, metrics: Metrics) -> None:
        """The metrics first, so that a checkpoint never lacks the lines that led to it."""
        whole = self.devices.gather(run)
        if self.devices.writes:
            try:
                with open(self.metrics, "a") as file:
                    file.write(json.dumps(metrics) + "\n")
                save(self.checkpoint, whole)
            except OSError as error:
                raise type(error)(
                    error.errno,
                    f"{error.strerror}, while step {int(whole.step)} was written to {self.folder}. The weights of the "
                    f"checkpoint before are in {self.checkpoint}, if it is still there. Call fit(..., resume=True) "
                    "to go on from it",
                ) from error
        self.devices.wait()

    def _take(self, resume: bool) -> None:
        """The folder, until the run ends: two runs in one would mix their metrics and checkpoints."""
        from filelock import FileLock, Timeout  # by training alone: a checkout can be imported without it

        if not resume:
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not self.folder.is_dir():
            return
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise FileExistsError(
                f"folder: expected one that no living run writes to, got {self.folder}, which another run holds. "
                "Wait for its end, or take another folder; nothing was overwritten"
            ) from None
        self.lock = lock

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that the killed run took after its last checkpoint; they will be taken again."""
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: str | Path) -> list[Metrics]:
    """The lines of a `metrics.jsonl`; what is no line of metrics, as one that a kill cut short, is left out."""
    lines = Path(path).read_bytes().split(b"\n") if Path(path).exists() else []
    return list(filter(None, map(_metrics, lines)))


def _metrics(line: bytes) -> Metrics | None:
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_step = isinstance(read, dict) and isinstance(read.get("step"), int) and not isinstance(read["step"], bool)
    return read if is_step else None
